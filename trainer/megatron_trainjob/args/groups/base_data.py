"""Data sets and how they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class BaseData:
    """Data sets and how they are read."""

    dataset: tuple[str, ...] = arg(
        (),
        ("Training data: files (jsonl, json, csv, txt), folders or Hub ids, each [hf::|ms::]name[:subset][#rows]."),
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    val_dataset: tuple[str, ...] = arg(
        (),
        "Validation data, in the same form as dataset.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    split_dataset_ratio: float = arg(
        0.0,
        "Fraction of each training set held out for validation when val_dataset is empty.",
        unit="fraction",
        ge=0,
        lt=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    data_seed: int = arg(
        42,
        "Seed for sampling, splitting and shuffling data.",
        ge=0,
        le=4294967295,
        applies_to=EVERY_TASK,
        status="works",
    )
    dataset_shuffle: bool = arg(
        True,
        "Shuffle the training data.",
        applies_to=EVERY_TASK,
        status="works",
    )
    val_dataset_shuffle: bool = arg(
        False,
        "Shuffle the validation data.",
        applies_to=EVERY_TASK,
        status="works",
    )
    dataset_num_proc: int = arg(
        1,
        "Processes that prepare the data.",
        unit="processes",
        ge=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    load_from_cache_file: bool = arg(
        True,
        "Reuse prepared data of an earlier run.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    interleave_prob: tuple[float, ...] | None = arg(
        None,
        "Probability of each data set; mixes them instead of joining them.",
        ge=0,
        le=1,
        applies_to=EVERY_TASK,
        status="works",
    )
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = arg(
        "first_exhausted",
        "When mixing stops: at the first or at the last exhausted data set.",
        applies_to=EVERY_TASK,
        status="works",
    )
    shuffle_buffer_size: int = arg(
        1000,
        "Shuffle buffer of a stream, in samples.",
        unit="samples",
        ge=1,
        status="works",
    )
    download_mode: Literal["reuse_dataset_if_exists", "force_redownload"] = arg(
        "reuse_dataset_if_exists",
        "Whether data sets are downloaded again.",
        applies_to=EVERY_TASK,
        status="works",
    )
    columns: Mapping[str, Any] | None = arg(
        None,
        'Columns to rename before the format is recognized, for example {"text1": "query"}.',
        applies_to=EVERY_TASK,
        status="works",
    )
    strict: bool = arg(
        False,
        "Stop at the first bad row instead of dropping it.",
        applies_to=EVERY_TASK,
        status="works",
    )
    remove_unused_columns: bool = arg(
        True,
        "Drop columns that training does not use.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason="columns that training does not use are never kept",
    )
    model_name: tuple[str, ...] | None = arg(
        None,
        "Name of the model for self-cognition data, Chinese and English.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    model_author: tuple[str, ...] | None = arg(
        None,
        "Author of the model for self-cognition data, Chinese and English.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    custom_dataset_info: tuple[str, ...] = arg(
        (),
        (
            "JSON files that give data sets a name for dataset and val_dataset: a list of objects with dataset_path "
            "(or hf_dataset_id), and dataset_name, subsets, split, columns."
        ),
        applies_to=EVERY_TASK,
        status="works",
    )
