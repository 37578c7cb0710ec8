"""Where the model comes from: a folder, or a repository of the Hugging Face hub; and its tokenizer."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

TORCH_WEIGHTS = "pytorch_model*.bin"
"""Fetched where a repository has no safetensors."""
NEEDED = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja", "LICENSE*")


def folder(args: TrainArgs) -> Path:
    """The model's folder on this machine; a repository is fetched into the hub's own cache, once.

    Raises:
        InvalidInput: it is neither a folder nor a repository that the hub gives us.
    """
    model = str(args.model)
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise _missing(model, "is no folder; give the folder of a Hugging Face model")
    if not args.use_hf:
        raise _missing(model, "is no folder; to fetch a repository of the Hugging Face hub, set use_hf: true")
    try:
        fetched = Path(snapshot_download(model, revision=args.model_revision, allow_patterns=list(NEEDED)))
        if not any(fetched.glob("*.safetensors")):
            snapshot_download(model, revision=args.model_revision, allow_patterns=[TORCH_WEIGHTS])
        return fetched
    except (OSError, ValueError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        revision = f" at revision {args.model_revision}" if args.model_revision else ""
        message = f"is no folder, and the hub does not give us such a repository{revision}: {reason}"
        raise _missing(model, message) from err


def tokenizer(args: TrainArgs, directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the model's folder, with the new special tokens of the arguments.

    Raises:
        InvalidInput: a file of new tokens cannot be read.
    """
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    new = [token for entry in args.new_special_tokens for token in _tokens(entry)]
    if new:
        loaded.add_tokens(new, special_tokens=True)
    return loaded


def _tokens(entry: str) -> list[str]:
    """The entry itself, or the words of the file that it names."""
    if not entry.endswith(".txt"):
        return [entry]
    try:
        return Path(entry).read_text(encoding="utf-8").split()
    except OSError as err:
        message = f"cannot be read: {err.strerror}"
        violation = Violation(path="spec.args.new_special_tokens", value=entry, message=message)
        raise InvalidInput((violation,), ExitCode.MISSING_INPUT) from err


def _missing(model: str, message: str) -> InvalidInput:
    return InvalidInput((Violation(path="spec.args.model", value=model, message=message),), ExitCode.MISSING_INPUT)
