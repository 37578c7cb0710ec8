import pytest
from tiny_run import train, arguments, write_data
import tiny_model


@pytest.mark.parametrize(
    "given",
    [
        dict(packing=True, train_iters=None, max_epochs=40, global_batch_size=2),
        dict(lazy_tokenize=True),
        dict(packing=True, train_iters=2, global_batch_size=2, num_workers=1),
    ],
    ids=str,
)
def test_it(tmp_path, given):
    m = tiny_model.make("llama", tmp_path)
    r = train(arguments(m, write_data(tmp_path / "t.jsonl"), tmp_path / "out", **given))
    print(r.exit_code, r.message, r.column("loss") or r.log[-2:])
    assert r.exit_code == 0
