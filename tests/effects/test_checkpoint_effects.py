"""Effects of the arguments of checkpoints on real tiny runs: what is saved, what is read back."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from megatron_trainjob.exit_codes import ExitCode
from tests.effects.registry import effect
from tests.support.ranks import legacy_ranks
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist


def iterations(run) -> list[str]:
    return sorted(path.name for path in run.folder.glob("iter_*"))


def manifest(run, iteration: int) -> dict:
    return json.loads((run.folder / f"iter_{iteration:07d}" / "manifest.json").read_text())


@effect("save")
def test_save_is_the_folder_of_everything_that_a_run_leaves(train, tmp_path):
    run = train(save=str(tmp_path / "elsewhere"), train_iters=1)
    left = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert {"iter_0000001", "args.json", "logging.jsonl", "runs", "latest_checkpointed_iteration.txt"} <= left
    assert run.exit_code == 0


@effect("save_interval")
def test_save_interval_is_the_distance_of_checkpoints_and_one_comes_last(train):
    assert iterations(train(save_interval=2, train_iters=5)) == ["iter_0000002", "iter_0000004", "iter_0000005"]


@effect("no_save_optim", "no_load_optim")
@pytest.mark.parametrize("where", ["no_save_optim", "no_load_optim"])
def test_without_the_optimizer_state_the_moments_start_from_zero(train, where):
    """The step after the resume differs from the uninterrupted run only later: its update uses fresh moments."""
    whole = train(train_iters=4).column("lm loss")
    saved = {"no_save_optim": True} if where == "no_save_optim" else {}
    first = train(train_iters=4, name="stopped", stop_at=2, **saved)
    assert manifest(first, 2)["has_optimizer"] is (where == "no_load_optim")
    resumed = train(train_iters=4, name="stopped", resume="Auto", attempt=1, **{where: True}).column("lm loss")
    assert resumed[:3] == whole[:3]
    assert resumed[3] != whole[3]


@effect("no_save_rng", "no_load_rng")
@pytest.mark.parametrize("where", ["no_save_rng", "no_load_rng"])
def test_without_the_random_state_dropout_draws_other_numbers(train, where):
    settings = {"train_type": "lora", "lora_dropout": 0.5, "train_iters": 4, "lr_decay_style": "constant", "lr": 1e-2}
    whole = train(**settings).column("lm loss")
    saved = {"no_save_rng": True} if where == "no_save_rng" else {}
    first = train(name="stopped", stop_at=2, **settings, **saved)
    assert manifest(first, 2)["has_rng"] is (where == "no_load_rng")
    resumed = train(name="stopped", resume="Auto", attempt=1, **settings, **{where: True}).column("lm loss")
    assert resumed[:2] == whole[:2]
    assert resumed[2] != whole[2]


@effect("load")
def test_load_resumes_another_folder_where_it_stopped(train):
    first = train(name="first", train_iters=4, stop_at=2)
    whole = train(train_iters=4).column("lm loss")
    assert train(name="second", train_iters=4, load=str(first.folder)).column("lm loss") == whole[2:]


@effect("finetune")
def test_finetune_takes_the_weights_alone_and_starts_at_the_first_step(train):
    first = train(name="first", train_iters=2)
    run = train(name="second", train_iters=2, load=str(first.folder), finetune=True)
    assert [line["iteration"] for line in run.log if "lm loss" in line] == [1, 2]
    assert run.column("lm loss")[0] < first.column("lm loss")[0], "the loaded weights have learned"
    assert run.column("learning_rate") == first.column("learning_rate")


@effect("exit_on_missing_checkpoint")
def test_exit_on_missing_checkpoint_decides_between_an_error_and_a_fresh_start(train, tmp_path, plain):
    empty = tmp_path / "empty"
    empty.mkdir()
    stopped = train(load=str(empty))
    assert stopped.exit_code == ExitCode.NO_CHECKPOINT
    assert str(empty) in stopped.message
    assert train(load=str(empty), exit_on_missing_checkpoint=False).column("lm loss") == plain.column("lm loss")


@effect("adapter_load")
def test_adapter_load_resumes_the_adapter_or_starts_from_it(train):
    settings = {"train_type": "lora", "lora_dropout": 0.0, "train_iters": 4, "lr": 1e-2}
    whole = train(**settings).column("lm loss")
    first = train(name="first", stop_at=2, **settings)
    assert train(name="resumed", adapter_load=str(first.folder), **settings).column("lm loss") == whole[2:]
    fresh = train(name="fresh", adapter_load=str(first.folder), finetune=True, **settings)
    assert [line["iteration"] for line in fresh.log if "lm loss" in line] == [1, 2, 3, 4]
    assert fresh.column("lm loss")[0] < whole[0]


def test_a_lora_checkpoint_holds_the_adapter_alone(train):
    from torch.distributed.checkpoint import FileSystemReader

    run = train(train_type="lora", train_iters=1)
    metadata = FileSystemReader(run.folder / "iter_0000001").read_metadata()
    weights = [key for key in metadata.state_dict_metadata if key.startswith(("decoder", "embedding"))]
    assert weights
    assert all(".lora." in key for key in weights)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over(train):
    settings = {"train_iters": 4, "save_interval": 1}
    whole = train(**settings).column("lm loss")
    run = train(name="damaged", stop_at=3, **settings)
    assert (run.folder / "iter_0000001").exists()
    next((run.folder / "iter_0000002").glob("*.distcp")).write_bytes(b"")  # asked during this save, it stopped there
    resumed = train(name="damaged", resume="Auto", attempt=1, **settings)
    assert resumed.column("lm loss") == whole
    assert torch.isfinite(torch.tensor(resumed.column("lm loss"))).all()


def test_a_resume_is_refused_where_every_checkpoint_is_damaged_and_the_file_is_named(train):
    run = train(name="damaged", stop_at=2, train_iters=4)
    shard = run.folder / "iter_0000002" / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    resumed = train(name="damaged", resume="Auto", attempt=1, train_iters=4)
    assert resumed.exit_code == ExitCode.NO_CHECKPOINT
    assert f"{shard} has changed since it was saved" in resumed.message
    assert train(name="other", load=str(run.folder)).exit_code == ExitCode.NO_CHECKPOINT


@effect("async_save")
def test_async_save_writes_the_same_checkpoints_while_training_goes_on(train):
    """That training does go on meanwhile: tests/megatron_trainer/checkpoint/test_save.py."""
    settings = {"train_iters": 4, "save_interval": 1}
    whole = train(name="whole", **settings)
    run = train(name="async", async_save=True, **settings)
    assert run.column("lm loss") == whole.column("lm loss")
    assert iterations(run) == iterations(whole)
    assert [manifest(run, i)["files"]["__0_0.distcp"]["size_bytes"] for i in range(1, 5)] == [
        manifest(whole, i)["files"]["__0_0.distcp"]["size_bytes"] for i in range(1, 5)
    ]
    for last in (3, 4):
        shutil.rmtree(run.folder / f"iter_000000{last}")
    resumed = train(name="async", resume="Auto", attempt=1, async_save=True, **settings)
    assert resumed.column("lm loss") == whole.column("lm loss")


@effect("save_total_limit")
def test_save_total_limit_keeps_the_newest_checkpoints_and_the_best(train, data):
    """With a rate that undoes what was learned, the first evaluation is the best."""
    settings = {"train_iters": 5, "save_interval": 1}
    assert iterations(train(**settings, save_total_limit=2)) == ["iter_0000004", "iter_0000005"]
    settings |= {"val_dataset": [str(data)], "eval_interval": 1, "lr": 0.3, "lr_decay_style": "constant"}
    settings |= {"global_batch_size": 4}
    run = train(**settings, save_total_limit=2)
    losses = run.column("eval_lm loss")
    best = 1 + losses.index(min(losses))
    assert best < 4, "or the run shows nothing"
    assert iterations(run) == sorted({f"iter_000000{kept}" for kept in (best, 4, 5)})


@effect("save_safetensors")
def test_save_safetensors_writes_each_checkpoint_in_hugging_face_form(train):
    settings = {"train_iters": 4, "save_interval": 1, "save_total_limit": 2}
    run = train(**settings, save_safetensors=True, to_hf=True)
    assert sorted(path.name for path in (run.folder / "safetensors").iterdir()) == iterations(run)
    last = load_file(run.folder / "safetensors" / "iter_0000004" / "model.safetensors")
    before = load_file(run.folder / "safetensors" / "iter_0000003" / "model.safetensors")
    assert all(torch.equal(last[name], tensor) for name, tensor in run.weights().items())
    assert any(not torch.equal(last[name], before[name]) for name in last)
    assert not (train(**settings).folder / "safetensors").exists()


@pytest.mark.parametrize(
    ("given", "file"),
    [
        pytest.param({}, "adapter_model.safetensors", marks=pytest.mark.slow),
        ({"merge_lora": True}, "model.safetensors"),
    ],
    ids=["adapter", "merged"],
)
def test_save_safetensors_of_a_lora_run(train, given, file):
    run = train(train_type="lora", train_iters=2, save_interval=1, save_safetensors=True, async_save=True, **given)
    assert [(run.folder / "safetensors" / f"iter_000000{i}" / file).is_file() for i in (1, 2)] == [True, True]


@effect("auto_detect_ckpt_format")
def test_auto_detect_ckpt_format_takes_the_weights_of_checkpoints_without_a_manifest(train):
    """As another program of the Megatron family leaves one: the same files, and nothing that proves them complete."""
    first = train(name="first", train_iters=2, lr=1e-2)
    expected = train(load=str(first.folder), finetune=True, train_iters=1).column("lm loss")
    (first.folder / "owner.json").unlink()
    (first.folder / "iter_0000002" / "manifest.json").unlink()
    assert train(load=str(first.folder), finetune=True, train_iters=1).column("lm loss") == expected
    refused = train(load=str(first.folder), finetune=True, auto_detect_ckpt_format=False)
    assert (refused.exit_code, "manifest.json is missing" in refused.message) == (ExitCode.NO_CHECKPOINT, True)
    resumed = train(load=str(first.folder))
    assert resumed.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert "take its weights alone (finetune true)" in resumed.message


def test_auto_detect_ckpt_format_says_what_else_it_found(train, tmp_path, llama):
    (tmp_path / "old" / "iter_0000001" / "mp_rank_00").mkdir(parents=True)
    (tmp_path / "old" / "iter_0000001" / "mp_rank_00" / "model_optim_rng.pt").touch()
    (tmp_path / "old" / "latest_checkpointed_iteration.txt").write_text("1")
    for place, text in ((tmp_path / "old", "cannot be read"), (llama, "name it in spec.args.model")):
        run = train(load=str(place), finetune=True)
        assert run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
        assert text in run.message


@effect("load")
def test_a_lora_run_takes_its_base_weights_from_load(train):
    """The first loss of a fresh adapter is that of the loaded model."""
    base = train(name="base", train_iters=3, lr=1e-2)
    assert train(name="adapter", train_type="lora", train_iters=1, load=str(base.folder)).column("lm loss") == [
        train(name="again", train_iters=1, load=str(base.folder), finetune=True).column("lm loss")[0]
    ]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"tensor_model_parallel_size": 2},
        pytest.param({"pipeline_model_parallel_size": 2}, marks=pytest.mark.slow),
    ],
    ids=["one", "tp2", "pp2"],
)
def test_ckpt_format_torch_is_read_in_its_layout_and_runs_nothing(train, plain, llama, tmp_path, settings):
    """A pickle per rank, with a class in it that would leave a folder; another layout is told which it is of."""
    ranks, marker, old = 2 if settings else 1, tmp_path / "was-run", tmp_path / "old"
    gloo_ranks(ranks).run(legacy_ranks.write, llama, old, settings, marker=marker)
    run = train(
        ranks=ranks, load=str(old), finetune=True, ckpt_format="torch", train_iters=2, lr_decay_iters=4, **settings
    )
    assert run.exit_code == 0, run.message
    assert run.column("lm loss") == pytest.approx(plain.column("lm loss")[:2], abs=2e-4)
    assert not marker.exists()
    other = train(load=str(old), finetune=True) if settings else train(load=str(old))
    assert other.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert ("loads in the layout that wrote it alone" if settings else "take its weights alone") in other.message
    assert not marker.exists()


@effect("ckpt_format")
def test_ckpt_format_torch_dist_is_written_and_others_are_not(train):
    run = train(ckpt_format="torch_dist", train_iters=1)
    names = {path.name for path in (run.folder / "iter_0000001").iterdir()}
    assert {".metadata", "metadata.json", "__0_0.distcp"} <= names
    refused = train(ckpt_format="zarr", name="zarr")
    assert refused.exit_code == ExitCode.BAD_ARGUMENTS
    assert "use torch_dist" in refused.message


@effect("save_strategy")
@pytest.mark.parametrize(
    ("strategy", "saved"),
    [("epoch", [5, 9, 10]), ("no", [10]), pytest.param("steps", [4, 8, 10], marks=pytest.mark.slow)],
)
def test_save_strategy_decides_when_checkpoints_are_written(train, strategy, saved):
    """18 rows: an epoch ends within steps of four with the fifth and, after 36 rows, with the ninth step."""
    run = train(save_strategy=strategy, save_interval=4, train_iters=10, global_batch_size=4)
    assert iterations(run) == [f"iter_{number:07d}" for number in saved]


@effect("eval_strategy")
@pytest.mark.parametrize(
    ("strategies", "evaluated"),
    [
        ({"eval_strategy": "epoch"}, [5, 9, 10]),
        pytest.param({"save_strategy": "epoch"}, [5, 9, 10], marks=pytest.mark.slow),
        pytest.param({"save_strategy": "epoch", "eval_interval": 4}, [4, 8, 10], marks=pytest.mark.slow),
        ({"eval_strategy": "no"}, []),
    ],
    ids=["epoch", "as the checkpoints", "as its interval", "never"],
)
def test_eval_strategy_decides_when_the_validation_set_is_evaluated(train, data, strategies, evaluated):
    run = train(val_dataset=[str(data)], eval_iters=1, train_iters=10, global_batch_size=4, **strategies)
    assert [line["iteration"] for line in run.log if "eval_lm loss" in line] == evaluated


@pytest.mark.slow
def test_best_and_last_lead_to_checkpoints_that_are_kept(train, data):
    """With a rate that undoes what was learned, an early checkpoint stays the best."""
    settings = {"train_iters": 5, "save_interval": 1, "save_total_limit": 2, "lr": 0.3, "lr_decay_style": "constant"}
    settings |= {"global_batch_size": 4}
    run = train(**settings, val_dataset=[str(data)], eval_interval=1)
    losses = run.column("eval_lm loss")
    best = 1 + losses.index(min(losses))
    assert best < 4, "or the run shows nothing"
    assert (run.folder / "best").resolve() == run.folder / f"iter_000000{best}"
    assert (run.folder / "last").resolve() == run.folder / "iter_0000005"
    first = train(load=str(run.folder / "best"), finetune=True, train_iters=1).column("lm loss")
    assert first == train(load=str(run.folder / f"iter_000000{best}"), finetune=True, train_iters=1).column("lm loss")
    assert first != train(load=str(run.folder), finetune=True, train_iters=1).column("lm loss")


@effect("load_best_model_at_end")
@pytest.mark.parametrize("train_type", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_load_best_model_at_end_exports_the_best_weights(train, data, train_type):
    """The best is the one with the highest loss here, which is an early one."""
    settings = {"save_interval": 1, "lr": 1e-2, "greater_is_better": True, "train_type": train_type}
    settings |= {"train_iters": 4, "val_dataset": [str(data)], "save_safetensors": True}
    given = {"to_hf": True} if train_type == "full" else {}
    run = train(**settings, **given, load_best_model_at_end=True)
    losses = run.column("eval_lm loss")
    best = 1 + losses.index(max(losses))
    assert best < 4, "or the run shows nothing"
    folder, file = ("hf", "model") if train_type == "full" else ("adapter", "adapter_model")
    exported = load_file(run.folder / folder / f"{file}.safetensors")
    expected = load_file(run.folder / "safetensors" / f"iter_000000{best}" / f"{file}.safetensors")
    last = load_file(run.folder / "safetensors" / "iter_0000004" / f"{file}.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())
    assert any(not torch.equal(exported[name], tensor) for name, tensor in last.items())


@effect("load_best_model_at_end")
def test_the_best_checkpoint_is_passed_over_where_its_content_has_changed(train, data):
    """One byte of a tensor, which loading would not notice. The best are early ones here."""
    given = {"save_interval": 1, "lr": 1e-2, "greater_is_better": True, "train_iters": 4, "val_dataset": [str(data)]}
    given |= {"save_safetensors": True, "to_hf": True, "load_best_model_at_end": True, "name": "run"}
    run = train(**given)
    losses = run.column("eval_lm loss")
    best, second = sorted(range(1, 5), key=lambda iteration: -losses[iteration - 1])[:2]
    damaged = next((run.folder / f"iter_000000{best}").glob("__0_0.distcp"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert train(**given, resume="Auto", attempt=1).exit_code == 0
    exported = load_file(run.folder / "hf" / "model.safetensors")
    expected = load_file(run.folder / "safetensors" / f"iter_000000{second}" / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())


@effect("load_best_model_at_end")
def test_a_run_that_starts_over_takes_no_checkpoint_of_the_run_before_for_its_best(train, data):
    """The run before learned; this one does not, and saves at other steps."""
    given = {"val_dataset": [str(data)], "to_hf": True, "load_best_model_at_end": True, "name": "run"}
    before = train(**given, save_interval=1, train_iters=3, lr=1e-2, lr_decay_style="constant")
    over = train(**given, save_interval=2, train_iters=4, lr=1e-9, save_total_limit=1)
    assert min(over.column("eval_lm loss")) > min(before.column("eval_lm loss")), "or the run shows nothing"
    names = sorted(path.name for path in over.folder.glob("iter_*"))
    assert names == ["iter_0000001", "iter_0000003", "iter_0000004"]
    assert (over.folder / "best").resolve().name == "iter_0000004"
    alone = train(**given | {"name": "alone"}, save_interval=2, train_iters=4, lr=1e-9)
    assert all(torch.equal(over.weights()[name], tensor) for name, tensor in alone.weights().items())
    again = train(**given, save_interval=2, train_iters=6, lr=1e-9, resume="Auto", attempt=1)
    assert (again.folder / "best").resolve().name != "iter_0000003"


@effect("metric_for_best_model", "greater_is_better")
@pytest.mark.parametrize(
    "given",
    [pytest.param({}, marks=pytest.mark.slow), {"metric_for_best_model": "eval_lm_loss"}, {"greater_is_better": True}],
    ids=["loss", "named", "turned"],
)
def test_the_best_checkpoint_follows_the_metric_and_its_direction(train, data, given):
    run = train(val_dataset=[str(data)], save_interval=1, train_iters=3, lr=1e-2, **given)
    losses = run.column("eval_lm loss")
    wanted = max(losses) if given.get("greater_is_better") else min(losses)
    assert (run.folder / "best").resolve().name == f"iter_000000{1 + losses.index(wanted)}"


def test_an_unknown_metric_is_named_with_those_that_there_are(train, data):
    run = train(val_dataset=[str(data)], metric_for_best_model="accuracy")
    assert run.exit_code == ExitCode.BAD_ARGUMENTS
    assert "it has lm loss" in run.message
