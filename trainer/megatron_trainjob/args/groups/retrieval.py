"""Embedding models and rerankers: their losses, and which texts of a row are trained on."""

from dataclasses import dataclass

from megatron_trainjob.args.field import Task, arg

SUPERVISED: tuple[Task, ...] = ("sft",)


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Embedding models and rerankers: their losses, and which texts of a row are trained on."""

    infonce_temperature: float = arg(
        0.1, "Divides the similarities in infonce's softmax.", gt=0, applies_to=SUPERVISED, status="works"
    )
    infonce_use_batch: bool = arg(
        True,
        "In infonce the documents of all rows read at once, on all ranks, are negatives; false: the row's own.",
        applies_to=SUPERVISED,
        status="works",
    )
    infonce_hard_negatives: int | None = arg(
        None,
        "Negatives of a row in infonce: the first ones, repeated where there are fewer; unset: all.",
        ge=1,
        applies_to=SUPERVISED,
        status="works",
    )
    infonce_mask_fake_negative: bool = arg(
        False,
        "Leave out negatives that are more similar than the positive by infonce_fake_neg_margin.",
        applies_to=SUPERVISED,
        status="works",
    )
    infonce_fake_neg_margin: float = arg(
        0.1,
        "By how much a negative has to be more similar than the positive to be left out.",
        applies_to=SUPERVISED,
        status="works",
    )
    infonce_include_qq: bool = arg(
        False, "In infonce the other rows' queries are negatives too.", applies_to=SUPERVISED, status="works"
    )
    infonce_include_dd: bool = arg(
        False,
        "infonce's softmax also includes the similarities of the positive to all other documents.",
        applies_to=SUPERVISED,
        status="works",
    )
    matryoshka_dims: tuple[int, ...] = arg(
        (),
        "Sizes to which embeddings are truncated in training, with the full size if wanted; unset: only the full size.",
        ge=1,
        applies_to=SUPERVISED,
        essential=True,
        status="works",
    )
    matryoshka_weights: tuple[float, ...] = arg(
        (), "Weight of the loss at each of matryoshka_dims; unset: 1.", ge=0, applies_to=SUPERVISED, status="works"
    )
    listwise_reranker_temperature: float = arg(
        1.0, "Divides the scores in listwise_reranker's softmax.", gt=0, applies_to=SUPERVISED, status="works"
    )
    listwise_reranker_min_group_size: int = arg(
        2,
        "Documents that a positive and its negatives must be together in listwise_reranker; other rows are dropped.",
        unit="documents",
        ge=2,
        applies_to=SUPERVISED,
        status="works",
    )
    max_positive_samples: int = arg(
        1,
        "Positive documents per row for a reranker, sampled if there are more.",
        ge=1,
        applies_to=SUPERVISED,
        status="works",
    )
    max_negative_samples: int = arg(
        7,
        "Negative documents per row for a reranker, sampled if there are more.",
        ge=0,
        applies_to=SUPERVISED,
        status="works",
    )
    generative_reranker_positive_token: str = arg(
        "yes",
        "Text whose token marks a relevant document (generative_reranker).",
        applies_to=SUPERVISED,
        status="works",
    )
    generative_reranker_negative_token: str = arg(
        "no",
        "Text whose token marks an irrelevant document (generative_reranker).",
        applies_to=SUPERVISED,
        status="works",
    )
