"""Embedding models and rerankers: which loss and which settings belong to which task_type."""

from __future__ import annotations

from megatron_trainjob.args import head
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.rules.condition import changed, is_, is_set, one_of
from megatron_trainjob.args.rules.pair import excludes, idle_with, idle_without, needs
from megatron_trainjob.args.rules.rule import Facts, rule
from megatron_trainjob.args.tree import ARGUMENTS

SUPERVISED: tuple[Task, ...] = ("sft",)
OF_EMBEDDINGS = ("infonce", "cosine_similarity", "contrastive", "online_contrastive")
OF_RERANKERS = ("pointwise_reranker", "listwise_reranker")
LOSSES: dict[str | None, tuple[str, ...]] = {
    "embedding": OF_EMBEDDINGS,
    "reranker": OF_RERANKERS,
    "generative_reranker": OF_RERANKERS,
}
"""Keys are task_type; the others have a single loss, which no argument selects."""
EMBEDDING = is_("task_type", "embedding")
GENERATIVE = is_("task_type", "generative_reranker")
RERANKER = one_of("task_type", "reranker", "generative_reranker")
GROUPED = one_of("task_type", "embedding", "reranker", "generative_reranker")
OF_INFONCE = (
    "infonce_temperature",
    "infonce_use_batch",
    "infonce_hard_negatives",
    "infonce_mask_fake_negative",
    "infonce_include_qq",
    "infonce_include_dd",
)


@rule("loss_type", "task_type", tasks=SUPERVISED)
def a_loss_of_texts_belongs_to_its_kind(facts: Facts) -> str:
    """Losses compare embeddings, or judge documents, or answers."""
    if "loss_type" not in facts.given:
        return ""
    kind, own = facts.args.task_type, LOSSES.get(facts.args.task_type, ())
    if not own and facts.args.loss_type == ARGUMENTS["loss_type"].default:
        return ""
    if not own:
        return f"is not part of task_type {kind or 'causal_lm'} in sft, which has one loss; remove it"
    return "" if facts.args.loss_type in own else f"is not a loss of task_type {kind}; use {', '.join(own)}"


@rule("loss_type", "loss_types", tasks=("rlhf",))
def losses_of_texts_are_no_preference_losses(facts: Facts) -> str:
    """They have no reference and no pair of answers."""
    others = (*OF_EMBEDDINGS, *OF_RERANKERS)
    found = [name for name in (facts.args.loss_type, *facts.args.loss_types) if name in others]
    return f"{', '.join(found)} is trained with task sft and task_type embedding or reranker" if found else ""


@rule(*OF_INFONCE, "loss_type", "task_type", tasks=SUPERVISED, severity="warning")
def similarities_of_a_batch_are_infonces(facts: Facts) -> str:
    """The other losses compare one pair of texts."""
    args = facts.args
    if args.task_type == "embedding" and head.group_loss(args) == "infonce":
        return ""
    return _idle(facts, OF_INFONCE, "task_type: embedding with loss_type: infonce")


@rule(
    "listwise_reranker_temperature",
    "listwise_reranker_min_group_size",
    "loss_type",
    "task_type",
    tasks=SUPERVISED,
    severity="warning",
)
def a_list_of_documents_is_listwise(facts: Facts) -> str:
    """Pointwise losses judge each document alone."""
    is_listwise = LOSSES.get(facts.args.task_type) == OF_RERANKERS and facts.args.loss_type == "listwise_reranker"
    if is_listwise:
        return ""
    names = ("listwise_reranker_temperature", "listwise_reranker_min_group_size")
    return _idle(facts, names, "loss_type: listwise_reranker with a reranker")


def _idle(facts: Facts, names: tuple[str, ...], needed: str) -> str:
    """The warning that those of the arguments which are not at their default have no effect, "" if none is."""
    changed_ones = [name for name in names if getattr(facts.args, name) != ARGUMENTS[name].default]
    return f"has no effect ({', '.join(changed_ones)}) without {needed}" if changed_ones else ""


@rule("matryoshka_weights", "matryoshka_dims", tasks=SUPERVISED)
def each_size_has_a_weight(facts: Facts) -> str:
    """Weights are matched by position."""
    weights, sizes = len(facts.args.matryoshka_weights), len(facts.args.matryoshka_dims)
    return f"are {weights} for {sizes} matryoshka_dims; use one for each" if 0 < weights != sizes else ""


@rule("matryoshka_dims", tasks=SUPERVISED, needs_model=True)
def an_embedding_is_cut_to_less(facts: Facts) -> str:
    """Its size is the model's hidden_size."""
    size = facts.config.get("hidden_size")
    larger = [dim for dim in facts.args.matryoshka_dims if size is not None and dim > size]
    return f"holds {', '.join(map(str, larger))}, but the model's embeddings have {size} numbers" if larger else ""


@rule("generative_reranker_positive_token", "generative_reranker_negative_token", tasks=SUPERVISED)
def yes_is_not_no(facts: Facts) -> str:
    """The score is the difference of their logits."""
    args = facts.args
    same = args.generative_reranker_positive_token == args.generative_reranker_negative_token
    return "is the same as generative_reranker_negative_token; they must differ" if same else ""


@rule("system", "task_type", tasks=SUPERVISED)
def a_generative_reranker_asks_in_its_own_words(facts: Facts) -> str:
    """Its system turn defines the allowed answers."""
    if facts.args.task_type != "generative_reranker" or not facts.args.system:
        return ""
    return "is fixed for a generative_reranker; put an instruction into a system turn of the rows"


@rule("modules_to_save", "task_type", tasks=SUPERVISED)
def an_embedding_model_has_no_output_layer(facts: Facts) -> str:
    """Nothing follows its last norm that could be trained or saved."""
    named = [name for name in facts.args.modules_to_save if name in ("output_layer", "lm_head")]
    if facts.args.task_type != "embedding" or not named:
        return ""
    return f"names {named[0]}, which an embedding model does not have; remove it"


RULES = (
    an_embedding_model_has_no_output_layer,
    a_loss_of_texts_belongs_to_its_kind,
    losses_of_texts_are_no_preference_losses,
    similarities_of_a_batch_are_infonces,
    a_list_of_documents_is_listwise,
    each_size_has_a_weight,
    an_embedding_is_cut_to_less,
    yes_is_not_no,
    a_generative_reranker_asks_in_its_own_words,
    needs("embeddings_are_cut", is_set("matryoshka_dims"), EMBEDDING, tasks=SUPERVISED),
    idle_without("weights_are_of_sizes", is_set("matryoshka_weights"), is_set("matryoshka_dims"), tasks=SUPERVISED),
    *(
        idle_without(name, changed(argument), RERANKER, tasks=SUPERVISED)
        for name, argument in (
            ("positives_are_drawn_for_a_reranker", "max_positive_samples"),
            ("negatives_are_drawn_for_a_reranker", "max_negative_samples"),
        )
    ),
    *(
        idle_without(name, changed(argument), GENERATIVE, tasks=SUPERVISED)
        for name, argument in (
            ("yes_is_a_generative_rerankers", "generative_reranker_positive_token"),
            ("no_is_a_generative_rerankers", "generative_reranker_negative_token"),
        )
    ),
    *(
        idle_without(name, changed(argument), is_("infonce_use_batch", True), tasks=SUPERVISED)
        for name, argument in (
            ("fake_negatives_are_of_a_batch", "infonce_mask_fake_negative"),
            ("queries_are_of_a_batch", "infonce_include_qq"),
            ("documents_are_of_a_batch", "infonce_include_dd"),
        )
    ),
    idle_without(
        "a_margin_is_of_fake_negatives",
        changed("infonce_fake_neg_margin"),
        is_("infonce_mask_fake_negative", True),
        tasks=SUPERVISED,
    ),
    *(
        rule_of(name, condition, GROUPED, because="its loss is over whole texts", tasks=SUPERVISED)
        for name, rule_of, condition in (
            ("texts_have_no_token_losses_to_reweight", excludes, is_("enable_dft_loss", True)),
            ("texts_have_no_losses_of_channels", idle_with, is_("enable_channel_loss", True)),
        )
    ),
    *(
        excludes(
            name, is_set(argument), GROUPED, because="stored tokens do not say which texts they are", tasks=SUPERVISED
        )
        for name, argument in (
            ("cached_data_has_no_texts", "cached_dataset"),
            ("cached_validation_data_has_no_texts", "cached_val_dataset"),
        )
    ),
)
