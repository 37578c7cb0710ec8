"""The shape of a model as its config.json gives it, and the exact number of its parameters.

Knows nothing of ranks or bytes. Families: llama, mistral, qwen2, qwen3, qwen2_moe, qwen3_moe, mixtral, deepseek_v2,
deepseek_v3, glm4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "mixtral",
    "deepseek_v2",
    "deepseek_v3",
    "glm4",
)


@dataclass(frozen=True, kw_only=True)
class LayerParameters:
    """Parameters of one layer by how they are spread: over tensor ranks, over expert ranks, or not at all."""

    tensor: int
    expert: int
    whole: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.tensor + self.expert + self.whole


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes that parameters and activations follow from. Widths are elements, counts are per layer.

    `qk_head_size` and `v_head_size` are the widths of one head of queries and keys, and of values. A model without
    latent attention has `kv_lora_rank` 0; `q_lora_rank` 0 means that queries are not factored. `expert_layers` says
    for each layer whether it has experts instead of a dense feed-forward block.
    """

    family: str
    dtype: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    qk_head_size: int
    v_head_size: int
    ffn_hidden_size: int
    max_position_embeddings: int
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    num_norms: int = 2
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_rope_size: int = 0
    expert_layers: tuple[bool, ...] = ()
    num_experts: int = 0
    experts_per_token: int = 0
    expert_width: int = 0
    shared_expert_width: int = 0
    shared_expert_gate: bool = False

    @staticmethod
    def from_hf_config(config: Mapping[str, Any]) -> ModelShape:
        """The shape of the model that this config.json describes.

        Raises ValueError when the family is unknown or a size is missing.
        """
        family = str(config.get("model_type"))
        if family not in FAMILIES:
            raise ValueError(f"model_type {family!r} is not one of {', '.join(FAMILIES)}")
        try:
            return ModelShape._of_family(config, family)
        except KeyError as err:
            raise ValueError(f"config.json has no {err.args[0]}") from err

    @staticmethod
    def _of_family(config: Mapping[str, Any], family: str) -> ModelShape:
        return ModelShape(
            family=family,
            dtype=_dtype(config),
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            ffn_hidden_size=config["intermediate_size"],
            max_position_embeddings=config.get("max_position_embeddings") or 0,
            tied=bool(config.get("tie_word_embeddings", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=family in ("qwen3", "qwen3_moe"),
            num_norms=4 if family == "glm4" else 2,
            **_attention(config, family),
            **_experts(config, family),
        )

    def layer_parameters(self, layer: int) -> LayerParameters:
        """The parameters of the layer with this index, norms and router included."""
        attention_tensor, attention_whole = self._attention_parameters()
        norms = self.num_norms * self.hidden_size
        if not self.expert_layers[layer]:
            dense = 3 * self.hidden_size * self.ffn_hidden_size
            bias = 2 * self.ffn_hidden_size if self.mlp_bias else 0
            output_bias = self.hidden_size if self.mlp_bias else 0
            return LayerParameters(
                tensor=attention_tensor + dense + bias,
                expert=0,
                whole=attention_whole + norms + output_bias,
            )
        shared = 3 * self.hidden_size * self.shared_expert_width
        gate = self.hidden_size if self.shared_expert_gate else 0
        router = self.hidden_size * self.num_experts
        return LayerParameters(
            tensor=attention_tensor + shared,
            expert=self.num_experts * 3 * self.hidden_size * self.expert_width,
            whole=attention_whole + norms + router + gate,
        )

    def _attention_parameters(self) -> tuple[int, int]:
        """(spread over tensor ranks, whole on each) of one layer's attention."""
        hidden, heads = self.hidden_size, self.num_heads
        output = heads * self.v_head_size * hidden
        output_bias = hidden if self.output_bias else 0
        if self.kv_lora_rank == 0:
            rows = heads * self.qk_head_size + self.num_kv_heads * (self.qk_head_size + self.v_head_size)
            norms = 2 * self.qk_head_size if self.qk_norm else 0
            return hidden * rows + (rows if self.qkv_bias else 0) + output, norms + output_bias
        query_rows = heads * self.qk_head_size
        down = hidden * (self.kv_lora_rank + self.qk_rope_size) + self.kv_lora_rank
        up = self.kv_lora_rank * heads * (self.qk_head_size - self.qk_rope_size + self.v_head_size)
        if self.q_lora_rank == 0:
            return hidden * query_rows + up + output, down + output_bias
        query_down = hidden * self.q_lora_rank + self.q_lora_rank
        return self.q_lora_rank * query_rows + up + output, down + query_down + output_bias

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the input embedding; the output layer has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters of the model, a tied embedding counted once."""
        layers = sum(self.layer_parameters(layer).total for layer in range(self.num_layers))
        matrices = 1 if self.tied else 2
        return layers + matrices * self.embedding_parameters + self.hidden_size


def _dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("torch_dtype") or config.get("dtype") or "float32").removeprefix("torch.")


def _attention(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    if family in ("deepseek_v2", "deepseek_v3"):
        rope = config["qk_rope_head_dim"]
        return {
            "qk_head_size": config["qk_nope_head_dim"] + rope,
            "v_head_size": config["v_head_dim"],
            "qk_rope_size": rope,
            "q_lora_rank": config.get("q_lora_rank") or 0,
            "kv_lora_rank": config["kv_lora_rank"],
            "qkv_bias": False,
            "output_bias": False,
        }
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    qkv_bias = {"qwen2": True, "qwen2_moe": bool(config.get("qkv_bias", True)), "mistral": False, "mixtral": False}
    output_bias = family in ("llama", "qwen3", "qwen3_moe") and bias
    return {
        "qk_head_size": size,
        "v_head_size": size,
        "qkv_bias": qkv_bias.get(family, bias),
        "output_bias": output_bias,
    }


def _experts(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    if family in ("deepseek_v2", "deepseek_v3"):
        first = config.get("first_k_dense_replace") or 0
        width = config["moe_intermediate_size"]
        return {
            "expert_layers": tuple(layer >= first for layer in range(layers)),
            "num_experts": config["n_routed_experts"],
            "experts_per_token": config["num_experts_per_tok"],
            "expert_width": width,
            "shared_expert_width": width * (config.get("n_shared_experts") or 0),
        }
    if family in ("qwen2_moe", "qwen3_moe"):
        step, dense = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or ()
        return {
            "expert_layers": tuple((layer + 1) % step == 0 and layer not in dense for layer in range(layers)),
            "num_experts": config.get("num_experts") or config["num_local_experts"],
            "experts_per_token": config["num_experts_per_tok"],
            "expert_width": config["moe_intermediate_size"],
            "shared_expert_width": config.get("shared_expert_intermediate_size") or 0,
            "shared_expert_gate": family == "qwen2_moe",
        }
    if family == "mixtral":
        return {
            "expert_layers": (True,) * layers,
            "num_experts": config["num_local_experts"],
            "experts_per_token": config["num_experts_per_tok"],
            "expert_width": config["intermediate_size"],
        }
    return {"expert_layers": (False,) * layers}
