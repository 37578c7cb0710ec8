"""The image input of one model: its image processor, its image tokens, and the user's image settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jinja2
from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.values import Conversation, Medium, Message, RowError
from megatron_trainer.data.vision import boxes, canvas, files, token_ids, video
from megatron_trainer.data.vision.boxes import Boxes
from megatron_trainer.data.vision.canvas import CanvasForm
from megatron_trainer.data.vision.form import PatchForm, ScaledForm, TileForm, size_rule
from megatron_trainer.data.vision.frames import open_frames
from megatron_trainer.data.vision.pixels import DiskCache, ImageReader
from megatron_trainer.data.vision.places import placed, trimmed
from megatron_trainer.data.vision.rows import MARK, Found, Media
from megatron_trainer.data.vision.settings import VisionSettings
from megatron_trainer.data.vision.tokens import Shifted, VisionTokens
from megatron_trainer.failure import InvalidInput
from megatron_trainjob import families, input_file
from megatron_trainjob.args import pixels
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.families.vision import Vision
from megatron_trainjob.processor_folder import IMAGE_TOKENS
from megatron_trainjob.violation import Violation

if TYPE_CHECKING:
    from megatron_trainjob.args.tree import TrainArgs

LEFT_OUT = "the chat template leaves out an image"
CACHE = "images"
"""Folder of resized images, in that of the tokenized data."""
ABSOLUTE_BOXES = frozenset({"qwen2_5_vl"})
"""Models that write coordinates in pixels of the resized image; the others in thousandths."""
_PROBE = "behind-it"
_LONGEST_BEHIND = 8
_TAGS = ("<ref>", "</ref>", "<box>", "</box>")
BOUNDS_OF_FRAMES = frozenset({"glm4v", "glm4v_moe"})
"""Models whose processor bounds the pixels of all frames that an image becomes; the others bound those of the image."""
AnyForm = PatchForm | TileForm | ScaledForm | CanvasForm
_BOX_TOKENS = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """Reads the images of rows for one model. Picklable."""

    settings: VisionSettings
    reader: ImageReader
    tokens: VisionTokens
    patch_size: int
    marks: boxes.Marks = field(default_factory=boxes.Marks)

    def placed(self, conversation: Conversation, media: Media, file: str) -> Conversation:
        """The conversation with its images, measured, at their places.

        file: the row's, or the folder of a saved dataset; relative paths start in that folder. Raises RowError for an
        image that cannot be used.
        """
        folders = self._folders(file)
        measured, notes = [], dict.fromkeys((*conversation.notes, *media.notes))
        for found in media.all:
            medium, note = self._measured(found, folders)
            measured.append(medium)
            notes |= {note: None} if note else {}
        writing = Boxes(
            objects=media.objects,
            images=[measured[number] for number in media.images] or [m for m in measured if not m.is_video],
            scale=self.settings.boxes,
            patch_size=self.patch_size,
            marks=self.marks,
        )
        made = placed(replace(conversation, notes=tuple(notes), media=tuple(measured)), media, writing)
        return trimmed(made) if self.settings.trims else made

    def shown(self, text: str, messages: Sequence[Message], media: Sequence[Medium]) -> tuple[Shifted, list[Medium]]:
        """The rendered text with the tokens of images in place of marks, and the images in the order of the text.

        Raises RowError when the template omits one.
        """
        shifted = Shifted(text, self.settings, media)
        expected = [int(found[1]) for message in messages for found in MARK.finditer(message.content)]
        if sorted(shifted.numbers) != sorted(expected):
            raise RowError(LEFT_OUT, f"{len(expected)} in the row, {len(shifted.numbers)} in the text")
        return shifted, [media[number] for number in shifted.numbers]

    def _folders(self, file: str) -> tuple[Path, ...]:
        if self.settings.root is not None:
            return (Path(self.settings.root).expanduser(),)
        source = Path(file)
        own = source if source.is_dir() else source.parent if source.is_file() else None
        return (Path.cwd(),) if own is None else (own, Path.cwd())

    def _measured(self, found: Found, folders: Sequence[Path]) -> tuple[Medium, str]:
        if found.is_video:
            return self.reader.measure_video(open_frames(found.value, folders))
        return self.reader.measure(files.open_image(found.value, folders))


def image_rows_of(
    args: TrainArgs,
    directory: Path,
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    cache: Path | None,
) -> ImageRows | None:
    """The image input of the model in this folder under these arguments; None for a text model.

    config: of the model. cache: folder of the tokenized data.

    Raises InvalidInput when its image processor is missing.
    """
    if "vision_config" not in config or not IMAGE_TOKENS & config.keys():
        return None
    tower = _own_tower(directory, config)
    form = _form(args, directory, config, tower)
    rules = _rules(args, directory, config, tower)
    tokens = _tokens(config, tokenizer, tower, form, rules)

    def text(token: int) -> str:
        return "" if token < 0 else str(tokenizer.convert_ids_to_tokens(token))

    settings = VisionSettings(
        processor={} if isinstance(form, CanvasForm) else form.processor.to_dict(),
        image_token=text(tokens.image),
        video_token=text(tokens.video),
        start_token=text(tokens.start),
        end_token=text(tokens.end),
        video=None if rules is None else asdict(rules),
        boxes=args.norm_bbox or _scale_of(config),
        box_format=pixels.box_format(args),
        root=args.image_root,
        separates_frames=tokens.separates_frames,
        numbers_frames=isinstance(form, TileForm),
        longest_side=0 if tower is None else tower.longest_side,
        **_around(form, tokenizer, text(tokens.image)),
    )
    budget = int(args.image_cache_gib * 2**30)
    kept = DiskCache(folder=cache / CACHE, budget_bytes=budget) if cache is not None and budget else None
    return ImageRows(
        settings=settings,
        reader=ImageReader(form, kept, rules),
        tokens=tokens,
        patch_size=form.patch_size,
        marks=_marks(tokenizer, settings.box_format),
    )


def _form(args: TrainArgs, directory: Path, config: Mapping[str, Any], tower: Vision | None) -> AnyForm:
    if tower is None:
        return _patches(args, directory, config)
    if tower.separates_tiles:
        return _canvas(args, directory, tower)
    return _tiles(args, directory, tower) if tower.tile else _scaled(args, directory, tower)


def _tokens(
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    tower: Vision | None,
    form: AnyForm,
    rules: video.FrameRules | None,
) -> VisionTokens:
    if tower is None:
        assert isinstance(form, PatchForm)
        separates = rules is not None and rules.separates_frames
        return token_ids.of_patches(config, form.processor.merge_size, separates_frames=separates)
    if tower.separates_tiles:
        return token_ids.of_canvas(tokenizer, tower)
    return token_ids.of_tiles(tokenizer, tower) if tower.tile else token_ids.of_scaled(config, tower)


def _around(form: AnyForm, tokenizer: PreTrainedTokenizerBase, image: str) -> dict[str, Any]:
    """The fields about what the chat template does around an image."""
    if isinstance(form, CanvasForm):
        return {"canvas": form.processor, "behind": _behind(tokenizer, canvas.WHOLE)}
    if isinstance(form, TileForm):
        return {"behind": _behind(tokenizer, image)}
    return _written(tokenizer, image) if isinstance(form, ScaledForm) else {}


def _scale_of(config: Mapping[str, Any]) -> Literal["norm1000", "none"]:
    return "none" if config.get("model_type") in ABSOLUTE_BOXES else "norm1000"


def _processor(directory: Path) -> Any:  # noqa: ANN401 - of transformers
    """The model's image processor in its form without torchvision."""
    from transformers import AutoImageProcessor  # 8 s of imports, which processes that encode text go without

    try:
        return AutoImageProcessor.from_pretrained(directory, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as err:
        raise _unusable(directory, f"its image processor cannot be loaded: {err}") from err


def _patches(args: TrainArgs, directory: Path, config: Mapping[str, Any]) -> PatchForm:
    """Images of any size, within the pixels of the arguments."""
    processor = _processor(directory)
    _refuse_other_patches(directory, processor, config["vision_config"])
    given = pixels.in_pixels(args, processor.patch_size * processor.merge_size)
    frames = processor.temporal_patch_size if config.get("model_type") in BOUNDS_OF_FRAMES else 1
    stated = _bounds(directory, dict(processor.size))
    lowest = given["min_pixels"] * frames if "min_pixels" in given else stated[0]
    highest = given["max_pixels"] * frames if "max_pixels" in given else stated[1]
    lowest, highest = _ordered(lowest, highest, keeps_lowest="min_pixels" in given)
    processor.size = type(processor.size)(shortest_edge=lowest, longest_edge=highest)
    return PatchForm(processor=processor)


def _bounds(directory: Path, size: Mapping[str, int]) -> tuple[int, int]:
    """The fewest and most pixels of the model's own files."""
    lowest, highest = video.bounds_of(size)
    if not lowest or not highest:
        message = f"size of its image processor has {size} instead of shortest_edge and longest_edge, in pixels"
        raise _unusable(directory, message)
    return lowest, highest


def _refuse_other_patches(directory: Path, processor: Any, tower: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Raises InvalidInput for a processor whose patches are not those of the tower. tower: of config.json."""
    if size_rule(processor) is None:
        raise _unusable(directory, f"its image processor is {type(processor).__name__}; take the model's own files")
    names = {
        "patch_size": "patch_size",
        "merge_size": "spatial_merge_size",
        "temporal_patch_size": "temporal_patch_size",
    }
    made = {name: (getattr(processor, name), tower.get(of)) for name, of in names.items()}
    wrong = [f"{name} {own}, its tower {other}" for name, (own, other) in made.items() if other not in (None, own)]
    if wrong:
        raise _unusable(directory, f"its image processor has {'; '.join(wrong)}; take the model's own files")


def _ordered(lowest: int, highest: int, *, keeps_lowest: bool) -> tuple[int, int]:
    """Both bounds, where the user's one may be beyond the model's other. keeps_lowest: that one is the lower bound."""
    return (lowest, max(lowest, highest)) if keeps_lowest else (min(lowest, highest), highest)


def _own_tower(directory: Path, config: Mapping[str, Any]) -> Vision | None:
    """The tower of a model that cuts or scales images as it needs, None of one that takes them as they are."""
    family = families.of(config)
    if family is None or not (family.cuts_images or family.scales_images):
        return None
    try:
        return families.read(config).vision
    except ValueError as err:
        raise _unusable(directory, f"its config.json cannot be read: {err}") from err


def _tiles(args: TrainArgs, directory: Path, tower: Vision) -> TileForm:
    """Images in tiles, as many as the arguments allow."""
    processor = _processor(directory)
    side, tokens = tower.tile, tower.patches_per_tile // tower.merge_size**2
    if (processor.size.height, processor.size.width) != (side, side):
        made = f"{processor.size.height} x {processor.size.width}"
        raise _unusable(directory, f"its image processor makes tiles of {made} pixels, its tower takes {side} x {side}")
    stated = _json(directory / "processor_config.json").get("image_seq_length", tokens)
    if stated != tokens:
        message = (
            f"its processor_config.json says {stated} tokens of a tile (image_seq_length), its tower makes {tokens}"
        )
        raise _unusable(directory, message)
    wanted = pixels.tiles(pixels.in_pixels(args, side), side)
    least, most = wanted.least or processor.min_patches, wanted.most or processor.max_patches
    processor.min_patches, processor.max_patches = _ordered(least, most, keeps_lowest=wanted.least is not None)
    return TileForm(processor=processor, side=side, patch_size=tower.patch_size)


def _canvas(args: TrainArgs, directory: Path, tower: Vision) -> CanvasForm:
    """Images in a canvas of as many tiles as the arguments allow."""
    stored = _json(directory / "preprocessor_config.json")
    stored = stored or _json(directory / "processor_config.json").get("image_processor") or {}
    try:
        rules = canvas.rules_of(stored)
    except (ValueError, KeyError, TypeError) as err:
        raise _unusable(directory, f"the settings of its image processor cannot be used: {err}") from err
    if rules.side != tower.tile:
        made, taken = f"{rules.side} x {rules.side}", f"{tower.tile} x {tower.tile}"
        raise _unusable(directory, f"its image processor makes tiles of {made} pixels, its tower takes {taken}")
    most = pixels.tiles(pixels.in_pixels(args, rules.side), rules.side).most
    return CanvasForm(processor=replace(rules, most=most or rules.most), patch_size=tower.patch_size)


def _scaled(args: TrainArgs, directory: Path, tower: Vision) -> ScaledForm:
    """Images scaled to a number of tokens, within that of the arguments."""
    processor = _processor(directory)
    found = processor.patch_size, processor.pooling_kernel_size
    if found != (tower.patch_size, tower.merge_size):
        wanted = f"{tower.patch_size} pixels, {tower.merge_size} a token"
        made = f"{found[0]} pixels, {found[1]} a token along each side"
        raise _unusable(directory, f"its image processor makes patches of {made}, its tower takes {wanted}")
    side = tower.patch_size * tower.merge_size
    most = pixels.in_pixels(args, side).get("max_pixels")
    if most is not None:
        processor.max_soft_tokens = pixels.budget(most, side)
    return ScaledForm(processor=processor, longest_side=tower.longest_side)


def _written(tokenizer: PreTrainedTokenizerBase, image: str) -> dict[str, Any]:
    """What the chat template writes before and behind an image among texts, and whether it trims these; {} if it knows
    no images.
    """
    texts = [{"type": "text", "text": text} for text in (f"{_PROBE} ", f" {_PROBE}")]
    turn = {"role": "user", "content": [texts[0], {"type": "image"}, texts[1]]}
    try:
        shown = str(tokenizer.apply_chat_template([turn], tokenize=False))
    except (ValueError, TypeError, jinja2.TemplateError):  # none, or one for texts alone
        return {}
    found = re.search(f"{_PROBE}( ?)(.*?){re.escape(image)}(.*?)( ?){_PROBE}", shown, re.DOTALL)
    if found is None or max(len(found[2]), len(found[3])) > _LONGEST_BEHIND:
        return {}
    return {"before": found[2], "behind": found[3], "trims": not (found[1] or found[4])}


def _behind(tokenizer: PreTrainedTokenizerBase, image: str) -> str:
    """The text that the chat template writes between an image and the text behind it; "" if it knows no images."""
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _PROBE}]}
    try:
        shown = str(tokenizer.apply_chat_template([turn], tokenize=False))
    except (ValueError, TypeError, jinja2.TemplateError):  # none, or one for texts alone
        return ""
    between = re.search(f"{re.escape(image)}(.*?){_PROBE}", shown, re.DOTALL)
    return between[1] if between and len(between[1]) <= _LONGEST_BEHIND else ""


def _rules(
    args: TrainArgs, directory: Path, config: Mapping[str, Any], tower: Vision | None
) -> video.FrameRules | None:
    """Those of the model's video processor, read where transformers reads them, within the limits of the arguments.

    tower: of a model that cuts or scales images.
    """
    stored = _json(directory / "processor_config.json").get("video_processor")
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        stored = stored or _json(directory / name)
    if tower is not None and tower.tile and tower.video_token >= 0:
        sizes = {"side": tower.tile, "patch_size": tower.patch_size, "merge_size": tower.merge_size}
        of_tiles = video.rules_of_tiles(stored or {}, **sizes)
        return video.limited(of_tiles, pixels.in_pixels(args, tower.patch_size * tower.merge_size))
    try:
        rules = video.rules_of(str(config.get("model_type")), stored or {})
    except ValueError as err:
        raise _unusable(directory, f"its settings of videos cannot be used: {err}") from err
    return None if rules is None else video.limited(rules, pixels.in_pixels(args, rules.patch_size * rules.merge_size))


def _json(path: Path) -> dict[str, Any]:
    """The object in a file that may be missing. Raises InvalidInput if it holds anything else."""
    try:
        found = input_file.read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as err:
        raise _unusable(path, f"its settings of videos cannot be read: {err}") from err
    if not isinstance(found, dict):
        raise _unusable(path, "its settings of videos are not an object")
    return found


def _unusable(path: Path, message: str) -> InvalidInput:
    violation = Violation(path="spec.args.model", value=str(path), message=message[:500])
    return InvalidInput((violation,), ExitCode.MISSING_INPUT)


def _marks(tokenizer: PreTrainedTokenizerBase, box_format: str) -> boxes.Marks:
    """Those of the tokenizer's own tokens for objects, if it has them."""
    known = tokenizer.get_added_vocab()
    if all(token in known for token in _TAGS):
        before_ref, after_ref, before_box, after_box = _TAGS
        box = {"before_box": f"{before_box}[[", "after_box": f"]]{after_box}", "point": "{x}, {y}", "between": ", "}
        return boxes.Marks(before_ref=before_ref, after_ref=after_ref, **box)
    if not all(token in known for token in _BOX_TOKENS):
        return boxes.Marks()
    if box_format == "new":
        return boxes.Marks(point="{x}, {y}", between=", ")
    before_ref, after_ref, before_box, after_box = _BOX_TOKENS
    return boxes.Marks(before_ref=before_ref, after_ref=after_ref, before_box=before_box, after_box=after_box)
