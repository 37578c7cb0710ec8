"""The model, its tokenizer and where they come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The model, its tokenizer and where they come from."""

    model: str | None = arg(
        None,
        (
            "Hub id or local folder of the model: config.json, tokenizer and weights; unset: from "
            "args.json in the loaded checkpoint."
        ),
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    model_type: str | None = arg(
        None,
        "Model family; unset: from config.json.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason="the family follows from model_type in config.json, and the chat template is chosen by template",
    )
    model_revision: str | None = arg(
        None,
        "Revision of the model on the Hub: a branch, a tag or a commit; unset: main.",
        applies_to=EVERY_TASK,
        status="works",
    )
    torch_dtype: Literal["float16", "bfloat16", "float32"] | None = arg(
        None,
        "Type of the weights, which also decides the training precision; unset: from config.json.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    task_type: Literal["causal_lm", "seq_cls", "embedding", "reranker", "generative_reranker"] | None = arg(
        None,
        "Kind of model to train: language model, classifier, embedding model or reranker; unset: causal_lm.",
        applies_to=EVERY_TASK,
        status="works",
    )
    num_labels: int | None = arg(
        None,
        "Outputs of a classifier: its classes, or the values of a regression; unset: from config.json.",
        ge=1,
        applies_to=EVERY_TASK,
        status="works",
    )
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = arg(
        None,
        "Kind of a classifier's label; unset: from config.json, else regression for one label and a class for more.",
        applies_to=EVERY_TASK,
        status="works",
    )
    attn_impl: str | None = arg(
        None,
        "Attention of the transformers library.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason="attention of transformers is not used; attention_backend decides",
    )
    new_special_tokens: tuple[str, ...] = arg(
        (),
        "Tokens to add to the vocabulary; an item ending in .txt is a file of tokens.",
        applies_to=EVERY_TASK,
        status="works",
    )
    max_model_len: int | None = arg(
        None,
        "Context length to reach by rope_scaling; determines its factor.",
        unit="tokens",
        ge=1,
        applies_to=EVERY_TASK,
        status="works",
    )
    model_kwargs: Mapping[str, Any] | None = arg(
        None,
        (
            "Settings of images by names of environment variables: max_pixels, image_max_token_num (also with min_ and "
            "video_), fps, fps_min_frames, fps_max_frames, max_num, min_num, qwenvl_bbox_format."
        ),
        applies_to=EVERY_TASK,
        status="works",
    )
    use_hf: bool = arg(
        False,
        "Fetch a model that is not a directory from the Hugging Face Hub; ModelScope is never used.",
        applies_to=EVERY_TASK,
        status="works",
    )
    hub_token: str | None = arg(
        None,
        "Access token of the Hub.",
        applies_to=EVERY_TASK,
        secret=True,
        status="refused",
        reason="a manifest must not contain a secret; pass HF_TOKEN to the pods from a Secret through envFrom",
    )
    local_repo_path: str | None = arg(
        None,
        "Local clone of a repository with model code.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason="models are built from Megatron-Core, so no model code is cloned or run",
    )
    device_map: str | Mapping[str, Any] | None = arg(
        None,
        "Placement of the model during conversion.",
        applies_to=("export",),
        status="no effect",
        reason="conversion streams one tensor at a time and needs no placement",
    )
    max_memory: str | Mapping[str, Any] | None = arg(
        None,
        "Memory limits during conversion.",
        applies_to=("export",),
        status="no effect",
        reason="conversion streams one tensor at a time and needs no placement",
    )
    custom_register_path: tuple[str, ...] = arg(
        (),
        "Python files, imported at the start, that register data formats or templates.",
        applies_to=EVERY_TASK,
        status="refused",
        reason="a manifest runs no code: pass a template as a file, map columns, or put the change into your own image",
    )
    external_plugins: tuple[str, ...] = arg(
        (),
        "Python files, imported at the start, with loss scales or agent templates.",
        applies_to=EVERY_TASK,
        status="refused",
        reason="a manifest runs no code: weight turns in the data, pass a template as a file, or use your own image",
    )
    load_args: bool = arg(
        False,
        "Take unset model and template arguments from args.json in the checkpoint.",
        applies_to=EVERY_TASK,
        status="works",
    )
    load_data_args: bool = arg(
        False,
        "Take unset data arguments from args.json in the checkpoint.",
        applies_to=EVERY_TASK,
        status="works",
    )
