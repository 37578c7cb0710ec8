"""A run that goes on in another layout: the same model at once, and the same losses over 20 steps within rounding.

The first loss after the resume is that of the loaded weights: it is equal to 1e-5, as float32 logits of two layouts
are. Over 20 steps at a rate of 1e-3 sums in another order drift apart by less than TOLERANCE. Rows are read in file
order (`dataloader_type: single`): a shuffle depends on the number of data-parallel ranks. That the logits are the same:
test_logits.py.
"""

import shutil

import pytest

from tests.support.models import layouts, seeing_model, tiny_model
from tests.support.ranks.tiny_run import TinyRun, arguments, train, write_data

pytestmark = pytest.mark.dist
SLOW = pytest.mark.slow
SAVED_AT, STEPS = 2, 22
TOLERANCE = 1e-3
TP2 = {"tensor_model_parallel_size": 2}
TP2_SP = {**TP2, "sequence_parallel": True}
TP2_ETP1 = {**TP2_SP, "expert_tensor_parallel_size": 1}
PP2 = {"pipeline_model_parallel_size": 2}
UNEVEN = {**PP2, "decoder_first_pipeline_num_layers": 1}
EP2 = {"expert_model_parallel_size": 2}
PP2_EP2 = {**PP2, **EP2}
LORA = {"train_type": "lora", "lora_dropout": 0.0, "lora_rank": 4}
ONE_RANK: dict[str, object] = {}
DP2 = {"data_parallel": 2}


@pytest.fixture(scope="module")
def llama(model_root):
    """With four layers: a stage of one has another number than the rest."""
    return tiny_model.make("llama", model_root)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "train.jsonl", rows=2 * STEPS)


def ranks(layout: dict[str, object]) -> int:
    return {id(ONE_RANK): 1, id(PP2_EP2): 4}.get(id(layout), 2)


def settings(layout: dict[str, object], given: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in {**given, **layout}.items() if name != "data_parallel"}


class Saved:
    """Runs of one model in one layout: a whole one, and one that stopped after SAVED_AT steps."""

    def __init__(self, model, data, folder, layout, **given):
        common = {"train_iters": STEPS, "save_interval": 1000, "dataloader_type": "single", "global_batch_size": 2}
        self.layout, self.given = layout, {**common, **given}
        self.model, self.data, self.folder = model, data, folder
        self.whole = self._train("whole", layout)
        self._train("stopped", layout, stop_at=SAVED_AT)

    def resumed(self, layout: dict[str, object]) -> TinyRun:
        target = self.folder / "resumed"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.folder / "stopped", target)
        return self._train("resumed", layout, resume="Required", attempt=1)

    def check(self, layout: dict[str, object], *, at_once: float = 1e-5, tolerance: float = TOLERANCE) -> None:
        run = self.resumed(layout)
        assert run.exit_code == 0, run.message
        losses, expected = run.column("lm loss"), self.whole.column("lm loss")
        assert len(expected) == STEPS
        assert losses[:SAVED_AT] == expected[:SAVED_AT]
        assert losses[SAVED_AT] == pytest.approx(expected[SAVED_AT], abs=at_once)
        assert losses == pytest.approx(expected, abs=tolerance)
        assert expected[-1] < expected[SAVED_AT] - 0.02, "the model must learn, or the comparison says little"

    def _train(self, name: str, layout: dict[str, object], **options: object) -> TinyRun:
        given = arguments(self.model, self.data, self.folder / name, **settings(layout, self.given))
        return train(given, ranks=ranks(layout), **options)


@pytest.fixture(scope="module")
def dense(llama, data, tmp_path_factory):
    return Saved(llama, data, tmp_path_factory.mktemp("dense"), TP2)


@pytest.mark.parametrize(
    "layout",
    [UNEVEN, *(pytest.param(layout, marks=SLOW) for layout in (ONE_RANK, PP2, DP2))],
    ids=["uneven pp2", "one rank", "pp2", "dp2"],
)
def test_a_run_saved_with_tensor_parallelism_goes_on_in_any_layout(dense, layout):
    dense.check(layout)


@SLOW
def test_a_run_saved_in_uneven_stages_goes_on_with_tensor_parallelism(llama, data, tmp_path):
    Saved(llama, data, tmp_path, UNEVEN).check(TP2_SP)


@SLOW
def test_a_run_goes_on_with_an_optimizer_that_every_rank_holds_whole(llama, data, tmp_path):
    Saved(llama, data, tmp_path, TP2, use_distributed_optimizer=False).check(PP2)


@SLOW
@pytest.mark.parametrize("layout", [PP2, DP2], ids=["pp2", "dp2"])
def test_an_adapter_saved_with_tensor_parallelism_goes_on_in_another_layout(llama, data, tmp_path, layout):
    Saved(llama, data, tmp_path, TP2, **LORA, lr=1e-2).check(layout)


@SLOW
@pytest.mark.parametrize(
    ("name", "saved_in", "loaded_in"),
    [
        ("deepseek_v3", TP2_SP, ONE_RANK),
        ("qwen3_next", TP2_SP, ONE_RANK),
        ("qwen3_next", ONE_RANK, PP2),
        ("qwen3_next", TP2_ETP1, ONE_RANK),
        ("qwen3_5_moe", TP2_SP, PP2),
        ("qwen3_moe", TP2_ETP1, ONE_RANK),
        ("qwen3_moe", TP2_SP, TP2_ETP1),
        ("gpt_oss", EP2, TP2_ETP1),
        ("gpt_oss", TP2_ETP1, PP2),
        ("gpt_oss", ONE_RANK, EP2),
        ("gemma4_text", TP2_SP, PP2),
        ("gemma4_text", ONE_RANK, EP2),
        ("qwen3_moe", EP2, EP2),
        ("qwen3_moe", EP2, DP2),
        ("qwen3_moe", EP2, ONE_RANK),
        ("qwen3_moe", PP2, EP2),
        ("deepseek_v3", ONE_RANK, EP2),
    ],
    ids=[
        "latent attention",
        "linear attention of two ranks to one",
        "linear attention in stages",
        "whole experts of two ranks to one",
        "linear attention of two ranks to stages",
        "whole experts of two ranks to one, without linear attention",
        "sharded experts to whole ones",
        "spread experts with sinks to whole ones",
        "whole experts with sinks to stages",
        "experts with sinks of one rank to spread ones",
        "experts beside dense blocks of two ranks to stages",
        "experts beside dense blocks of one rank to spread ones",
        "experts where they were",
        "spread experts to all of them on each rank",
        "spread experts to one rank",
        "experts in stages to spread ones",
        "experts of one rank to spread ones",
    ],
)
def test_experts_and_latent_attention_go_on_in_another_layout(model_root, data, tmp_path, name, saved_in, loaded_in):
    made = seeing_model if name in tiny_model.SEEING_MODELS else tiny_model
    Saved(made.make(name, model_root), data, tmp_path, saved_in).check(loaded_in)


@SLOW
@pytest.mark.parametrize(("saved_in", "loaded_in"), [(PP2_EP2, ONE_RANK), (ONE_RANK, PP2_EP2), (PP2_EP2, PP2_EP2)])
def test_a_stage_without_experts_counts_their_steps_too(model_root, data, tmp_path, saved_in, loaded_in):
    """The first stage's numbers are saved for all."""
    model = tiny_model.make("deepseek_v3", model_root, first_k_dense_replace=2)
    Saved(model, data, tmp_path, saved_in).check(loaded_in)


@SLOW
@pytest.mark.parametrize(("saved_in", "loaded_in"), [(EP2, ONE_RANK), (DP2, EP2)], ids=["gathered", "spread"])
def test_adapters_of_experts_go_on_in_another_layout(model_root, data, tmp_path, saved_in, loaded_in):
    model = tiny_model.make("qwen3_moe", model_root)
    Saved(model, data, tmp_path, saved_in, **LORA, lr=1e-2).check(loaded_in)


@SLOW
@pytest.mark.parametrize("layout", [ONE_RANK, TP2, PP2], ids=["one rank", "tp2", "pp2"])
def test_float16_goes_on_in_another_layout_with_its_loss_scale(llama, data, tmp_path, layout):
    saved = Saved(llama, data, tmp_path, DP2, torch_dtype="float16")
    saved.check(layout, at_once=2e-3, tolerance=2e-2)


@pytest.mark.slow
def test_float16_resumes_bit_identically_with_its_loss_scale(llama, data, tmp_path):
    saved = Saved(llama, data, tmp_path, DP2, torch_dtype="float16", train_iters=8)
    run = saved.resumed(DP2)
    assert run.exit_code == 0, run.message
    assert run.column("loss_scale") == saved.whole.column("loss_scale")
    assert len(set(run.column("loss_scale"))) > 1, "the scale must change, or the comparison says little"
    assert run.column("lm loss") == saved.whole.column("lm loss")


@SLOW
@pytest.mark.parametrize(
    ("name", "given", "in_turn"),
    [
        ("llama", {}, ("tp2 pp2 dp2", "pp2", "tp1", "tp4 sp dp2")),
        ("llama", LORA, ("tp2 pp2 dp2", "pp2", "tp1", "tp4 sp dp2")),
        ("qwen3_moe", {}, ("ep2 pp2 dp2", "ep2", "tp1", "etp2 ep2 dp2")),
    ],
    ids=["dense", "adapter", "experts"],
)
def test_eight_ranks_go_on_as_two_as_one_and_as_eight_others(model_root, tmp_path, name, given, in_turn):
    """Two steps in each layout; the whole is the run of one rank that was left alone."""
    data = write_data(tmp_path / "train.jsonl", rows=8 * 2 * len(in_turn))
    model = tiny_model.make(name, model_root, **layouts.LARGE_MODELS[name])
    given = {**given, "train_iters": 2 * len(in_turn), "global_batch_size": 8, "dataloader_type": "single"}
    alone = train(arguments(model, data, tmp_path / "alone", **given))
    for part, text in enumerate(in_turn, start=1):
        layout, size = layouts.of_run(text)
        stop_at = 2 * part if part < len(in_turn) else None
        save = arguments(model, data, tmp_path / "run", **given, **layout)
        run = train(save, ranks=size, stop_at=stop_at, resume="IfPresent", attempt=part)
        assert len(run.column("lm loss")) == 2 * part, run.message
    assert run.exit_code == 0, run.message
    assert run.column("lm loss") == pytest.approx(alone.column("lm loss"), rel=2e-4)
