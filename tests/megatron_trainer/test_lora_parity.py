"""Adapters equal PEFT's: same logits, same gradients, same files, in every layout."""

from contextlib import contextmanager

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.models.lora_truth import by_shared_a, with_transformers
from tests.support.models.tiny_model import EXPERT_MODELS
from tests.support.ranks import lora_ranks
from tests.support.ranks.lora_ranks import LAYOUTS, token_ids
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist

TOLERANCE = 1e-4
"""float32 sums of up to 128 products in another order differ by some 1e-6; logits here are about 1."""

ROUNDING = 1e-5
"""Logits of a router differ by some 6e-6 between merged weights and adapters; experts this close may be exchanged."""

MERGED = dict.fromkeys(
    ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "gemma4_text", "gemma4_unified_text"), TOLERANCE
)
"""Keys of delta nets are normalized, which magnifies the rounding of small ones; Gemma-4's scores are not divided by
the root of the head's width (1.6e-5 measured).
"""

STACKED = {"gpt_oss", "llama4_text", "qwen3_5_moe_text", "gemma4_text"}
"""Experts in one tensor, whose adapters peft computes itself."""

DENSE = ["llama", "llama_tied", "llama_bias", "mistral", "qwen2", "qwen2_odd", "qwen3", "glm4"]
# Models with images: test_images_parity.py.
OTHERS = sorted(
    tiny_model.MODELS.keys() - tiny_model.SEEING_MODELS - {*DENSE, "qwen3_moe", "qwen2_moe", "mixtral", "deepseek_v3"}
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def reference(root):
    """reference(model, **arguments): the model's folder, a random adapter for it, and PEFT's logits and gradients."""
    known = {}

    def make(name, **given):
        key = (name, str(given))
        if key not in known:
            directory = tiny_model.make(name, root)
            adapter = root / f"adapter-{len(known)}"
            gloo_ranks(1).run(lora_ranks.make_adapter, str(directory), str(adapter), **given)
            truth = with_transformers if name in EXPERT_MODELS - STACKED else with_peft
            known[key] = (directory, adapter, *truth(directory, adapter, root / f"truth-{len(known)}"))
        return known[key]

    return make


def with_peft(directory, adapter, _):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True).train()
    ids = token_ids()
    logits = model(ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
    gradients = {_key(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), by_shared_a(gradients)


def _key(parameter):
    """PEFT's name of a parameter in memory -> its name in a file."""
    return parameter.replace(".modules_to_save", "").replace(".default", "")


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(value.abs().max().item(), 1e-6)
        assert (actual[name] - value).abs().max().item() <= TOLERANCE * scale, name


def check(reference, tmp_path, name, layout, **given):
    directory, adapter, logits, gradients = reference(name, **given)
    ranks = 1 if layout == "TP1" else 2
    settings = {**given, **LAYOUTS[layout]}
    results = gloo_ranks(ranks).run(lora_ranks.use_adapter, str(directory), str(adapter), str(tmp_path), **settings)
    for result in results:
        assert result["restored"]
        assert result["replicated"] == 0.0
        if result["logits"] is not None:
            assert (result["logits"] - logits).abs().max().item() <= TOLERANCE
            assert result["merged"] <= MERGED.get(name, 1e-5)
    assert_files_equal(tmp_path / "again", adapter)
    assert_same(load_file(tmp_path / "gradients" / "adapter_model.safetensors"), gradients)


def assert_files_equal(folder, other):
    assert (folder / "adapter_config.json").read_text() == (other / "adapter_config.json").read_text()
    one, two = (load_file(f / "adapter_model.safetensors") for f in (folder, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", mostly_slow(DENSE, ("llama", "llama_bias", "qwen2", "glm4")))
def test_adapters_of_every_dense_family_equal_pefts(reference, tmp_path, name):
    check(reference, tmp_path, name, "TP1")


@pytest.mark.parametrize("layout", [pytest.param("TP2", marks=pytest.mark.slow), "TP2+SP", "PP2"])
def test_adapters_equal_pefts_in_every_layout(reference, tmp_path, layout):
    check(reference, tmp_path, "llama", layout)


QUICK_EXPERTS = [("qwen3_moe", "TP2+EP2+SP"), ("mixtral", "TP1"), ("gpt_oss", "TP1"), ("llama4_text", "TP1")] + [
    *(("deepseek_v3", "TP1"), ("gemma4_text", "TP1")),
]


@pytest.mark.parametrize(
    ("name", "layout"),
    mostly_slow(
        [
            ("qwen3_moe", "TP1"),
            ("qwen3_moe", "EP2"),
            ("qwen3_moe", "TP2+EP2+SP"),
            ("qwen2_moe", "TP1"),
            ("mixtral", "TP1"),
            ("gpt_oss", "TP1"),
            ("gpt_oss", "TP2+EP2+SP"),
            ("llama4_text", "TP1"),
            ("llama4_text", "TP2+EP2+SP"),
            ("gemma4_text", "TP1"),
            ("gemma4_text", "TP2+EP2+SP"),
            ("gemma4_text", "PP2"),
            ("gemma4_unified_text", "TP2+SP"),
            ("deepseek_v3", "TP1"),
            ("deepseek_v3", "TP2+EP2+SP"),
            ("deepseek_v3", "PP2"),
        ],
        QUICK_EXPERTS,
    ),
)
def test_adapters_of_experts_and_latent_attention_equal_transformers_with_merged_weights(
    reference, tmp_path, name, layout
):
    check(reference, tmp_path, name, layout)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        sorted(EXPERT_MODELS - tiny_model.SEEING_MODELS - STACKED - {"kimi_k2"}),
        ("deepseek_v3",),
    ),
)
def test_peft_puts_every_adapter_beside_experts_where_it_belongs(reference, tmp_path, name):
    """Experts, shared ones and dense layers at once, trained with dropout and scaled by the root of the rank."""
    rooted = {"use_rslora": True, "lora_dropout": 0.05}
    for given in ({}, rooted, *({"target_modules": (f"linear_fc{part}",)} for part in (1, 2))):
        directory, adapter, logits, _ = reference(name, **given)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
        plain = model(token_ids()).logits
        assert (plain - logits).abs().max().item() > 100 * TOLERANCE
        adapted = PeftModel.from_pretrained(model, adapter)
        routers = routers_of(merged_truth(adapter)) if name == "qwen3_next" else []
        with routed_as(adapted, routers):
            assert (adapted(token_ids()).logits - logits).abs().max().item() <= TOLERANCE


def merged_truth(adapter):
    """The model whose logits `reference` took."""
    directory = adapter.with_name(adapter.name.replace("adapter", "truth")) / "merged"
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


def top_k_routers(model):
    return [module for module in model.modules() if type(module).__name__ == "Qwen3NextTopKRouter"]


@torch.no_grad()
def routers_of(model):
    """(logits, chosen experts) of every router, in the order of the layers."""
    seen = []
    hooks = [
        router.register_forward_hook(lambda _, __, output: seen.append((output[0], output[2])))
        for router in top_k_routers(model)
    ]
    model(token_ids())
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(hooks) > 0
    return seen


@contextmanager
def routed_as(model, expected):
    """Inside, routers choose the expected experts; where theirs are others, these must be as close as rounding is.

    One exchanged expert changes every later token of its row, so that no token could be compared without this.
    """
    hooks = []
    for router, (logits, chosen) in zip(top_k_routers(model) if expected else [], expected, strict=True):

        def choose(router, _, output, logits=logits, chosen=chosen):
            exchanged = (output[2].sort(-1)[0] != chosen.sort(-1)[0]).any(-1)
            ordered = logits.sort(-1, descending=True)[0]
            margins = ordered[..., router.top_k - 1] - ordered[..., router.top_k]
            assert (margins[exchanged] <= ROUNDING).all()
            assert (output[0] - logits).abs().max().item() <= TOLERANCE
            weights = output[0].softmax(-1).gather(-1, chosen)
            return output[0], weights / weights.sum(-1, keepdim=True) if router.norm_topk_prob else weights, chosen

        hooks.append(router.register_forward_hook(choose))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["TP1", "TP2+SP", "PP2"])
@pytest.mark.parametrize("name", OTHERS)
def test_adapters_of_every_other_family_equal_its_truth_in_every_layout(reference, tmp_path, name, layout):
    """PEFT's for dense models; transformers with merged weights for experts, which are whole on each rank."""
    split = {"TP2+SP": "TP2+EP2+SP"}.get(layout, layout) if name in EXPERT_MODELS else layout
    check(reference, tmp_path, name, split)


@pytest.mark.parametrize("layout", [pytest.param("TP1", marks=pytest.mark.slow), "TP2+EP2+SP"])
def test_adapters_of_routers_equal_transformers_with_merged_weights(reference, tmp_path, layout):
    check(reference, tmp_path, "qwen3_moe", layout, target_modules=("all-linear", "all-router"))


SELECTIONS = {
    "embedding-and-output": ("llama", {"target_modules": ("all-linear", "all-embedding", "output_layer")}),
    "one-layer-by-regex": ("llama", {"target_regex": r"decoder\.layers\.2\..*linear_(qkv|fc2)"}),
    "saved-modules": ("llama", {"modules_to_save": ("output_layer", "final_layernorm", "input_layernorm")}),
    "saved-tied-embedding": ("llama_tied", {"modules_to_save": ("word_embeddings",)}),
    "biases": ("llama_bias", {"target_modules": ("linear_qkv", "linear_fc1"), "lora_bias": "all"}),
    "query-biases": ("qwen2", {"target_modules": ("linear_fc2",), "lora_bias": "all"}),
    "rank-stabilised": ("llama", {"use_rslora": True}),
    "odd-vocabulary": ("qwen3", {"target_modules": ("all-embedding", "output_layer"), "padded_vocab_size": 336}),
}


@pytest.mark.parametrize(
    "layout",
    mostly_slow(["TP1", "TP2", "TP2+SP", "PP2"], ["TP2+SP"]),
)
@pytest.mark.parametrize(
    "selection", mostly_slow(SELECTIONS, ("embedding-and-output", "saved-tied-embedding", "biases"))
)
def test_every_selection_equals_pefts_in_every_layout(reference, tmp_path, selection, layout):
    name, given = SELECTIONS[selection]
    check(reference, tmp_path, name, layout, **given)
