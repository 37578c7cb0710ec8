"""Builds this rank's part of a model. The one place that makes a GPTModel.

megatron-core 0.19 calls GPTModel deprecated in favor of HybridModel; when it goes, this file changes.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig, TransformerLayer
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionBlockSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megatron_trainer.backend import Backend
from megatron_trainer.megatron.marks import split_over_heads, sum_over_sequence
from megatron_trainer.megatron.patches import router
from megatron_trainer.models import logits, rope
from megatron_trainer.models.block import block_spec, prediction_spec
from megatron_trainer.models.image_text import ImageTextModel
from megatron_trainer.models.padding import PaddingFreeFeedForwardLayer
from megatron_trainer.models.prediction import PredictingModel
from megatron_trainer.models.score import NoOutput, ScoreLayer
from megatron_trainer.models.settings import implementation, transformer_config
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.models.tower import build_tower
from megatron_trainjob.args.tree import TrainArgs


def build_model(spec: ModelSpec, args: TrainArgs, backend: Backend) -> list[GPTModel]:
    """The model chunks of this rank, one per virtual pipeline stage, on its device.

    parallel.initialize must have formed the groups. Weights are left for convert/load.py or convert/initialize.py,
    unless megatron-core initializes them (settings.initializes_on_host). Logits stay split over the tensor-parallel
    ranks.
    """
    stages = parallel_state.get_virtual_pipeline_model_parallel_world_size()
    config = transformer_config(spec, args, backend, virtual_stages=stages)
    kind = implementation(args, backend)
    if config.num_moe_experts:
        router.install(spec.model, sums_tokens=config.calculate_per_token_loss)
    rope.install()
    has_padding = not (args.padding_free or args.packing)
    layer = PaddingFreeFeedForwardLayer if args.mlp_padding_free and has_padding else TransformerLayer
    left_padded = has_padding and args.padding_side == "left"
    blocks = {
        stage: block_spec(spec, config, kind, stage, layer, left_padded=left_padded)
        for stage in (range(stages) if stages else [None])
    }
    further = prediction_spec(spec, config, kind, layer, left_padded=left_padded) if config.mtp_num_layers else None
    chunks = [_chunk(spec, config, block, stage, args, backend, further) for stage, block in blocks.items()]
    if args.hidden_dropout is None and hasattr(chunks[0], "embedding"):
        chunks[0].embedding.embedding_dropout.p = 0.0  # in config.json it applies to the outputs of attention and MLP
    for chunk in chunks:
        _mark(chunk, spec)
    return [chunk.to(backend.device) for chunk in chunks]


def _mark(model: GPTModel, spec: ModelSpec) -> None:
    """Corrects how megatron-core shares the parameters that only some families have.

    Sinks belong to the heads of a rank. Biases of experts are reduced with their experts; the mark of a row-parallel
    linear would sum them over ranks that hold other experts.
    """
    for layer in _layers(model):
        if spec.model.sinks:
            sinks = layer.self_attention.core_attention.softmax_offset
            sinks.data = sinks.data.to(spec.dtype)
            split_over_heads(sinks)
        for name, parameter in layer.mlp.named_parameters() if spec.model.expert_bias else ():
            if ".experts." in f".{name}" and "bias" in name:
                sum_over_sequence(parameter, is_summed=False)


def _chunk(
    spec: ModelSpec,
    config: TransformerConfig,
    block: TransformerBlockSubmodules,
    stage: int | None,
    args: TrainArgs,
    backend: Backend,
    further: MultiTokenPredictionBlockSubmodules | None,
) -> GPTModel:
    rotary = spec.model.rotary
    is_last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage)
    settings = {
        "vocab_size": spec.padded_vocab_size,
        "max_sequence_length": spec.model.max_position_embeddings,
        "pre_process": parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
        "post_process": is_last,
        "parallel_output": True,
        "share_embeddings_and_output_weights": spec.tied,
        "rotary_base": rotary.base,
        "rotary_percent": rotary.share,
        "vp_stage": stage,
    }
    predicted = further if is_last else None
    if spec.model.vision is None:
        kind = PredictingModel if predicted else GPTModel
        model = kind(config, block, position_embedding_type="rope", mtp_block_spec=predicted, **settings)
    else:
        tower = build_tower(spec, args, backend) if settings["pre_process"] else None
        model = ImageTextModel(
            config, block, vision=spec.model.vision, tower=tower, mtp_block_spec=predicted, **settings
        )
    logits.scale_embeddings(model, spec.model.embedding_scale)
    if spec.head is None and model.post_process:
        logits.cap_logits(model, spec.model.logit_cap)
    if spec.head is not None and model.post_process:
        scores = spec.head.num_scores
        model.output_layer = ScoreLayer(config, scores) if scores else NoOutput(config)
    if spec.model.has_latent_attention:
        _set_latent_attention(model, spec)
    else:
        _set_rotary(model, spec)
    return model


def _layers(model: GPTModel) -> Iterator[TransformerLayer]:
    """All layers of a chunk, those inside multi-token-prediction layers too."""
    yield from model.decoder.layers
    if model.mtp_process:
        yield from (layer.mtp_model_layer for layer in model.mtp.layers)


def _set_rotary(model: GPTModel, spec: ModelSpec) -> None:
    """Sets the model's own frequencies before the first forward pass caches any."""
    inverse, factor = rope.frequencies(spec.model, spec.hf_config)
    inverse = inverse.to(model.rotary_pos_emb.inv_freq.device)
    if spec.model.vision and spec.model.vision.sections:
        model.rotary_pos_emb = rope.SectionedRotaryEmbedding(
            inverse, spec.model.vision, interleaved=spec.model.rotary.interleaved
        )
    else:
        model.rotary_pos_emb.inv_freq = inverse
    for layer in _layers(model):
        layer.self_attention._yarn_concentration_factor = factor


def _set_latent_attention(model: GPTModel, spec: ModelSpec) -> None:
    """Sets each layer's own frequencies, and the epsilon of its norms, for which the configuration has no field.

    TransformerEngine fuses these norms into the linears that follow.
    """
    inverse, factor = rope.frequencies(spec.model, spec.hf_config)
    for layer in _layers(model):
        attention = layer.self_attention
        rotary = attention.rotary_pos_emb
        if factor == 1.0:
            rotary.inv_freq = inverse.to(rotary.inv_freq.device)
        else:
            attention.rotary_pos_emb = rope.ScaledRotaryEmbedding(spec.model, inverse, factor, rotary.cp_group)
        for name in ("q_layernorm", "kv_layernorm", "linear_q_up_proj", "linear_kv_up_proj"):
            part = getattr(attention, name, None)
            if part is not None and hasattr(part, "eps"):
                part.eps = spec.model.latent_norm_epsilon
