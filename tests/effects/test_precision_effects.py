"""Effects of number types, determinism and Megatron's own settings on real tiny runs."""

import json

import pytest
import torch

from megatron_trainjob.exit_codes import ExitCode
from tests.effects.registry import effect
from tests.support.ranks import precision_ranks
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist


def types(run) -> set[torch.dtype]:
    assert run.exit_code == 0, run.message
    return {tensor.dtype for tensor in run.weights().values()}


@effect("bf16")
def test_bf16_trains_a_float32_model_in_bfloat16(train, plain):
    run = train(torch_dtype=None, bf16=True, to_hf=True)
    assert types(run) == {torch.bfloat16}
    assert run.column("loss_scale") == [1.0] * 4
    assert run.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=0.03)


@effect("fp16")
def test_fp16_scales_the_loss_and_skips_steps_that_overflow(train):
    """Each skipped step but the first halves the scale and changes nothing; the first that fits trains."""
    run = train(torch_dtype=None, fp16=True, to_hf=True, train_iters=12)
    assert types(run) == {torch.float16}
    scales, skipped = run.column("loss_scale"), run.column("skipped_iterations")
    assert scales[0] == 2**16
    for before, after, is_skipped in zip(scales, scales[1:], skipped[1:], strict=False):
        assert after == (before / 2 if is_skipped else before)
    losses = run.column("lm loss")
    assert skipped[-1] == 0
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.slow
@effect("fp16")
def test_fp16_saves_a_state_before_its_first_step_that_fits(train):
    """With every step skipped so far there is no optimizer state; the resumed run goes on as the whole one."""
    whole = train(torch_dtype="float16", train_iters=6)
    train(name="resumed", torch_dtype="float16", train_iters=6, stop_at=1)
    resumed = train(name="resumed", torch_dtype="float16", train_iters=6, resume="Auto")
    assert resumed.column("lm loss")[-5:] == whole.column("lm loss")[-5:]


@effect("fp16")
def test_fp16_is_no_success_when_every_step_was_skipped(train):
    """The state is kept, and a resume with more steps continues from it."""
    run = train(torch_dtype="float16", train_iters=2)
    assert run.exit_code == ExitCode.LOSS_NOT_FINITE
    assert "all 2 steps were skipped: gradients overflow float16 at a loss scale of" in run.message
    assert [path.name for path in run.folder.glob("iter_*")] == ["iter_0000002"]
    lower = train(name="lower", torch_dtype="float16", train_iters=2, extra_megatron_kwargs={"initial_loss_scale": 64})
    assert (lower.exit_code, lower.message) == (0, "")


@effect("deterministic_mode")
def test_deterministic_mode_lets_torch_refuse_what_it_cannot_repeat(train, plain):
    run = train(deterministic_mode=True)
    assert run.column("lm loss") == plain.column("lm loss")
    assert json.loads((run.folder / "megatron_config.json").read_text())["deterministic_mode"] is True
    (without, with_determinism) = gloo_ranks(1).run(precision_ranks.refusals)[0]
    assert without == ""
    assert "does not have a deterministic implementation" in with_determinism


@effect("ddp_timeout")
def test_ddp_timeout_is_when_a_silent_collective_of_a_step_fails():
    """In every group; what one rank does for all may take longer, also between steps."""
    long = {18_000_000.0}
    assert gloo_ranks(1).run(precision_ranks.limits_of_groups, 90) == [[{90.0}, long, {90.0}, long]]


@effect("num_labels", "problem_type")
@pytest.mark.parametrize(("problem", "loss"), [("regression", "mse"), ("single_label_classification", "accuracy")])
def test_a_classifier_has_so_many_scores_of_such_labels(train, tmp_path, problem, loss):
    data = tmp_path / "rows.jsonl"
    label = [0.5, 0.5, 1.0] if problem == "regression" else 2
    data.write_text(f"{json.dumps({'text': 'a b c', 'label': label})}\n" * 8)
    given = {"dataset": [str(data)], "task_type": "seq_cls", "num_labels": 3, "problem_type": problem, "to_hf": True}
    run = train(name=problem, **given)
    assert run.exit_code == 0, run.message
    assert run.weights()["score.weight"].shape[0] == 3
    assert len(run.column(loss)) == 4


@effect("task_type")
def test_task_type_is_what_stands_on_the_decoder(train, plain):
    assert train(task_type="causal_lm").column("lm loss") == plain.column("lm loss")
    refused = train(task_type="embedding", name="refused")
    assert refused.exit_code == 65
    assert "18 x no positive" in refused.message


@effect("extra_megatron_kwargs")
def test_extra_megatron_kwargs_reach_megatrons_configuration(train, plain):
    run = train(extra_megatron_kwargs={"activation_func_clamp_value": 0.01})
    assert run.column("lm loss")[0] != plain.column("lm loss")[0]
    assert json.loads((run.folder / "megatron_config.json").read_text())["activation_func_clamp_value"] == 0.01


@effect("extra_megatron_kwargs")
def test_extra_megatron_kwargs_reach_megatrons_optimizer(train, plain):
    """The zeros of a gradient: at least the rows of the embedding whose tokens the batch lacks."""
    run = train(extra_megatron_kwargs={"log_num_zeros_in_grad": True}, train_iters=2)
    assert min(run.column("num_zeros")) > 64 * 100
    assert plain.column("num_zeros") == []


@effect("extra_megatron_kwargs")
def test_extra_megatron_kwargs_are_refused_all_at_once_when_they_are_not_megatrons(train):
    wrong = {"activation_func_clamp_valeu": 1.0, "variable_seq_lengths": True, "fp32_residual_connection": "yes"}
    graphs = {"cuda_graph_impl": "local", "external_cuda_graph": True, "enable_cuda_graph": False}
    run = train(extra_megatron_kwargs={**wrong, **graphs}, name="wrong")
    assert run.exit_code == 64
    assert run.message.count("a CUDA graph repeats kernels for one shape") == 2
    asked = ("did you mean activation_func_clamp_value?", "variable_seq_lengths: is decided", "must be true or false")
    assert [part for part in asked if part not in run.message] == []
