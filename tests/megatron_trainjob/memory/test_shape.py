"""The number of parameters, exact: against published models and against transformers itself."""

import pytest

from megatron_trainjob.families import read
from tests.support.models.model_configs import PUBLISHED

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LATENT = {
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
VARIANTS = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"head_dim": 16}),
    ("mistral", {}),
    ("mistral", {"head_dim": 16}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 12}),
    ("qwen3", {"head_dim": 12, "attention_bias": True}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 20}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 20, "decoder_sparse_step": 2}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 20, "qkv_bias": False}),
    ("qwen3_moe", {**EXPERTS, "head_dim": 8}),
    ("qwen3_moe", {**EXPERTS, "head_dim": 8, "mlp_only_layers": [1]}),
    ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ("deepseek_v2", {**LATENT, "q_lora_rank": None}),
    ("deepseek_v2", {**LATENT, "q_lora_rank": 12}),
    ("deepseek_v3", {**LATENT, "q_lora_rank": 12}),
    ("glm4", {"head_dim": 8}),
    ("glm4", {"head_dim": 16, "attention_bias": True}),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_model_has_its_published_number_of_parameters(name):
    count, config = PUBLISHED[name]
    assert read(config).num_parameters == count


@pytest.mark.slow
def test_every_family_has_the_parameters_that_transformers_builds():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def built(family, extra):
        config = transformers.AutoConfig.for_model(family, **SMALL, **extra)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        return config.to_dict(), sum(parameter.numel() for parameter in model.parameters())

    found = {}
    for index, (family, extra) in enumerate(VARIANTS):
        config, count = built(family, extra)
        found[index, family] = (read(config).num_parameters, count)
    assert {key: pair for key, pair in found.items() if pair[0] != pair[1]} == {}


def test_parameters_of_a_layer_are_separated_by_how_they_are_sharded():
    """hidden 4, 2 heads of 2, 1 kv head, experts 3 of width 5, shared 6, router 3 * 4, norms 2 * 4, q/k norm none.

    tensor: qkv 4 * (4 + 2 * 2) + proj 4 * 4 + shared 3 * 4 * 6 = 120; expert: 3 * 3 * 4 * 5 = 180;
    whole: norms 8 + router 12 + shared gate 4 = 24; qwen2_moe has a qkv bias of 8 on top of tensor.
    """
    shape = read(
        {
            "model_type": "qwen2_moe",
            "vocab_size": 10,
            "hidden_size": 4,
            "intermediate_size": 7,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "num_experts": 3,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 5,
            "shared_expert_intermediate_size": 6,
        }
    )
    layer = shape.layer_parameters(0)
    assert (layer.tensor, layer.expert, layer.whole) == (120 + 8, 180, 24)


def test_unknown_family_is_refused_by_name():
    with pytest.raises(ValueError, match="model_type 'bert' is not one of llama"):
        read({"model_type": "bert"})


def test_a_value_of_another_type_is_named():
    with pytest.raises(ValueError, match=r"config.json:vocab_size: must be a whole number above 0"):
        read({"model_type": "llama", "vocab_size": "320"})
