"""Model FLOPs of training, counted from the Hugging Face config: what the maths needs, not what a run recomputes.

A multiplication of weights costs 2 FLOPs per weight and token forward, 2 for the input's gradient, and 2 for the
weight's own gradient where the weight is trained (so 6 in full training, 4 under LoRA). Attention scores depend on
the samples' lengths and are counted apart, per pair of query and key.
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron_trainjob.args.tree import TrainArgs

Config = Mapping[str, object]


def flops_per_token(hf_config: Config, args: TrainArgs) -> float | None:
    """FLOPs of one real token over all layers and the output matrix, forward and backward, without scores.

    None for a model whose config does not have the fields of a transformer decoder.
    """
    try:
        weights = _active_weights(_text_config(hf_config))
    except KeyError:
        return None
    return weights * (4.0 if args.train_type == "lora" else 6.0)


def flops_per_pair(hf_config: Config) -> float | None:
    """FLOPs of one (query, key) pair over all layers and heads, forward and backward: scores, then their values.

    A causal sample of n tokens has n * (n + 1) / 2 pairs. Step FLOPs = tokens * flops_per_token + pairs * this.
    """
    try:
        config = _text_config(hf_config)
        widths = _score_width(config) + _value_width(config)
        return 3 * 2.0 * _number(config, "num_hidden_layers") * _number(config, "num_attention_heads") * widths
    except KeyError:
        return None


def _text_config(hf_config: Config) -> Config:
    """The language model's part of a multimodal config, otherwise the config itself."""
    inner = hf_config.get("text_config")
    return inner if isinstance(inner, Mapping) else hf_config


def _active_weights(config: Config) -> float:
    """Weights that one token is multiplied with: all matrices, of the experts only those it is routed to."""
    num_layers = _number(config, "num_hidden_layers")
    num_dense = _num_dense_layers(config)
    layers = num_layers * _attention_weights(config)
    layers += num_dense * _mlp_weights(config, _number(config, "intermediate_size"))
    if num_dense < num_layers:
        layers += (num_layers - num_dense) * _expert_weights(config)
    return layers + _number(config, "hidden_size") * _number(config, "vocab_size")


def _attention_weights(config: Config) -> float:
    if config.get("kv_lora_rank"):
        return _latent_attention_weights(config)
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    key_value_heads = _number(config, "num_key_value_heads", heads)
    return hidden * _head_width(config) * (2 * heads + 2 * key_value_heads)


def _latent_attention_weights(config: Config) -> float:
    """DeepSeek's multi-head latent attention: queries and key-values go through low-rank matrices."""
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    rope, nope = _number(config, "qk_rope_head_dim"), _number(config, "qk_nope_head_dim")
    value, rank = _number(config, "v_head_dim"), _number(config, "kv_lora_rank")
    query_rank = _number(config, "q_lora_rank", 0)
    query = heads * (nope + rope)
    queries = hidden * query_rank + query_rank * query if query_rank else hidden * query
    return queries + hidden * (rank + rope) + rank * heads * (nope + value) + heads * value * hidden


def _mlp_weights(config: Config, width: float) -> float:
    """Gate, up and down matrices of a gated feed-forward part."""
    return 3 * _number(config, "hidden_size") * width


def _expert_weights(config: Config) -> float:
    num_active = _number(config, "num_experts_per_tok")
    width = _number(config, "moe_intermediate_size", _number(config, "intermediate_size"))
    shared = _number(config, "shared_expert_intermediate_size", _number(config, "n_shared_experts", 0) * width)
    router = _number(config, "hidden_size") * _num_experts(config)
    return num_active * _mlp_weights(config, width) + _mlp_weights(config, shared) + router


def _num_experts(config: Config) -> float:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((_number(config, name) for name in names if config.get(name)), 0)


def _num_dense_layers(config: Config) -> float:
    """Layers with an ordinary feed-forward part: all of them, or what the mixture's layer pattern leaves."""
    num_layers = int(_number(config, "num_hidden_layers"))
    if _num_experts(config) == 0 or not config.get("num_experts_per_tok"):
        return num_layers
    first_mixture = int(_number(config, "first_k_dense_replace", 0))
    step = max(1, int(_number(config, "decoder_sparse_step", 1)))
    dense = config.get("mlp_only_layers")
    always_dense = set(dense) if isinstance(dense, list | tuple) else set()
    mixture = [i for i in range(first_mixture, num_layers) if i not in always_dense and (i + 1) % step == 0]
    return num_layers - len(mixture)


def _head_width(config: Config) -> float:
    default = _number(config, "hidden_size") / _number(config, "num_attention_heads")
    return _number(config, "head_dim", default)


def _score_width(config: Config) -> float:
    if config.get("kv_lora_rank"):
        return _number(config, "qk_rope_head_dim") + _number(config, "qk_nope_head_dim")
    return _head_width(config)


def _value_width(config: Config) -> float:
    return _number(config, "v_head_dim") if config.get("kv_lora_rank") else _head_width(config)


def _number(config: Config, name: str, default: float | None = None) -> float:
    """The field as a number; absent and null give the default. Raises KeyError when there is none."""
    value = config.get(name)
    if isinstance(value, int | float):
        return value
    if default is None:
        raise KeyError(name)
    return default
