"""Models with images: what is frozen, the rates of the parts, and recomputation in the tower."""

from __future__ import annotations

from megatron_trainjob import families
from megatron_trainjob.args.field import TRAINING
from megatron_trainjob.args.head import TOWER, modules_to_save
from megatron_trainjob.args.rules.condition import above, is_, is_set
from megatron_trainjob.args.rules.pair import excludes, idle_without
from megatron_trainjob.args.rules.rule import Facts, Rule, rule
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs

CHECKPOINT_KEYWORDS = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
"""Of torch.utils.checkpoint, with plain values."""


def _sees_images(facts: Facts) -> bool:
    family = families.of(facts.config)
    return family is not None and bool(family.text_type)


_OF_THE_DECODER = frozenset(
    ("all-linear", "all-router", "all-embedding", "linear_qkv", "linear_proj", "word_embeddings", "output_layer")
)
"""Names of modules, and words for several, that choose none of a frozen tower."""


@rule("freeze_llm", needs_model=True)
def a_text_model_is_not_frozen_whole(facts: Facts) -> str:
    """The language model is all there is."""
    if not facts.args.freeze_llm or _sees_images(facts):
        return ""
    return "a text model has no other part to train; remove it"


def _idle_in_a_text_model(name: str) -> Rule:
    def broken(facts: Facts) -> str:
        default = ARGUMENTS[name].default_for(facts.task)
        if getattr(facts.args, name) == default or _sees_images(facts):
            return ""
        return "has no effect: a text model has no such part"

    return Rule(name=f"{name}_belongs_to_images", about=(name,), broken=broken, needs_model=True, severity="warning")


@rule(
    *("freeze_llm", "freeze_vit", "freeze_aligner", "train_type", "trainable_parameters", "trainable_parameters_regex"),
    *("target_modules", "target_regex"),
)
def a_part_is_trained(facts: Facts) -> str:
    """Freezing all three parts leaves nothing, unless parameters or modules are chosen by name."""
    args = facts.args
    by_name: object = args.trainable_parameters or args.trainable_parameters_regex
    if args.train_type == "lora_llm":
        return ""
    if args.train_type != "full":
        by_name = args.target_regex or args.target_modules != ARGUMENTS["target_modules"].default
    if not (args.freeze_llm and args.freeze_vit and args.freeze_aligner) or by_name:
        return ""
    return "with freeze_vit and freeze_aligner, which are true unless set, leaves nothing to train; set one to false"


@rule("train_type", needs_model=True)
def adapters_beside_a_tower_need_one(facts: Facts) -> str:
    """lora_llm trains the tower in full, which a text model does not have."""
    if facts.args.train_type != "lora_llm" or _sees_images(facts):
        return ""
    return "a text model has no vision tower to train beside adapters; use lora"


@rule("train_type", "freeze_llm", "freeze_vit", "freeze_aligner")
def the_tower_trains_beside_adapters(facts: Facts) -> str:
    """lora_llm says what trains; a part that is frozen as well contradicts it."""
    args = facts.args
    if args.train_type != "lora_llm":
        return ""
    parts = ("freeze_llm", "freeze_vit", "freeze_aligner")
    frozen = [name for name in parts if getattr(args, name) and (name == "freeze_llm" or name in facts.given)]
    return f"trains all three parts, which {' and '.join(frozen)}: true contradicts; remove it" if frozen else ""


def _may_train_by_name(args: TrainArgs) -> bool:
    """Whether a name may choose a part of the tower, frozen or not; the names of a model are not known here."""
    if args.train_type == "full":
        is_chosen = any(name.startswith(TOWER) for name in args.trainable_parameters)
        return is_chosen or args.trainable_parameters_regex is not None
    named = {*args.target_modules, *modules_to_save(args)} - _OF_THE_DECODER
    return bool(named) or args.target_regex is not None


def _rate_of_a_trained_part(name: str, rate: str, frozen: str) -> Rule:
    """A frozen part has no parameter to which its rate would apply."""

    def broken(facts: Facts) -> str:
        args = facts.args
        is_idle = getattr(args, rate) is not None and bool(getattr(args, frozen)) and not _may_train_by_name(args)
        return f"has no effect with {frozen}: true" if is_idle else ""

    chosen = ("trainable_parameters", "trainable_parameters_regex", "target_modules", "target_regex")
    about = (rate, frozen, "train_type", "modules_to_save", "task_type", "rlhf_type", *chosen)
    return Rule(name=name, about=about, broken=broken, tasks=TRAINING, severity="warning")


@rule("vit_lr", "aligner_lr", "min_lr")
def the_rates_of_the_parts_fall(facts: Facts) -> str:
    """min_lr is the end of every rate."""
    args = facts.args
    low = [
        name for name in ("vit_lr", "aligner_lr") if (rate := getattr(args, name)) is not None and rate < args.min_lr
    ]
    return f"min_lr {args.min_lr:g} is above {' and '.join(low)}; set a smaller one" if low else ""


@rule("gradient_checkpointing_kwargs")
def keywords_of_recomputation_are_known(facts: Facts) -> str:
    """torch.utils.checkpoint takes them as they are."""
    given = facts.args.gradient_checkpointing_kwargs or {}
    wrong = [
        str(key) for key, value in given.items() if key not in CHECKPOINT_KEYWORDS or not isinstance(value, bool | str)
    ]
    return f"has {', '.join(wrong)}; known are {', '.join(CHECKPOINT_KEYWORDS)}, true or false" if wrong else ""


RULES = (
    a_text_model_is_not_frozen_whole,
    a_part_is_trained,
    *(
        _idle_in_a_text_model(name)
        for name in (
            *("freeze_vit", "freeze_aligner", "vit_gradient_checkpointing", "gradient_checkpointing_kwargs"),
            *("vit_lr", "aligner_lr"),
        )
    ),
    excludes(
        "a_frozen_language_model_has_one_stage",
        is_("freeze_llm", True),
        above("pipeline_model_parallel_size", 1),
        because="only the first stage would have something to train",
    ),
    the_rates_of_the_parts_fall,
    keywords_of_recomputation_are_known,
    adapters_beside_a_tower_need_one,
    the_tower_trains_beside_adapters,
    _rate_of_a_trained_part("a_rate_of_the_tower_needs_it_trained", "vit_lr", "freeze_vit"),
    _rate_of_a_trained_part("a_rate_of_the_aligner_needs_it_trained", "aligner_lr", "freeze_aligner"),
    idle_without(
        "keywords_of_recomputation_need_it",
        is_set("gradient_checkpointing_kwargs"),
        is_("vit_gradient_checkpointing", True),
    ),
)
