"""Arguments of other versions and programs that have no effect here, so that a command is accepted."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import EVERY_TASK, arg

NOTHING_GENERATED = "training generates nothing"
OF_THE_FAMILY = "the model's family and config.json determine it"
OTHER_QUANTIZATION = "only fp8 is written; quantize the exported folder with that library"
DETAIL_OF_QUANTIZATION = "weights are not quantized here"


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Arguments of other versions and programs that have no effect here, so that a command is accepted."""

    check_model: bool = arg(
        True,
        "Compare the files of a model with those on the Hub.",
        applies_to=EVERY_TASK,
        status="no effect",
        fulfilled=(False,),
        reason="the Hub's client verifies its downloads",
    )
    offload_bridge: bool = arg(
        False,
        "Keep the converted weights of a save in host memory.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason="an export streams one tensor at a time",
    )
    load_safetensors: bool = arg(
        True,
        "Read the weights of the model from safetensors.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason="weights are read from safetensors, and from a Megatron checkpoint where load names one",
    )
    linear_decoupled_in_proj: bool = arg(
        False,
        "Keep the input projections of linear attention separate.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=OF_THE_FAMILY,
    )
    lora_dtype: Literal["float16", "bfloat16", "float32"] | None = arg(
        None,
        "Type of the adapters.",
        status="no effect",
        reason="adapters are computed in the model's dtype and updated in float32",
    )
    dataloader_prefetch_factor: int = arg(
        10, "Batches that each data-loading process prefetches.", ge=1, status="no effect", reason="it prefetches 4"
    )
    dataloader_persistent_workers: bool = arg(
        True,
        "Keep data-loading processes across epochs.",
        status="no effect",
        reason="they live as long as the run",
    )
    packing_num_proc: int = arg(
        1, "Processes that pack.", ge=1, status="no effect", reason="one process packs a million rows in seconds"
    )
    use_flash_attn: bool = arg(
        False,
        "Use flash-attn.",
        status="no effect",
        reason="attention_backend decides, whose default is flash",
    )
    moe_layer_recompute: bool = arg(
        False,
        "Recompute expert layers in the backward pass.",
        status="no effect",
        reason="recompute_modules decides; add moe to it",
    )
    rotary_interleaved: bool | None = arg(
        None,
        "Rotate neighboring channels of a head together, not those of both halves; it must be as in the model.",
        applies_to=EVERY_TASK,
        status="works",
    )
    use_shared_expert_gate: bool = arg(
        False,
        "Gate the shared expert.",
        status="no effect",
        reason=OF_THE_FAMILY,
    )
    original_max_position_embeddings: int | None = arg(
        None,
        "The model's context length before scaling.",
        ge=1,
        status="no effect",
        reason="rope_scaling and config.json determine it",
    )
    initialize_embedding: bool = arg(
        False,
        "Initialize the embedding of new tokens at random.",
        status="no effect",
        fulfilled=(True,),
        reason="rows of new tokens are always initialized at random",
    )
    architectures: str | None = arg(
        None,
        "Class names of the model.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=OF_THE_FAMILY,
    )
    llm_architectures: str | None = arg(
        None,
        "Class names of the language part.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=OF_THE_FAMILY,
    )
    local_rank: int | None = arg(
        None,
        "Local rank within the node.",
        status="no effect",
        reason="the launcher sets it",
    )
    tuner_backend: Literal["peft", "unsloth"] = arg(
        "peft",
        "Library of the adapters.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason="adapters are built on Megatron-Core's layers and written as PEFT reads them",
    )
    quant_method: Literal["fp8", "bnb", "hqq", "gptq", "gptq_v2", "awq", "quanto", "eetq"] | None = arg(
        None,
        (
            'Quantize the weights of linears that to_hf writes: "fp8" is e4m3 with a scale per block of 128 x 128, as '
            "DeepSeek and Qwen publish."
        ),
        applies_to=("export",),
        essential=True,
        status="works",
        refused_choices=dict.fromkeys(("bnb", "hqq", "gptq", "gptq_v2", "awq", "quanto", "eetq"), OTHER_QUANTIZATION),
    )
    quant_bits: int | None = arg(
        None,
        "Bits of quantized weights, 8 for fp8.",
        ge=1,
        applies_to=("export",),
        status="works",
    )
    bnb_4bit_compute_dtype: str | None = arg(
        None,
        "Detail of quantization.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=DETAIL_OF_QUANTIZATION,
    )
    bnb_4bit_quant_type: str = arg(
        "nf4",
        "Detail of quantization.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=DETAIL_OF_QUANTIZATION,
    )
    bnb_4bit_use_double_quant: bool = arg(
        True,
        "Detail of quantization.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=DETAIL_OF_QUANTIZATION,
    )
    bnb_4bit_quant_storage: str | None = arg(
        None,
        "Detail of quantization.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=DETAIL_OF_QUANTIZATION,
    )
    hqq_axis: int | None = arg(
        None,
        "Detail of quantization.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=DETAIL_OF_QUANTIZATION,
    )
    quant_n_samples: int = arg(
        256,
        "Detail of quantization.",
        ge=1,
        applies_to=("export",),
        status="no effect",
        reason=DETAIL_OF_QUANTIZATION,
    )
    quant_batch_size: int = arg(
        1,
        "Detail of quantization.",
        applies_to=("export",),
        status="no effect",
        reason=DETAIL_OF_QUANTIZATION,
    )
    group_size: int = arg(
        128,
        "Detail of quantization.",
        applies_to=("export",),
        status="no effect",
        reason=DETAIL_OF_QUANTIZATION,
    )
    to_peft_format: bool = arg(
        False,
        "Write an adapter as PEFT reads it.",
        applies_to=("export",),
        status="no effect",
        fulfilled=(True,),
        reason="adapters are always written so",
    )
    to_ollama: bool = arg(
        False,
        "Write a folder for Ollama.",
        applies_to=("export",),
        essential=True,
        status="refused",
        reason=(
            "set to_hf, write a Modelfile with FROM and that folder, and run ollama create; the chat template of such "
            "a file is a Go template, which cannot be made from the model's own"
        ),
    )
    temperature: float | None = arg(
        None,
        "Temperature of generation.",
        ge=0,
        applies_to=EVERY_TASK,
        status="no effect",
        reason=NOTHING_GENERATED,
    )
    top_k: int | None = arg(
        None,
        "Tokens that generation chooses from.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=NOTHING_GENERATED,
    )
    top_p: float | None = arg(
        None,
        "Probability mass that generation chooses from.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=NOTHING_GENERATED,
    )
    repetition_penalty: float | None = arg(
        None,
        "Penalty of repeated tokens in generation.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=NOTHING_GENERATED,
    )
    max_new_tokens: int | None = arg(
        None,
        "Longest generated answer.",
        unit="tokens",
        ge=1,
        applies_to=EVERY_TASK,
        status="no effect",
        reason=NOTHING_GENERATED,
    )
    num_beams: int = arg(
        1,
        "Beams of generation.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=NOTHING_GENERATED,
    )
    stream: bool | None = arg(
        None,
        "Stream generated text.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=NOTHING_GENERATED,
    )
    logprobs: bool = arg(
        False,
        "Return log-probabilities of generated tokens.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=NOTHING_GENERATED,
    )
    top_logprobs: int | None = arg(
        None,
        "Log-probabilities of other tokens.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=NOTHING_GENERATED,
    )
    lora_modules: tuple[str, ...] = arg(
        (),
        "Adapters of an inference server.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason=NOTHING_GENERATED,
    )
    ckpt_dir: str | None = arg(
        None,
        "Folder whose arguments inference reads.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason="load_args reads the arguments of the checkpoint",
    )
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] | None = arg(
        None,
        "When push_to_hub uploads.",
        status="no effect",
        fulfilled=("end",),
        reason="push_to_hub uploads the result once, at the end; checkpoints stay on the volume",
    )
    init_strategy: str | None = arg(
        None,
        "How weights that a checkpoint lacks are initialized.",
        status="no effect",
        reason=(
            "a checkpoint that lacks weights is refused before training, and a new head of scores is initialized as "
            "transformers does"
        ),
    )
    use_persistent_ckpt_worker: bool = arg(
        False,
        "Keep the process that writes background saves.",
        status="no effect",
        reason="async_save decides how checkpoints are written in the background; the files are the same",
    )
