"""The model that a config.json describes: sizes, attention, experts, routing, RoPE. Knows no ranks or arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from megatron_trainjob.families.vision import Vision


@dataclass(frozen=True, kw_only=True)
class LayerParameters:
    """Parameters of one layer by how they are sharded: over tensor ranks, over expert ranks, or not at all."""

    tensor: int
    expert: int
    whole: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.tensor + self.expert + self.whole


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions. kind: type of the scaling, "default" for none. share: part of each head that is rotated.

    parameters: those of the scaling in config.json. interleaved: neighboring channels are rotated together, not those
    of both halves. layers: which layers rotate at all; () means every one. original_length: tokens that the model was
    trained on before its context was extended.
    """

    kind: str
    base: float
    share: float = 1.0
    interleaved: bool = False
    original_length: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[bool, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Router:
    """Routing of tokens to experts.

    normalized: the probabilities of the selected experts sum to one. has_bias: a bias per expert, used only for
    selection.
    num_groups, num_chosen_groups: experts are chosen from the best groups of them; 0 without. group_best: a group is
    ranked by the sum of this many of its best scores. scale: factor on the probabilities. balancing: megatron-core's
    name of the family's balancing loss.
    """

    score: Literal["softmax", "sigmoid"]
    normalized: bool
    has_bias: bool = False
    num_groups: int = 0
    num_chosen_groups: int = 0
    group_best: int = 2
    scale: float = 1.0
    balancing: str = "aux_loss"


@dataclass(frozen=True, kw_only=True)
class LinearAttention:
    """Gated delta nets, which have a state of fixed size in place of keys and values. layers: which have one.

    key_size, value_size: width of one head. kernel: tokens that the convolution before the state sees. separate: what
    is projected has a matrix each for queries with keys and values, gate, strength and decay, not two for all.
    """

    layers: tuple[bool, ...]
    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    kernel: int
    separate: bool = False

    @property
    def key_width(self) -> int:
        """Width of the queries, and of the keys, of all heads."""
        return self.key_heads * self.key_size

    @property
    def value_width(self) -> int:
        """Width of the values of all heads, and of their gate."""
        return self.value_heads * self.value_size

    @property
    def channels(self) -> int:
        """Queries, keys and values, which the convolution mixes over tokens."""
        return 2 * self.key_width + self.value_width

    @property
    def projections(self) -> Mapping[str, int]:
        """The projections into the layer, by the names of their modules -> their rows."""
        if not self.separate:
            return {"in_proj_qkvz": self.channels + self.value_width, "in_proj_ba": 2 * self.value_heads}
        heads = dict.fromkeys(("in_proj_b", "in_proj_a"), self.value_heads)
        return {"in_proj_qkv": self.channels, "in_proj_z": self.value_width, **heads}

    @property
    def state_products(self) -> int:
        """Multiplications of a token with the states of all heads: read for the correction, written, read."""
        return 3 * self.value_heads * self.key_size * self.value_size


@dataclass(frozen=True, kw_only=True)
class ClampedGate:
    """A gated unit of bounded size: g * sigmoid(slope * g) * (u + 1), with gate g at most `limit` and u within it."""

    slope: float
    limit: float


@dataclass(frozen=True, kw_only=True)
class WideAttention:
    """Attention of layers whose heads differ from those of the other layers. layers: which.

    keys_as_values: values are the projected keys, before their norm and rotation.
    """

    layers: tuple[bool, ...]
    head_size: int
    num_kv_heads: int
    rotary: Rotary
    keys_as_values: bool = False


@dataclass(frozen=True, kw_only=True)
class Model:
    """One decoder. Widths are elements, counts are per layer.

    `qk_head_size` and `v_head_size` are the widths of one head of queries and keys, and of values. A model without
    latent attention has `kv_lora_rank` 0; `q_lora_rank` 0 means that queries are not factored. `expert_layers` says for
    each layer whether it has experts instead of a dense feed-forward block, `window_layers` whether it attends only to
    the last `window` tokens. `post_norms`: a norm after attention and one after the MLP, each before the residual is
    added. `residual_dropout`: of what attention and MLP add to it. `prediction_layers`: multi-token-prediction layers
    that checkpoints carry after the last one, of which the first `trained_predictions` are part of the trained model.
    `vision`: the tower of a model that reads images, else None. `linear`: gated delta nets in
    place of attention. `output_gate`: the output of each attention head is multiplied with a gate.
    `zero_centered_norms`: norms scale by one plus their weight. `sinks`: each attention head has a learned score that
    takes part in its softmax and carries no value. `expert_bias`: the linears of experts and the router have biases.
    `clamped_gate`: in place of the plain product of gate and up. `unit_qk_norm`: queries and keys of rotated layers
    have a norm without a weight. `scales_expert_inputs`: the router scales what goes into an expert, not what comes
    out. `plain_length`: tokens up to which attention is the ordinary one, 0 for any number. `wide`: the layers with
    other heads than those that the other fields describe (`at`). `value_norm`: values have a norm without a weight.
    `attention_scale`: factor on the scores, 0 for one over the root of the head size. `embedding_scale`: factor on the
    embeddings. `logit_cap`: bound that logits approach, 0 for none. `layer_scales`: the output of each layer has a
    factor that is stored and not trained. `experts_beside_dense`: experts and a dense block in the same layer, with
    norms of their own; `shared_expert_width` is that of the dense block.
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
    activation: str
    norm_epsilon: float
    init_std: float
    rotary: Rotary
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    window: int = 0
    window_layers: tuple[bool, ...] = ()
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_rope_size: int = 0
    latent_norm_epsilon: float = 0.0
    router: Router | None = None
    expert_layers: tuple[bool, ...] = ()
    num_experts: int = 0
    experts_per_token: int = 0
    expert_width: int = 0
    shared_expert_width: int = 0
    shared_expert_gate: bool = False
    prediction_layers: int = 0
    trained_predictions: int = 0
    vision: Vision | None = None
    linear: LinearAttention | None = None
    output_gate: bool = False
    zero_centered_norms: bool = False
    sinks: bool = False
    expert_bias: bool = False
    clamped_gate: ClampedGate | None = None
    unit_qk_norm: bool = False
    scales_expert_inputs: bool = False
    plain_length: int = 0
    wide: WideAttention | None = None
    keys_as_values: bool = False
    value_norm: bool = False
    attention_scale: float = 0.0
    embedding_scale: float = 1.0
    logit_cap: float = 0.0
    layer_scales: bool = False
    experts_beside_dense: bool = False

    def is_wide(self, layer: int) -> bool:
        """Whether the layer's heads are those of `wide`."""
        return self.wide is not None and self.wide.layers[layer]

    def at(self, layer: int) -> Model:
        """The model with the attention of this layer in all of them."""
        if self.wide is None:
            return self
        if not self.wide.layers[layer]:
            return replace(self, wide=None)
        size = self.wide.head_size
        return replace(
            self,
            qk_head_size=size,
            v_head_size=size,
            num_kv_heads=self.wide.num_kv_heads,
            rotary=self.wide.rotary,
            keys_as_values=self.wide.keys_as_values,
            wide=None,
        )

    @property
    def has_latent_attention(self) -> bool:
        """Whether keys and values are low-rank."""
        return self.kv_lora_rank > 0

    @property
    def all_layers(self) -> range:
        """The indices of all layers: those of the decoder, and after them the trained ones that predict further on."""
        return range(self.num_layers + self.trained_predictions)

    def predicts_further(self, layer: int) -> bool:
        """Whether the layer predicts a token after the next one; it then has a projection and three more norms."""
        return layer >= self.num_layers

    def has_experts(self, layer: int) -> bool:
        """Whether the layer has experts; one that predicts further on is like the last layer of the decoder."""
        return self.expert_layers[min(layer, self.num_layers - 1)]

    def is_linear(self, layer: int) -> bool:
        """Whether the layer has a gated delta net in place of attention; one that predicts further on has attention."""
        return self.linear is not None and layer < self.num_layers and self.linear.layers[layer]

    def is_rotated(self, layer: int) -> bool:
        """Whether the layer has rotary positions."""
        return not self.rotary.layers or self.rotary.layers[min(layer, self.num_layers - 1)]

    @property
    def num_attention_layers(self) -> int:
        """Layers with attention."""
        return sum(not self.is_linear(layer) for layer in self.all_layers)

    @property
    def state_products(self) -> int:
        """Multiplications of a token with the states of all gated delta nets."""
        return self.linear.state_products * sum(self.linear.layers) if self.linear else 0

    def layer_parameters(self, layer: int) -> LayerParameters:
        """The parameters of the layer with this index, norms and router included."""
        mixing = self._linear_parameters() if self.is_linear(layer) else self.at(layer)._attention_parameters()
        found = self._block_parameters(*mixing, has_experts=self.has_experts(layer))
        if not self.predicts_further(layer):
            return found
        projection = 2 * self.hidden_size * self.hidden_size
        return replace(found, tensor=found.tensor + projection, whole=found.whole + 3 * self.hidden_size)

    def _block_parameters(self, attention_tensor: int, attention_whole: int, *, has_experts: bool) -> LayerParameters:
        norms = (4 if self.post_norms else 2) * self.hidden_size + (1 if self.layer_scales else 0)
        if not has_experts:
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
        router = self.hidden_size * self.num_experts + (self.num_experts if self.expert_bias else 0)
        biases = 2 * self.expert_width + self.hidden_size if self.expert_bias else 0
        if self.experts_beside_dense:
            norms += 3 * self.hidden_size
            router += self.hidden_size + self.num_experts
        return LayerParameters(
            tensor=attention_tensor + shared,
            expert=self.num_experts * (3 * self.hidden_size * self.expert_width + biases),
            whole=attention_whole + norms + router + gate,
        )

    def _attention_parameters(self) -> tuple[int, int]:
        """(sharded over tensor ranks, replicated) parameters of one layer's attention."""
        hidden, heads = self.hidden_size, self.num_heads
        output = heads * self.v_head_size * hidden
        output_bias = hidden if self.output_bias else 0
        if not self.has_latent_attention:
            rows = self.query_rows + self.key_value_rows
            norms = 2 * self.qk_head_size if self.qk_norm else 0
            own = (rows if self.qkv_bias else 0) + (heads if self.sinks else 0)
            return hidden * rows + own + output, norms + output_bias
        query_rows = heads * self.qk_head_size
        down = hidden * (self.kv_lora_rank + self.qk_rope_size) + self.kv_lora_rank
        up = self.kv_lora_rank * heads * (self.qk_head_size - self.qk_rope_size + self.v_head_size)
        if self.q_lora_rank == 0:
            return hidden * query_rows + up + output, down + output_bias
        query_down = hidden * self.q_lora_rank + self.q_lora_rank
        return self.q_lora_rank * query_rows + up + output, down + query_down + output_bias

    def _linear_parameters(self) -> tuple[int, int]:
        """The same of one gated delta net."""
        assert self.linear is not None  # ensured by is_linear
        own = 2 * self.linear.value_heads  # decay and its bias
        return self._linear_weights() + own, self.linear.value_size

    @property
    def query_rows(self) -> int:
        """Outputs of the query projection, with the gates of the heads where they have one."""
        return self.num_heads * self.qk_head_size * (2 if self.output_gate else 1)

    @property
    def key_value_rows(self) -> int:
        """Outputs of the projections of keys and values."""
        return self.num_kv_heads * (self.qk_head_size + (0 if self.keys_as_values else self.v_head_size))

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the input embedding; the output layer has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters of the model, with a tied embedding counted once."""
        layers = sum(self.layer_parameters(layer).total for layer in self.all_layers)
        matrices = 1 if self.tied else 2
        tower = self.vision.num_parameters if self.vision else 0
        return layers + matrices * self.embedding_parameters + self.hidden_size + tower

    @property
    def weights_per_token(self) -> int:
        """Weights that each token is multiplied with: all matrices, but only those experts it is routed to.

        A layer that predicts further on has a projection, and is followed by the output layer once more.
        """
        output = self.hidden_size * self.vocab_size
        total = output + self.mixing_weights
        for layer in self.all_layers:
            total += self._expert_weights() if self.has_experts(layer) else 3 * self.hidden_size * self.ffn_hidden_size
            total += output + 2 * self.hidden_size * self.hidden_size if self.predicts_further(layer) else 0
        return total

    @property
    def mixing_weights(self) -> int:
        """Weights in the attention of all layers, or in what stands in its place."""
        return sum(
            self._linear_weights() if self.is_linear(layer) else self.at(layer)._attention_weights()
            for layer in self.all_layers
        )

    def _attention_weights(self) -> int:
        """Weights in the matrices of one layer's attention, without norms and biases."""
        hidden, heads = self.hidden_size, self.num_heads
        output = heads * self.v_head_size * hidden
        query = heads * self.qk_head_size
        if not self.has_latent_attention:
            return hidden * (self.query_rows + self.key_value_rows) + output
        rank, rope = self.q_lora_rank, self.qk_rope_size
        queries = hidden * rank + rank * query if rank else hidden * query
        up = self.kv_lora_rank * heads * (self.qk_head_size - rope + self.v_head_size)
        return queries + hidden * (self.kv_lora_rank + rope) + up + output

    def _linear_weights(self) -> int:
        """Weights in the projections and the convolution of one gated delta net."""
        sizes = self.linear
        assert sizes is not None  # ensured by is_linear
        rows = sum(sizes.projections.values()) + sizes.value_width
        return self.hidden_size * rows + sizes.channels * sizes.kernel

    def _expert_weights(self) -> int:
        width = self.experts_per_token * self.expert_width + self.shared_expert_width
        return 3 * self.hidden_size * width + self.hidden_size * self.num_experts
