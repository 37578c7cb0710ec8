"""Compares our model on images and videos with transformers' own: logits, the loss, every gradient, the tower's too.

`make_reference` runs transformers in the test's process, sample by sample; `compare` runs on gloo ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_trainjob.families.weights import in_table
from tests.support.models.tiny_model import VOCAB_SIZE, auto_class, transformers_config
from tests.support.ranks import parity

IMAGE, VIDEO, START, END = range(VOCAB_SIZE, VOCAB_SIZE + 4)
PATCH = 4
_SETTINGS = {"recompute_granularity": "none", "calculate_per_token_loss": False, "lora_dropout": 0.0}
_GRIDS: tuple[tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int], ...]], ...] = (
    ((), ()),
    (((1, 4, 6),), ()),
    (((1, 2, 14), (1, 10, 2), (1, 6, 6)), ()),
    ((), ((3, 4, 6),)),
    (((1, 2, 4),), ((2, 2, 4),)),
)
"""The images and the videos of each sample: text, one image, three of odd sizes, a video, one of both."""
_TILES = tuple(
    (tuple((tiles, 4, 4) for tiles in images), tuple((frames, 4, 4) for frames in videos))
    for images, videos in (((), ()), ((3,), ()), ((1, 5, 2), ()), ((), (3,)), ((1,), (2,)))
)
"""The same of a model that cuts images into tiles."""
MICRO_BATCHES = ((0, 2), (1,), (3, 4), (0,))
"""Samples of each micro-batch; the last has text alone."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Largest over all ranks. logits, loss: absolute. gradients: absolute, relative to the tensor's largest. tower:
    the same, over the tower's tensors alone. trained: tensors with a gradient. changed: as in parity.Differences.
    """

    logits: float
    loss: float
    gradients: float
    tower: float
    worst: str
    trained: frozenset[str]
    changed: tuple[str, ...]


def sample(number: int, vision: Any) -> Any:
    """One sample, the same in every process: text of its own around the images, then the videos."""
    import numpy as np

    from megatron_trainer.data.mrope import mrope_positions
    from megatron_trainer.data.values import Sample, joined_pixels

    images, videos = (_TILES if vision.tile else _GRIDS)[number]
    if vision.video_token < 0:  # no videos are read: images of their sizes
        images, videos = (*images, *((1, *sides) for _, *sides in videos)), ()
    random = np.random.default_rng(number)
    ids = random.integers(0, VOCAB_SIZE, 9 + number).tolist()
    for kind, (t, h, w) in [(IMAGE, grid) for grid in images] + [(VIDEO, grid) for grid in videos]:
        is_apart = kind == VIDEO and vision.separates_frames
        for _ in range(t if is_apart else 1):
            frames = 1 if is_apart else t
            token = IMAGE if vision.tile else kind
            ids += [START, *[token] * (frames * h * w // 4), END, *random.integers(0, VOCAB_SIZE, 3).tolist()]
    labels = np.array(ids, dtype=np.int32)
    labels[np.isin(labels, (IMAGE, VIDEO))] = -100
    if vision.tile:
        given = [each for each in (_pixels(images, random, vision), _pixels(videos, random, vision)) if each]
        return Sample(input_ids=np.array(ids, dtype=np.int32), labels=labels, images=joined_pixels(given))
    return Sample(
        input_ids=np.array(ids, dtype=np.int32),
        labels=labels,
        images=_pixels(images, random, vision),
        videos=_pixels(videos, random, vision),
        position_ids_3T=mrope_positions(np.array(ids), images, vision, video_grids=videos),
    )


def _pixels(grids: Any, random: Any, vision: Any) -> Any:
    import numpy as np

    from megatron_trainer.data.values import Pixels

    if not grids:
        return None
    number = sum(t * h * w for t, h, w in grids)
    values = random.standard_normal((number, vision.patch_values)).astype(np.float32)
    return Pixels(values_PD=values, grid_N3=np.array(grids, dtype=np.int64))


def write_adapter(directory: Path, settings: dict[str, Any], adapter: Path) -> frozenset[str]:
    """Writes the random adapters with which `compare` trains; the names of the adapted modules. Runs on every rank."""
    from megatron_trainer.convert.adapter import save_adapter
    from megatron_trainer.lora import agree
    from megatron_trainer.lora.adapter import MODULE
    from megatron_trainer.lora.names import named_modules

    models, spec, args = _built(directory, {"train_type": "lora", **settings})
    save_adapter(models, spec, args, adapter)
    return agree.union(name for name, module in named_modules(models) if hasattr(module, MODULE))


def make_reference(directory: Path, vision: Any, adapter: Path | None = None) -> Path:
    """The file with transformers' logits of each sample, the mean loss of the micro-batches, and its gradients.

    adapter: loaded by peft; then the gradients are those of its matrices in the tower and in stacked experts.
    """
    import torch
    from peft import PeftModel

    path = (adapter or directory) / "reference-images.pt"
    if path.exists():
        return path
    config = transformers_config(directory)
    model = auto_class(config.model_type).from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    logits, loss = {}, torch.zeros(())
    for batch in MICRO_BATCHES:
        total, count = torch.zeros(()), 0
        for number in batch:
            one = sample(number, vision)
            logits[number] = logits_of_transformers(model, one, vision)
            labels = torch.from_numpy(one.labels.astype("int64"))[1:]
            total = total + torch.nn.functional.cross_entropy(logits[number][:-1], labels, reduction="sum")
            count += int((labels >= 0).sum())
        loss = loss + total / count / len(MICRO_BATCHES)
    loss.backward()
    found = {
        "logits": {number: each.detach() for number, each in logits.items()},
        "loss": loss.detach(),
        "gradients": _of_adapters(model) if adapter else parity.stored_gradients(model, directory / "gradients-images"),
    }
    torch.save(found, path)
    return path


def _of_adapters(model: Any) -> dict[str, Any]:
    """The gradients of the adapters of the tower and of experts, by the names that they have in training here.

    The tests of gpt-oss compare adapters of its form of stacks. GLM-4.5V stores experts one by one, and peft joins
    the adapters of gate and up.
    """
    found = {}
    has_plain_stacks = model.config.get_text_config().model_type not in ("gpt_oss", "glm4v_moe_text", "llama4_text")
    for name, parameter in model.named_parameters():
        if ".experts." in name and parameter.grad is not None and has_plain_stacks:
            found |= _of_experts(name, parameter.grad)
        own = in_table(name.removeprefix("base_model.model."))
        if ".modules_to_save." in own:  # the tower in full
            found[own.replace(".modules_to_save.default.", ".")] = parameter.grad
        elif own.startswith("visual.") and parameter.grad is not None:
            module, half = own.removesuffix(".default.weight").rsplit(".lora_", 1)
            found[f"{module}.lora.{half}"] = parameter.grad
    return found


def _of_experts(name: str, gradient: Any) -> dict[str, Any]:
    """That of A [E x r, inputs] or B [outputs, r x E] of a stack, expert by expert. Four experts."""
    layer = name.partition(".layers.")[2].partition(".")[0]
    linear = "linear_fc1" if ".base_layer." in name else "linear_fc2"
    half = "A" if ".lora_A." in name else "B"
    by_expert = gradient.chunk(4) if half == "A" else gradient.unflatten(1, (-1, 4)).unbind(-1)
    of_layer = f"decoder.layers.{layer}.mlp.experts.local_experts."
    return {f"{of_layer}{expert}.{linear}.lora.{half}": each for expert, each in enumerate(by_expert)}


def logits_of_transformers(model: Any, one: Any, vision: Any) -> Any:
    """Logits [T, V] of one sample."""
    import torch

    ids = torch.from_numpy(one.input_ids.astype("int64"))[None]
    if vision.pads_images:
        return model(ids, **_padded(one, ids)).logits[0]
    if vision.tile:
        tiles = None if one.images is None else torch.from_numpy(one.images.values_PD).view(-1, 3, 16, 16)
        return model(ids, pixel_values=tiles).logits[0]
    given: dict[str, Any] = {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}
    if one.images is not None:
        given |= {"pixel_values": torch.from_numpy(one.images.values_PD)}
        given |= {"image_grid_thw": torch.from_numpy(one.images.grid_N3)}
    if one.videos is not None:
        given |= {"pixel_values_videos": torch.from_numpy(one.videos.values_PD)}
        given |= {"video_grid_thw": torch.from_numpy(one.videos.grid_N3)}
    if one.images is None and one.videos is None:
        given = {}
    return model(ids, **given).logits[0]


def _padded(one: Any, ids: Any) -> dict[str, Any]:
    """The images of a sample as rows of one length, longer than any, with the column and row of each patch."""
    import torch

    if one.images is None:
        return {}
    longest = 4 + int(one.images.grid_N3.prod(-1).max())
    values = torch.zeros(len(one.images.grid_N3), longest, one.images.values_PD.shape[1])
    places = torch.full((*values.shape[:2], 2), -1)
    first = 0
    for number, (_, rows, columns) in enumerate(one.images.grid_N3.tolist()):
        count = rows * columns
        values[number, :count] = torch.from_numpy(one.images.values_PD[first : first + count])
        places[number, :count] = torch.tensor([(x, y) for y in range(rows) for x in range(columns)])
        first += count
    kinds = {"mm_token_type_ids": (ids == IMAGE).int()}
    return {"pixel_values": values, "image_position_ids": places, **kinds}


def _built(directory: Path, settings: dict[str, Any], virtual_stages: int | None = None) -> Any:
    """(models, spec, args) with the parts frozen that are to be, and random adapters under LoRA."""
    import torch

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.lora.freeze import freeze
    from megatron_trainer.lora.inject import add_adapters
    from megatron_trainer.lora.inject import settings as adapter_settings
    from megatron_trainer.lora.layer import generator_of
    from megatron_trainer.lora.names import is_adapter, named_parameters
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    free = {"freeze_vit": False, "freeze_aligner": False}
    args = TrainArgs(model=str(directory), **{**_SETTINGS, **free, **settings})
    parallel.initialize(args, virtual_stages=virtual_stages)
    spec = read_model(directory, args)
    models = build_model(spec, args, backends.select())
    load_weights(models, spec)
    if args.train_type == "full":
        freeze(models, args)
        return models, spec, args
    add_adapters(models, args)
    with torch.no_grad():
        for name, parameter in named_parameters(models):
            if is_adapter(name) and name.endswith(".B") and (name.startswith("visual.") or ".experts." in name):
                drawn = torch.randn(parameter.shape, generator=generator_of(name, adapter_settings(args)))
                parameter.copy_(0.1 * drawn)
            elif parameter.requires_grad and not is_adapter(name):  # as after training
                drawn = torch.randn(parameter.shape, generator=generator_of(name, adapter_settings(args)))
                parameter.add_(0.02 * drawn)
    return models, spec, args


def compare(
    directory: Path, settings: dict[str, Any], *, virtual_stages: int | None = None, reference: Path | None = None
) -> Found:
    """Trains one step in the layout of `settings` without updating, and compares. All ranks return the same."""
    import torch
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads

    from megatron_trainer.lora.names import named_parameters

    models, spec, args = _built(directory, settings, virtual_stages)
    stored, exported = parity.in_table_names(directory), parity.gathered(models, spec)
    changed = [n for n in stored.keys() | exported.keys() if not parity._same(stored.get(n), exported.get(n))]
    if args.train_type == "lora_llm":
        changed = [name for name in changed if not name.startswith("visual.")]
    config = models[0].config
    of_ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=False, grad_reduce_in_fp32=True, overlap_grad_reduce=args.overlap_grad_reduce
    )
    chunks = [DistributedDataParallel(config, of_ddp, model) for model in models]
    config.finalize_model_grads_func = finalize_model_grads
    for chunk in chunks:
        chunk.train()
    expected = torch.load(reference or directory / "reference-images.pt")
    logits, loss = _run(chunks, args, spec, expected)
    if args.train_type == "full":
        ours = parity.gathered(models, spec, read=lambda parameter: getattr(parameter, "main_grad", None))
    else:
        ours = {name: p.main_grad for name, p in named_parameters(models) if p.requires_grad}
    theirs = expected["gradients"]
    errors = {name: _error(name, ours, theirs) for name in ours.keys() & theirs.keys()}
    worst = max(errors, key=errors.__getitem__, default="")
    tower = [error for name, error in errors.items() if name.startswith("visual.")]
    return Found(
        logits=parity._largest(logits),
        loss=parity._largest(loss),
        gradients=errors.get(worst, 0.0),
        tower=max(tower, default=-1.0),
        worst=worst,
        trained=frozenset(ours),
        changed=tuple(sorted(changed)),
    )


def _error(name: str, ours: Any, theirs: Any) -> float:
    """As parity's. A bias of keys without rotation moves all scores of a query alike: its gradient is nothing but
    rounding, which is compared with that of the queries' bias.
    """
    if name.startswith("visual.") and name.endswith(".k_proj.bias"):
        scale = theirs[name.replace(".k_proj.", ".q_proj.")].abs().max()
        return float((ours[name] - theirs[name]).abs().max() / scale)
    return parity._relative(ours[name], theirs[name])


def _run(chunks: Any, args: Any, spec: Any, reference: Any) -> tuple[float, float]:
    """One forward and backward pass over this rank's micro-batches; the largest differences of logits and loss here."""
    import torch
    from megatron.core import parallel_state, tensor_parallel

    from megatron_trainer import parallel
    from megatron_trainer.data.collate import RowShape, collate, row_multiple, sample_multiple
    from megatron_trainer.models.logits import mask_padded_columns
    from megatron_trainer.tasks.forward import forward

    cp, vision = args.context_parallel_size, spec.model.vision
    shape = RowShape(
        pad_id=0,
        padding_free=args.padding_free,
        sample_multiple=sample_multiple(context_parallel=cp),
        row_multiple=row_multiple(
            tensor_parallel=args.tensor_model_parallel_size,
            context_parallel=cp,
            sequence_parallel=args.sequence_parallel,
            fp8=False,
        ),
    )
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine = [numbers for index, numbers in enumerate(MICRO_BATCHES) if index % size == rank]
    batches = [collate([sample(number, vision) for number in numbers], shape) for numbers in mine]
    found, shares = [0.0], []

    def forward_step(iterator: Any, model: Any) -> Any:
        number = next(iterator)
        whole = batches[number]
        local = parallel.local_part(whole)
        output = forward(model, whole, local, output_processor=None)

        def loss(logits: Any) -> Any:
            masked = mask_padded_columns(logits.float(), spec).transpose(0, 1).contiguous()
            found.append(_logit_difference(logits, whole, [reference["logits"][each] for each in mine[number]], spec))
            losses = tensor_parallel.vocab_parallel_cross_entropy(masked, local.labels_BT.t().clamp(min=0).contiguous())
            total = (losses * local.loss_weight_BT.t()).sum() / whole.loss_weight_BT.sum()
            shares.append(total.detach().clone())  # the schedule scales its own in place
            return total, {}

        return output, loss

    parity.run_schedule(chunks, forward_step, len(batches), 128)
    torch.distributed.barrier()
    if not shares:
        return max(found), 0.0
    total = torch.stack(shares).mean()
    torch.distributed.all_reduce(total, group=parallel_state.get_context_parallel_group())
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
    return max(found), float((total / size - reference["loss"]).abs())


def _logit_difference(logits: Any, whole: Any, reference: Any, spec: Any) -> float:
    """Over the real tokens of this rank."""
    import torch
    from megatron.core import parallel_state

    from megatron_trainer import parallel

    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(logits) for _ in range(group.size())]
    torch.distributed.all_gather(parts, logits.detach().contiguous(), group=group)
    ours_BTV = torch.cat(parts, -1)[..., : spec.vocab_size]
    theirs_BTV = torch.zeros(*whole.tokens_BT.shape, spec.vocab_size)
    theirs_BTV[whole.sequence_BT >= 0] = torch.cat(reference)
    size = parallel_state.get_context_parallel_world_size()
    is_real_BT = parallel.local_tokens(whole, whole.sequence_BT >= 0)
    if size > 1:
        bounds = parallel.bounds(whole.cu_seqlens, whole.tokens_BT.shape[1])
        mine = parallel.context_positions(bounds, rank=parallel_state.get_context_parallel_rank(), size=size)
        theirs_BTV = theirs_BTV[:, mine]
    return float((ours_BTV - theirs_BTV)[is_real_BT].abs().max())


def runs_of_a_layer(directory: Path, settings: dict[str, Any]) -> tuple[int, bool]:
    """How often the first layer of the tower runs in one step, and whether it is recomputed as a reentrant graph."""
    import torch

    from megatron_trainer.models.tower import features, layers_and_first

    models, spec, args = _built(directory, settings)
    tower, vision = models[0].visual, spec.model.vision
    layers, _ = layers_and_first(tower)
    runs = []
    layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))  # recomputation ends inside this part
    grid = (1, 4, 4) if vision.tile else (1, 4, 6)
    pixels = torch.randn(grid[1] * grid[2], vision.patch_values)
    tower.train()
    features(tower, vision, pixels, torch.tensor([grid]))[0].sum().backward()
    keywords = layers[0]._gradient_checkpointing_func.keywords if args.vit_gradient_checkpointing else {}
    return len(runs), bool(keywords.get("use_reentrant"))


def features_in_half(directory: Path) -> float:
    """The largest difference of the tower's features in bfloat16 from transformers', wrapped as in training."""
    import torch
    from megatron.core.transformer.module import Float16Module

    from megatron_trainer.models.tower import features

    models, spec, _ = _built(directory, {"torch_dtype": "bfloat16"})
    wrapped = Float16Module(models[0].config, models[0])
    kind = transformers_config(directory).model_type
    theirs = auto_class(kind).from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="sdpa")
    one = sample(2, spec.model.vision)
    pixels, grid = torch.from_numpy(one.images.values_PD), torch.from_numpy(one.images.grid_N3)
    with torch.no_grad():
        vision, whole = spec.model.vision, getattr(theirs, "model", theirs)
        own = getattr(whole, "visual", whole)
        ours, expected = (features(each.eval(), vision, pixels, grid)[0] for each in (wrapped.module.visual, own))
    return float((ours.float() - expected.float()).abs().max())


def refusal_of_lost_images(directory: Path) -> str:
    """The message about image tokens without features."""
    import torch

    models, spec, _ = _built(directory, {})
    tokens = torch.tensor([[5, IMAGE, 6]])
    try:
        models[0](tokens, torch.arange(3)[None], None)
    except ValueError as error:
        return str(error)
    return ""


def warnings_of_adapters(directory: Path, settings: dict[str, Any]) -> list[str]:
    """What is warned of while adapters are added."""
    import logging

    said: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Kept(level=logging.WARNING)
    logging.getLogger("megatron_trainer").addHandler(handler)
    try:
        _built(directory, settings)
    finally:
        logging.getLogger("megatron_trainer").removeHandler(handler)
    return said
