"""Effects of the arguments that only a GPU can show: kernels, 8-bit products, optimizers of other precisions.

Each test changes its arguments on the same tiny run and looks at what ran: classes of modules, kernels, types of state.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

BF16 = {"torch_dtype": "bfloat16", "recompute_granularity": "none"}


@pytest.mark.parametrize(("choice", "module"), [("fused", "FusedAttention"), ("unfused", "UnfusedDotProductAttention")])
def test_attention_backend_chooses_the_kernels(train, choice, module):
    run = train(**BF16, attention_backend=choice)
    assert run.modules & {"FlashAttention", "FusedAttention", "UnfusedDotProductAttention"} == {module}


def test_attention_backend_local_runs_with_local_layers(train):
    run = train(**BF16, attention_backend="local", transformer_impl="local")
    assert "CoreAttention" in run.modules
    assert run.losses == pytest.approx(train(**BF16).losses, abs=0.02)


@pytest.mark.parametrize(
    ("name", "kernel", "given", "tolerance"),
    [
        ("no_bias_swiglu_fusion", "triton", {}, 1e-4),
        # Compiled and plain kernels drop other elements.
        ("no_bias_dropout_fusion", "fused_add_native_dropout", {"hidden_dropout": 0.1}, 0.5),
        ("no_rope_fusion", "fused_rope", {}, 1e-4),
    ],
)
def test_without_a_fusion_its_kernel_does_not_run(train, name, kernel, given, tolerance):
    import torch

    torch._dynamo.reset()
    settings: dict[str, Any] = {"recompute_granularity": "none", **given}
    train(**settings)  # the first run of a compiled kernel also tries its variants
    fused, separate = (train(**settings, **{name: off}, count_kernels=True) for off in (False, True))
    assert separate.losses == pytest.approx(fused.losses, abs=tolerance)
    launches = [sum(count for of, count in run.kernels.items() if kernel in of) for run in (fused, separate)]
    assert launches[0] > launches[1]
    if name != "no_bias_swiglu_fusion":  # other compiled kernels run with and without it
        assert launches[1] == 0


def test_weight_gradients_are_summed_inside_the_products_unless_turned_off(train):
    fused, separate = (train(**BF16, no_gradient_accumulation_fusion=off) for off in (False, True))
    assert {linear.fuse_wgrad_accumulation for linear in fused.linears()} == {True}
    assert {linear.fuse_wgrad_accumulation for linear in separate.linears()} == {False}
    assert fused.losses == pytest.approx(separate.losses, abs=5e-3)


def test_core_attention_is_not_recomputed_where_its_kernel_keeps_no_scores(train):
    fused, unfused = (train(torch_dtype="bfloat16", attention_backend=kernel) for kernel in ("fused", "unfused"))
    assert fused.engine.config.recompute_granularity is None
    assert unfused.engine.config.recompute_modules == ["core_attn"]
    assert fused.losses == pytest.approx(unfused.losses, abs=0.02)


def test_cross_entropy_fusion_impl_te_runs_transformer_engines_kernel(train):
    fused = train(cross_entropy_loss_fusion=True, cross_entropy_fusion_impl="te", count_kernels=True)
    assert any("cross_entropy" in kernel for kernel in fused.kernels)
    plain = train(cross_entropy_loss_fusion=False, count_kernels=True)
    assert not any("cross_entropy" in kernel for kernel in plain.kernels)
    assert fused.losses == pytest.approx(plain.losses, abs=1e-4)


FP8 = {
    "hybrid": ({"fp8_format": "hybrid"}, "DelayedScaling"),
    "e4m3": ({"fp8_format": "e4m3"}, "DelayedScaling"),
    "tensorwise": ({"fp8_format": "hybrid", "fp8_recipe": "tensorwise"}, "Float8CurrentScaling"),
    "blockwise": ({"fp8_format": "e4m3", "fp8_recipe": "blockwise"}, "Float8BlockScaling"),
    "history": (
        {"fp8_format": "hybrid", "fp8_amax_history_len": 4, "fp8_amax_compute_algo": "most_recent"},
        "DelayedScaling",
    ),
}


@pytest.mark.parametrize(("given", "recipe"), FP8.values(), ids=FP8.keys())
def test_fp8_multiplies_in_8_bits_by_the_recipe_that_was_asked_for(train, given, recipe):
    run, plain = train(**BF16, **given), train(**BF16)
    assert run.losses == pytest.approx(plain.losses, abs=0.1)
    assert run.losses != plain.losses
    for linear in run.linears():
        used = linear.fp8_meta["recipe"]
        assert recipe in [kind.__name__ for kind in type(used).__mro__]
        assert used.fp8_format.name.lower() == given["fp8_format"]
    if recipe == "DelayedScaling":
        assert used.amax_history_len == given.get("fp8_amax_history_len", 1024)
        assert used.amax_compute_algo == given.get("fp8_amax_compute_algo", "max")


def test_first_and_last_layers_stay_in_bfloat16_on_request(train):
    """Not with delayed scaling, for which Megatron-Core refuses it."""
    ends = {"first_last_layers_bf16": True, "num_layers_at_start_in_bf16": 1, "num_layers_at_end_in_bf16": 1}
    run = train(**BF16, fp8_format="hybrid", fp8_recipe="tensorwise", extra_megatron_kwargs=ends)
    layers = run.engine.models[0].decoder.layers
    assert [layer.mlp.linear_fc1.fp8 for layer in layers] == [False, True, True, False]
    assert run.losses == pytest.approx(train(**BF16).losses, abs=0.1)


def test_fp8_goes_on_after_a_restart(train, tmp_path):
    given = {**BF16, "fp8_format": "hybrid", "save_interval": 2}
    whole = train(**given)
    train(**given, train_iters=2, lr_decay_iters=4, folder=tmp_path / "resumed")
    resumed = train(**given, folder=tmp_path / "resumed", resume="Auto")
    assert resumed.losses[-2:] == pytest.approx(whole.losses[-2:], abs=1e-4)


def test_fp8_trains_adapters(train):
    given = {**BF16, "train_type": "lora", "lora_dropout": 0.0}
    assert train(**given, fp8_format="hybrid").losses == pytest.approx(train(**given).losses, abs=0.1)


PRECISION = {
    "plain": {},
    "float32": {"torch_dtype": "float32"},
    "fp8": {"fp8_format": "hybrid", "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"},
    "fp8-blockwise": {"fp8_format": "e4m3", "fp8_recipe": "blockwise"},
    "moments-bf16": {"exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"},
    "moments-fp16": {"exp_avg_dtype": "fp16", "exp_avg_sq_dtype": "fp16"},
    "moments-fp8": {"exp_avg_dtype": "fp8", "exp_avg_sq_dtype": "fp8"},
    "gradients-bf16": {"main_grads_dtype": "bf16"},
    "parameters-fp16": {"main_params_dtype": "fp16"},
}
MAIN_PARAMETERS = {"fp16": {"torch.float16"}, "blockwise": set()}
"""Not kept as the 16 bits that a weight lacks; megatron-core holds those of blockwise FP8 itself."""
STORED = {"fp32": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16", "fp8": "torch.uint8"}


@pytest.mark.parametrize("given", PRECISION.values(), ids=PRECISION.keys())
def test_the_precision_aware_optimizer_holds_its_state_in_the_types_asked_for(train, tmp_path, given):
    """Also over a restart: the second half of the run is that of a run that never stopped."""
    settings = {**BF16, "use_precision_aware_optimizer": True, "save_interval": 2, **given}
    run = train(**settings)
    plain = {name: value for name, value in given.items() if name in {"torch_dtype", "fp8_format", "fp8_recipe"}}
    assert run.losses == pytest.approx(train(**{**BF16, **plain}).losses, abs=0.03)
    states = list(run.optimizer().state.values())
    for name in ("exp_avg", "exp_avg_sq"):
        # TransformerEngine's 8-bit tensors call themselves float32; their bytes are in _data.
        stored = {str(getattr(state[name], "_data", state[name]).dtype) for state in states}
        assert stored == {STORED[given.get(f"{name}_dtype", "fp32")]}
    gradients = {str(p.main_grad.dtype) for p in run.engine.models[0].parameters()}
    assert gradients == {STORED[given.get("main_grads_dtype", "fp32")]}
    main = {str(state["master_param"].dtype) for state in states if "master_param" in state}
    if given.get("torch_dtype") != "float32":
        assert main == MAIN_PARAMETERS.get(given.get("main_params_dtype", given.get("fp8_recipe")), {"torch.int16"})
    train(**settings, train_iters=2, lr_decay_iters=4, folder=tmp_path / "resumed")
    resumed = train(**settings, folder=tmp_path / "resumed", resume="Auto")
    assert resumed.losses[-2:] == pytest.approx(run.losses[-2:], abs=5e-3)


@pytest.mark.parametrize(("fraction", "devices"), [(1.0, {"cpu"}), (0.5, {"cpu", "cuda"})])
def test_an_offloaded_optimizer_holds_its_state_in_host_memory(train, tmp_path, fraction, devices):
    """Also over a restart: the second half of the run is that of a run that never stopped."""
    offload = {"optimizer_cpu_offload": True, "use_precision_aware_optimizer": True, "save_interval": 2}
    offload["optimizer_offload_fraction"] = fraction
    run = train(**BF16, **offload)
    assert run.losses == pytest.approx(train(**BF16).losses, abs=0.03)
    tensors = [
        value
        for part in run.optimizer().sub_optimizers
        for state in part.state.values()
        for name, value in state.items()
        if name.startswith("exp_avg")
    ]
    assert {tensor.device.type for tensor in tensors} == devices
    train(**BF16, **offload, train_iters=2, lr_decay_iters=4, folder=tmp_path / "resumed")
    resumed = train(**BF16, **offload, folder=tmp_path / "resumed", resume="Auto")
    assert resumed.losses[-2:] == pytest.approx(run.losses[-2:], abs=5e-3)


def test_use_cpu_initialization_draws_the_weights_on_the_host(train):
    """The same seed gives other weights on the card."""
    settings = {"no_initialization": False, "train_iters": 1}
    host, again, card = (train(**settings, use_cpu_initialization=value).losses for value in (True, True, False))
    assert host == again != card


def test_float16_scales_its_loss(train):
    """From a scale at which no step is skipped: the default's first steps only bring it down."""
    run = train(torch_dtype="float16", extra_megatron_kwargs={"initial_loss_scale": 1024})
    assert run.losses == pytest.approx(train().losses, abs=0.02)
    assert run.run.column("loss_scale")[0] > 1


def test_deterministic_mode_gives_the_same_bits_twice(train):
    one, two = (train(**BF16, deterministic_mode=True, to_hf=True, train_iters=6) for _ in range(2))
    assert os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] == "0"
    assert one.losses == two.losses
    weights, again = one.run.weights(), two.run.weights()
    assert all(weights[name].equal(again[name]) for name in weights)
