"""Muon and Lion beside emerging-optimizers' own classes on transformers' model, in layouts, and over a resume."""

import pytest
import torch
from emerging_optimizers.orthogonalized_optimizers import Muon
from emerging_optimizers.scalar_optimizers import Lion
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_trainer.data.ordering.sample import Sampler
from megatron_trainjob.exit_codes import ExitCode
from tests.effects.registry import effect
from tests.effects.test_rate_effects import MATRIX
from tests.support.models import tiny_model
from tests.support.models.reference_rows import reference_rows

pytestmark = pytest.mark.dist

RATE = 1e-3
EXACT = {"muon_fp32_matmul_prec": "highest"}
PLAIN = {"lr": RATE, "lr_decay_style": "constant", "dataset_shuffle": False, "train_iters": 4, "clip_grad": 1e9}
OTHER = {
    "muon_momentum": 0.6,
    "muon_use_nesterov": True,
    "muon_scale_mode": "unit_rms_norm",
    "muon_num_ns_steps": 3,
    "muon_extra_scale_factor": 0.5,
    "muon_split_qkv": False,
}


class Fused:
    """Weights of transformers' model that are one matrix in Megatron's, as a parameter of their rows."""

    def __init__(self, parts: list[torch.nn.Parameter]) -> None:
        self.parts = parts
        self.whole = torch.nn.Parameter(torch.cat([part.detach() for part in parts]))

    def take_gradients(self) -> None:
        self.whole.grad = torch.cat([part.grad for part in self.parts])

    def give_back(self) -> None:
        rows = [len(part) for part in self.parts]
        for part, values in zip(self.parts, self.whole.detach().split(rows), strict=True):
            part.data.copy_(values)


def matrices(model, *, split_qkv: bool) -> list[Fused]:
    found = []
    for layer in model.model.layers:
        attention, block = layer.self_attn, layer.mlp
        inputs = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        found += [Fused([each]) for each in inputs] if split_qkv else [Fused(inputs)]
        found += [Fused([attention.o_proj.weight]), Fused([block.down_proj.weight])]
        found.append(Fused([block.gate_proj.weight, block.up_proj.weight]))
    return found


def muon(model, *, split_qkv: bool, **settings):
    """A step of the library's Muon for matrices, of AdamW for embeddings, output layer and norms."""
    fused = matrices(model, split_qkv=split_qkv)
    inside = {id(part) for each in fused for part in each.parts}
    rest = [p for p in model.parameters() if id(p) not in inside]
    decayed, plain = ([p for p in rest if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    whole = [each.whole for each in fused]
    own = Muon(whole, lr=RATE, weight_decay=0.1, fp32_matmul_prec="highest", **settings)

    def step() -> None:
        for each in fused:
            each.take_gradients()
        own.step()
        adam.step()
        for each in fused:
            each.give_back()

    return step


def lion(model, betas):
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = Lion(groups, lr=RATE, betas=betas)

    def step() -> None:
        with torch.compiler.set_stance("force_eager"):  # compiling the library's four operations takes 20 s
            optimizer.step()

    return step


def reference_losses(llama, data, make_step) -> list[float]:
    """Four steps written with transformers, over the sampler's order of the rows."""
    tokenizer = AutoTokenizer.from_pretrained(llama)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).train()
    step = make_step(model)
    rows = reference_rows(tokenizer, data)
    order = iter(Sampler(num_items=len(rows), micro_batch_size=1, data_parallel_rank=0, data_parallel_size=1))
    losses = []
    for _ in range(4):
        batch = [rows[index] for _ in range(2) for index in next(order)]
        count = sum((labels[1:] != -100).sum().item() for _, labels in batch)
        total = sum(
            torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], labels[1:], reduction="sum")
            for ids, labels in batch
        )
        (total / count).backward()
        step()
        model.zero_grad()
        losses.append(total.item() / count)
    return losses


@effect(*OTHER, *EXACT, "optimizer")
@pytest.mark.parametrize(
    ("given", "theirs"),
    [
        ({}, {"momentum": 0.9, "split_qkv": True}),
        (
            OTHER,
            {
                "momentum": 0.6,
                "nesterov": True,
                "scale_mode": "unit_rms_norm",
                "num_ns_steps": 3,
                "extra_scale_factor": 0.5,
                "split_qkv": False,
            },
        ),
    ],
    ids=["defaults", "all settings changed"],
)
def test_muon_is_the_librarys_own_on_the_same_matrices(train, llama, data, given, theirs):
    """Within 1e-3: the quintic polynomial of the orthogonalization makes small differences of sums larger."""
    run = train(optimizer="muon", **PLAIN, **EXACT, **given)
    assert run.exit_code == 0, run.message
    expected = reference_losses(llama, data, lambda model: muon(model, **theirs))
    assert run.column("lm loss") == pytest.approx(expected, abs=1e-3)
    assert expected[-1] < expected[0] - 0.3, "the model must learn, or the comparison says little"


@effect("lion_beta1", "lion_beta2")
@pytest.mark.parametrize("betas", [(0.95, 0.98), (0.5, 0.7)])
def test_lion_equals_the_library_for_every_parameter(train, llama, data, betas):
    """Signs of gradients near 0 may differ with the order of sums: within 1e-2 of a loss that changes by more."""
    run = train(optimizer="lion", lion_beta1=betas[0], lion_beta2=betas[1], **PLAIN)
    assert run.exit_code == 0, run.message
    expected = reference_losses(llama, data, lambda model: lion(model, betas))
    assert run.column("lm loss") == pytest.approx(expected, abs=1e-2)


@effect("decoupled_lr", "decoupled_min_lr")
def test_the_embedding_and_the_output_layer_may_have_a_rate_of_their_own(train):
    """A rate that rounds to nothing leaves them, and nothing else, as they were; its floor is reached by a decay."""
    settings = {"train_iters": 2, "to_hf": True, "lr_decay_style": "linear", "lr_decay_iters": 1}
    start, still, moved = (
        train(**settings, **given).weights()
        for given in ({"lr": 1e-30}, {"decoupled_lr": 1e-30, "decoupled_min_lr": 0.0}, {"decoupled_lr": 1e-2})
    )
    at_floor = train(**settings, decoupled_lr=1e-2, decoupled_min_lr=9e-3).weights()
    edges = [name for name in start if "embed_tokens" in name or "lm_head" in name]
    assert edges
    for name in edges:
        assert torch.equal(still[name], start[name])
        assert not torch.equal(moved[name], start[name])
        assert not torch.equal(at_floor[name], moved[name])
    assert not torch.equal(still[MATRIX], start[MATRIX])


@effect("muon_tp_mode")
def test_matrices_of_two_ranks_are_one_matrix_or_two_of_which_each_is_made_orthogonal(train):
    """Blockwise, the default, the second step starts from other weights than on one rank."""
    given = {**PLAIN, **EXACT, "optimizer": "muon", "train_iters": 2}
    split = {"tensor_model_parallel_size": 2, "ranks": 2}
    one = train(**given).column("lm loss")
    whole = train(**given, **split, muon_tp_mode="duplicated").column("lm loss")
    blockwise = train(**given, **split).column("lm loss")
    assert whole == pytest.approx(one, abs=1e-3)
    assert blockwise[0] == pytest.approx(one[0], abs=1e-4)
    assert abs(blockwise[1] - one[1]) > 2e-3


@pytest.mark.slow
def test_layouts_train_alike_but_for_the_blockwise_mode(train):
    """Matrices that two ranks share are orthogonalized as one, or (blockwise) each part on its own."""
    split = {"tensor_model_parallel_size": 2, "ranks": 2}
    one = train(optimizer="dist_muon", **PLAIN, **EXACT).column("lm loss")
    for mode in ("duplicated", "distributed"):
        found = train(optimizer="dist_muon", muon_tp_mode=mode, **PLAIN, **EXACT, **split)
        assert found.column("lm loss") == pytest.approx(one, abs=1e-3), mode
    blockwise = train(optimizer="dist_muon", **PLAIN, **EXACT, **split).column("lm loss")
    assert abs(blockwise[1] - one[1]) > 2e-3
    in_order = {**PLAIN, "dataloader_type": "single"}
    alone, spread = (train(optimizer="dist_muon", **in_order, **EXACT, ranks=ranks) for ranks in (1, 2))
    assert spread.column("lm loss") == pytest.approx(alone.column("lm loss"), abs=1e-3)


OPTIMIZERS = {"muon": 1e-3, "dist_muon": 1e-3, "lion": 1e-2}
"""Bounds of losses: Lion's signs of gradients near 0 may differ with the order of sums."""
STAGES = {"pipeline_model_parallel_size": 2}
LAYOUTS = {
    "pp2": {"ranks": 2, **STAGES},
    "pp2 vpp2": {"ranks": 2, **STAGES, "virtual_pipeline_model_parallel_size": 2},
    "tp2 pp2": {"ranks": 4, **STAGES, "tensor_model_parallel_size": 2, "sequence_parallel": True},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "layout"),
    [(name, layout) for name in OPTIMIZERS for layout in LAYOUTS],
)
def test_pipeline_stages_train_alike(train, four_layers, optimizer, layout):
    given = {**PLAIN, **EXACT, "optimizer": optimizer, "model": str(four_layers)}
    whole = {"muon_tp_mode": "duplicated"} if "tp2" in layout and "muon" in optimizer else {}
    one, split = train(**given), train(**given, **LAYOUTS[layout], **whole)
    assert (one.exit_code, split.exit_code) == (0, 0), (one.message, split.message)
    assert split.column("lm loss") == pytest.approx(one.column("lm loss"), abs=OPTIMIZERS[optimizer])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ranks_of_experts_train_alike(train, model_root, optimizer):
    """Two ranks read the rows in another order unless it is fixed, and each has half of the experts."""
    model = str(tiny_model.make("qwen3_moe", model_root))
    given = {**PLAIN, **EXACT, "optimizer": optimizer, "model": model, "dataloader_type": "single"}
    one = train(**given)
    split = train(**given, ranks=2, expert_model_parallel_size=2)
    assert (one.exit_code, split.exit_code) == (0, 0), (one.message, split.message)
    assert split.column("lm loss") == pytest.approx(one.column("lm loss"), abs=OPTIMIZERS[optimizer])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name in ("lion", "muon")])
def test_whole_experts_beside_split_matrices_train_alike_and_go_on(train, model_root, optimizer):
    """Only the experts have two data-parallel ranks here."""
    model = str(tiny_model.make("mixtral", model_root))
    given = {**PLAIN, **EXACT, "optimizer": optimizer, "model": model, "dataloader_type": "single"}
    whole = {"muon_tp_mode": "duplicated"} if optimizer == "muon" else {}
    layout = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "expert_tensor_parallel_size": 1, **whole}
    one = train(**given).column("lm loss")
    split = train(name="split", **given, **layout, ranks=2, stop_at=2, resume="Auto")
    assert split.exit_code == ExitCode.PREEMPTED, split.message
    resumed = train(name="split", **given, **layout, ranks=2, resume="Required", attempt=1)
    assert resumed.exit_code == 0, resumed.message
    assert resumed.column("lm loss") == pytest.approx(one, abs=OPTIMIZERS[optimizer])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("name", "layout"), [("llama", STAGES), ("qwen3_moe", {"expert_model_parallel_size": 2})], ids=["pp2", "ep2"]
)
def test_a_split_run_goes_on_after_a_stop(train, model_root, optimizer, name, layout):
    model = str(tiny_model.make(name, model_root))
    given = {"optimizer": optimizer, "model": model, "train_iters": 5, "save_interval": 2, "ranks": 2, **layout}
    whole = train(name="whole", **given)
    assert whole.exit_code == 0, whole.message
    assert train(name="stopped", stop_at=3, resume="Auto", **given).exit_code == ExitCode.PREEMPTED
    resumed = train(name="stopped", resume="Auto", attempt=1, **given)
    assert resumed.column("lm loss") == whole.column("lm loss")


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "dist_muon"},
        {"optimizer": "dist_muon", "torch_dtype": "bfloat16"},
        {"optimizer": "muon", "use_distributed_optimizer": False, "torch_dtype": "bfloat16"},
        {"optimizer": "lion", "train_type": "lora", "merge_lora": True, "lora_dropout": 0.0},
    ],
    ids=["spread", "spread in bfloat16", "on every rank", "Lion of adapters"],
)
def test_a_stopped_and_resumed_run_is_bit_identical(train, given):
    given = {"train_iters": 5, "save_interval": 2, "to_hf": True, **given}
    whole = train(name="whole", ranks=2, **given)
    assert whole.exit_code == 0, whole.message
    stopped = train(name="stopped", ranks=2, stop_at=3, resume="Auto", **given)
    assert stopped.exit_code == ExitCode.PREEMPTED
    resumed = train(name="stopped", ranks=2, resume="Auto", attempt=1, **given)
    assert resumed.column("lm loss") == whole.column("lm loss")
    ours, theirs = resumed.weights(), whole.weights()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.slow
def test_a_spread_state_goes_on_in_another_layout(train):
    """Saved by two data-parallel ranks, read by one, and by two that share every matrix."""
    given = {**PLAIN, **EXACT, "optimizer": "dist_muon", "train_iters": 5, "dataloader_type": "single"}
    whole = train(name="whole", ranks=2, **given).column("lm loss")
    for name, other in (
        ("one", {"ranks": 1}),
        ("shared", {"ranks": 2, "tensor_model_parallel_size": 2, "muon_tp_mode": "duplicated"}),
    ):
        assert train(name=name, ranks=2, stop_at=3, resume="Auto", **given).exit_code == ExitCode.PREEMPTED
        resumed = train(name=name, resume="Auto", attempt=1, **given, **other)
        assert resumed.exit_code == 0, resumed.message
        assert resumed.column("lm loss") == pytest.approx(whole, abs=2e-3)
