"""The source of the model and its tokenizer: a folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_trainer.failure import InvalidInput
from megatron_trainjob import hub_cache, input_file, tokenizer_folder
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.tokenizer_folder import CONFIG_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from megatron_trainjob.violation import Violation

CODE = "auto_map"
"""Key of tokenizer_config.json that names Python classes in files of the folder."""
TORCH_WEIGHTS = "pytorch_model*.bin"
"""Fetched if a repository has no safetensors."""
NEEDED = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja", "LICENSE*")


def folder(args: TrainArgs) -> Path:
    """The model's folder on this machine; a repository is downloaded into the Hub's own cache, once.

    Raises:
        InvalidInput: it is neither a folder nor an accessible repository on the Hub.
    """
    model = str(args.model)
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise _missing(model, "is not a directory; pass the directory of a Hugging Face model")
    if not args.use_hf:
        raise _missing(model, "is not a directory; to fetch a repository of the Hugging Face Hub, set use_hf: true")
    try:
        fetched = Path(snapshot_download(model, revision=args.model_revision, allow_patterns=list(NEEDED)))
        if not any(fetched.glob("*.safetensors")):
            snapshot_download(model, revision=args.model_revision, allow_patterns=[TORCH_WEIGHTS])
        return fetched
    except (OSError, ValueError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        revision = f" at revision {args.model_revision}" if args.model_revision else ""
        message = f"is not a directory, and the repository was not found on the Hub{revision}: {reason}"
        raise _missing(model, message) from err


def config(directory: Path) -> dict[str, Any]:
    """The content of the model's config.json. Raises InvalidInput if there is none, or it cannot be read."""
    try:
        content = input_file.read_json(directory / CONFIG_FILE)
    except FileNotFoundError:
        message = f"has no {CONFIG_FILE}; pass the folder of a Hugging Face model{_inside(directory)}"
        raise _unfit(directory, [message]) from None
    except (OSError, ValueError) as err:
        raise _unfit(directory, [f"its {CONFIG_FILE} cannot be read ({err}); download it again"]) from err
    if not isinstance(content, dict):
        raise _unfit(directory, [f"its {CONFIG_FILE} is not a JSON object"])
    return content


def _inside(directory: Path) -> str:
    snapshot = hub_cache.snapshot(directory)
    return "" if snapshot is None else f". It is the cache of a Hub repository: pass {snapshot}"


def tokenizer(args: TrainArgs, directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the model's folder, with the new special tokens of the arguments.

    Raises:
        InvalidInput: it is missing, does not fit the model, or a file of new tokens cannot be read.
    """
    grows = bool(args.new_special_tokens)
    if wrong := tokenizer_folder.problems(directory, grows=grows):
        raise _unfit(directory, wrong)
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        wrong = list(_misfits(loaded, directory, grows=grows))
    except BaseException as err:  # an invalid file makes libraries raise any exception, even Rust panics
        if not isinstance(err, Exception) and type(err).__name__ != "PanicException":
            raise
        raise _unfit(
            directory, [_of_code(directory) or f"its tokenizer cannot be loaded ({err}); download it again"]
        ) from err
    if wrong:
        raise _unfit(directory, wrong)
    new = [token for entry in args.new_special_tokens for token in _tokens(entry)]
    if new:
        loaded.add_tokens(new, special_tokens=True)
    return loaded


def _of_code(directory: Path) -> str:
    """The message about a tokenizer that is Python code of its repository, "" for any other."""
    named = tokenizer_folder.read_json(directory / TOKENIZER_CONFIG_FILE).get(CODE)
    if not (named.get("AutoTokenizer") if isinstance(named, Mapping) else named):
        return ""
    remedy = (
        f"take {CODE} out of {TOKENIZER_CONFIG_FILE} to use its {TOKENIZER_FILE}"
        if (directory / TOKENIZER_FILE).is_file()
        else f"use a {TOKENIZER_FILE} made from it (transformers.convert_slow_tokenizer), without {CODE}"
    )
    return f"its tokenizer is Python code of its repository ({CODE}), which is never run; {remedy}"


def _misfits(loaded: PreTrainedTokenizerBase, directory: Path, *, grows: bool) -> Iterator[str]:
    """Problems of a tokenizer loaded by transformers: an empty vocabulary, or ids for which the model has no rows."""
    if not loaded("Hello world, 1 2 3", add_special_tokens=False)["input_ids"]:
        yield f"its tokenizer produces no tokens: its vocabulary is missing next to {TOKENIZER_CONFIG_FILE}"
    rows = tokenizer_folder.num_rows(tokenizer_folder.read_json(directory / CONFIG_FILE))
    token, number = max(loaded.get_vocab().items(), key=lambda entry: entry[1], default=("", -1))
    if rows is not None and number >= rows and not grows:
        yield tokenizer_folder.beyond(token, number, rows)


def _unfit(directory: Path, problems: Sequence[str]) -> InvalidInput:
    found = [Violation(path="spec.args.model", value=str(directory), message=problem) for problem in problems]
    return InvalidInput(tuple(found), ExitCode.MISSING_INPUT)


def _tokens(entry: str) -> list[str]:
    """The entry itself, or the words of the file that it names."""
    if not entry.endswith(".txt"):
        return [entry]
    try:
        return input_file.read_text(Path(entry)).split()
    except (OSError, ValueError) as err:
        message = f"cannot be read: {err}"
        violation = Violation(path="spec.args.new_special_tokens", value=entry, message=message)
        raise InvalidInput((violation,), ExitCode.MISSING_INPUT) from err


def _missing(model: str, message: str) -> InvalidInput:
    return InvalidInput((Violation(path="spec.args.model", value=model, message=message),), ExitCode.MISSING_INPUT)
