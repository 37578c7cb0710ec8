"""The data settings of the arguments, as values for the parts of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megatron_trainer.data.collate import RowShape, row_multiple, sample_multiple
from megatron_trainer.data.conversation.chat_template import TemplateSettings
from megatron_trainer.data.conversation.formats import Recognition
from megatron_trainer.data.conversation.group import Grouping
from megatron_trainer.data.conversation.label import Label
from megatron_trainer.data.conversation.tool_answers import MARKERS
from megatron_trainer.data.encoding.encode import EncodeSettings
from megatron_trainer.data.reading.catalog import Catalog, looked_up, read_catalog
from megatron_trainer.data.reading.spec import DatasetSpec, parse_spec
from megatron_trainer.data.vision.settings import VisionSettings
from megatron_trainer.failure import InvalidInput
from megatron_trainjob import input_file
from megatron_trainjob.args import derive, head, template_names
from megatron_trainjob.args.field import TrainingTask
from megatron_trainjob.violation import Violation

if TYPE_CHECKING:
    from megatron_trainjob.args.tree import TrainArgs


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """All settings that determine which items a run trains on, in which order."""

    datasets: tuple[DatasetSpec, ...]
    val_datasets: tuple[DatasetSpec, ...]
    encode: EncodeSettings
    seed: int
    shuffle: bool
    shuffle_validation: bool
    split_ratio: float
    interleave_prob: tuple[float, ...] | None
    stopping_strategy: Literal["first_exhausted", "all_exhausted"]
    num_processes: int
    is_strict: bool
    reads_cache: bool
    tokenizing: Literal["before", "lazy", "streaming"]
    cached: tuple[Path, ...]
    cached_validation: tuple[Path, ...]
    packing_length: int | None
    sample_multiple: int
    window_rows: int
    num_epochs: int | None
    redownloads: bool
    hub_token: str | None
    splits_turns: bool = False


def label_of(args: TrainArgs, config: Mapping[str, Any]) -> Label | None:
    """The kind of labels in a classifier's rows, None for other models. config: of the model."""
    if args.task_type != "seq_cls":
        return None
    names = config.get("id2label") or {}
    ordered = tuple(str(name) for _, name in sorted(names.items(), key=lambda entry: int(entry[0])))
    count = head.num_scores(args, config)
    return Label(problem=head.problem_type(args, config), count=count, names=ordered if len(ordered) == count else ())


def _grouping(args: TrainArgs, task: TrainingTask) -> Grouping | None:
    """How rows of several texts are read, None for other rows."""
    kind = head.group_kind(args) if task == "sft" else None
    if kind is None:
        return None
    loss = head.group_loss(args)
    answers = (args.generative_reranker_positive_token, args.generative_reranker_negative_token)
    return Grouping(
        kind=kind,
        needs_label=kind == "embedding" and loss != "infonce",
        is_binary=loss in ("contrastive", "online_contrastive"),
        hard_negatives=args.infonce_hard_negatives,
        max_positives=args.max_positive_samples,
        max_negatives=args.max_negative_samples,
        min_documents=args.listwise_reranker_min_group_size if loss == "listwise_reranker" else 1,
        answers=answers if kind == "generative_reranker" else Grouping.answers,
        seed=args.data_seed,
    )


def data_settings(
    args: TrainArgs,
    *,
    task: TrainingTask,
    max_length: int,
    label: Label | None = None,
    vision: VisionSettings | None = None,
) -> DataSettings:
    """The settings of a run; max_length is resolved (the model's, if the argument is unset).

    label, vision: of the model, None where it has no such head or is a text model.

    Raises InvalidInput with everything that is wrong with the dataset entries and the system prompt file.
    """
    violations: list[Violation] = []
    catalog = read_catalog(args.custom_dataset_info, violations)
    multiple = sample_multiple(context_parallel=args.context_parallel_size)
    settings = DataSettings(
        datasets=_specs("dataset", args.dataset, catalog, violations),
        val_datasets=_specs("val_dataset", args.val_dataset, catalog, violations),
        encode=replace(
            _encode_settings(args, task, max_length // multiple * multiple, violations, label), vision=vision
        ),
        seed=args.data_seed,
        shuffle=args.dataset_shuffle,
        shuffle_validation=args.val_dataset_shuffle,
        split_ratio=0.0 if args.val_dataset or args.streaming else args.split_dataset_ratio,
        interleave_prob=tuple(args.interleave_prob) if args.interleave_prob else None,
        stopping_strategy=args.stopping_strategy,
        num_processes=args.dataset_num_proc,
        is_strict=args.strict,
        reads_cache=args.load_from_cache_file,
        tokenizing="streaming" if args.streaming else "lazy" if derive.tokenizes_lazily(args, task) else "before",
        cached=tuple(Path(folder) for folder in args.cached_dataset),
        cached_validation=tuple(Path(folder) for folder in args.cached_val_dataset),
        window_rows=args.shuffle_buffer_size,
        num_epochs=args.max_epochs,
        redownloads=args.download_mode == "force_redownload",
        packing_length=(args.packing_length or max_length) if args.packing else None,
        sample_multiple=multiple,
        hub_token=args.hub_token,
        splits_turns=args.split_turns,
    )
    violations += _about_probabilities(args)
    if violations:
        raise InvalidInput(tuple(violations))
    return settings


def row_shape(args: TrainArgs, *, pad_id: int) -> RowShape:
    """How micro-batches are padded in this run."""
    return RowShape(
        pad_id=pad_id,
        padding_free=args.padding_free or args.packing,
        padding_side=args.padding_side,
        splits_groups=head.group_kind(args) is not None,
        sample_multiple=sample_multiple(context_parallel=args.context_parallel_size),
        row_multiple=row_multiple(
            tensor_parallel=args.tensor_model_parallel_size,
            context_parallel=args.context_parallel_size,
            sequence_parallel=args.sequence_parallel,
            fp8=args.fp8_format is not None,
        ),
    )


def _encode_settings(
    args: TrainArgs, task: TrainingTask, max_length: int, violations: list[Violation], label: Label | None
) -> EncodeSettings:
    return EncodeSettings(
        recognition=Recognition(
            columns=_columns(args.columns, violations),
            needs_rejected=task == "rlhf" and args.rlhf_type != "kto",
            needs_margin=task == "rlhf" and args.rlhf_type == "rm",
            needs_label=task == "rlhf" and args.rlhf_type == "kto",
            needs_question=task != "pt" and args.use_chat_template,
            seed=args.data_seed,
            label=label,
            grouping=_grouping(args, task),
            model_name=_two_languages("model_name", args.model_name, violations),
            model_author=_two_languages("model_author", args.model_author, violations),
        ),
        template=None if template_names.is_own(args.template) else args.template,
        use_chat_template=args.use_chat_template and task != "pt",
        system=_system(args.system, violations),
        max_length=max_length,
        truncation_strategy=args.truncation_strategy,
        loss_scale="all" if task == "pt" else args.loss_scale,
        chat=_chat_settings(args),
        keeps_incomplete=args.keep_incomplete_rows,
        agent_template=args.agent_template if args.agent_template in ("hermes", *MARKERS) else None,
    )


def _chat_settings(args: TrainArgs) -> TemplateSettings:
    thinking = {} if args.enable_thinking is None else {"enable_thinking": args.enable_thinking}
    return TemplateSettings(
        preserve_thinking=args.preserve_thinking,
        add_non_thinking_prefix=args.add_non_thinking_prefix,
        variables={**(args.chat_template_kwargs or {}), **thinking},
        stop_words=tuple(args.stop_words),
    )


def _specs(path: str, entries: Sequence[str], catalog: Catalog, violations: list[Violation]) -> tuple[DatasetSpec, ...]:
    specs = []
    for number, entry in enumerate(entries):
        try:
            specs.append(looked_up(parse_spec(entry), catalog))
        except ValueError as err:
            violations.append(Violation(path=f"{path}[{number}]", value=entry, message=str(err)))
    return tuple(specs)


def _about_probabilities(args: TrainArgs) -> list[Violation]:
    given, wanted = args.interleave_prob or (), len(args.dataset) + len(args.cached_dataset)
    if given and len(given) != wanted:
        message = f"{len(given)} probabilities for {wanted} datasets; use one for each"
        return [Violation(path="interleave_prob", value=given, message=message)]
    return []


def _columns(columns: Mapping[str, object] | None, violations: list[Violation]) -> dict[str, str]:
    wrong = {name: target for name, target in (columns or {}).items() if not isinstance(target, str)}
    for name, target in wrong.items():
        message = "must be the new name of the column, such as query or response"
        violations.append(Violation(path=f"columns.{name}", value=target, message=message))
    return {name: target for name, target in (columns or {}).items() if isinstance(target, str)}


def _two_languages(path: str, names: Sequence[str] | None, violations: list[Violation]) -> tuple[str, str] | None:
    """Chinese and English; one value serves both."""
    if not names:
        return None
    if len(names) > 2:
        message = "takes the Chinese and the English one, or one for both"
        violations.append(Violation(path=path, value=names, message=message))
    return names[0], names[-1]


def _system(system: str | None, violations: list[Violation]) -> str | None:
    """The system prompt: the argument itself, with \\n as a line end, or the content of the .txt file that it names."""
    if system is None or not system.endswith(".txt"):
        return system.replace("\\n", "\n") if system else None
    try:
        return input_file.read_text(Path(system))
    except (OSError, ValueError) as err:
        violations.append(Violation(path="system", value=system, message=f"the file cannot be read: {err}"))
        return None
