"""Uploads a written folder to the Hugging Face Hub (push_to_hub).

The token is HF_TOKEN, which pods get from a Secret through envFrom; HF_ENDPOINT names another Hub. Both are read by
huggingface_hub itself.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch.distributed as dist
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from megatron_trainer.failure import InvalidInput, TrainingError
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

logger = logging.getLogger(__name__)

WORTH_A_RETRY = (408, 409, 425, 429)
"""Of the answers from 400 to 499, which say that the request is wrong, those that may be others a moment later."""


def check(args: TrainArgs, path: str) -> None:
    """Returns if there is a repository that this run may write, which is created, or nothing to upload. Collective.

    path: of the arguments in messages.

    Raises:
        InvalidInput: before anything is trained or converted.
        TrainingError: the Hub cannot be reached, or not now; a restart asks again.
    """
    if not args.push_to_hub:
        return
    found = ["", ""]
    if _is_first():
        found = list(_problem(args))
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    wrong, missing = found
    if wrong:
        raise InvalidInput((Violation(path=f"{path}.push_to_hub", value=True, message=wrong),))
    if missing:
        raise TrainingError(ExitCode.ERROR, missing)


def _problem(args: TrainArgs) -> tuple[str, str]:
    """What is wrong with the arguments or the token, and why that cannot be known now."""
    if get_token() is None:
        return "needs an access token; pass HF_TOKEN to the pods from a Secret through envFrom", ""
    try:
        HfApi().create_repo(str(args.hub_model_id), private=args.hub_private_repo or None, exist_ok=True)
    except Exception as err:  # noqa: BLE001 - of the Hub's library or of the one below it; the other ranks wait for it
        failed = f"cannot create or open the repository {args.hub_model_id} ({_reason(err)})"
        return (f"{failed}; check its name and the token", "") if _is_refusal(err) else ("", failed)
    return "", ""


def _is_refusal(err: Exception) -> bool:
    """Whether the Hub, or the check of a name, has said no; otherwise it was not reached or is in trouble."""
    if isinstance(err, HfHubHTTPError):
        return 400 <= err.response.status_code < 500 and err.response.status_code not in WORTH_A_RETRY
    return isinstance(err, HFValidationError)


def push(folder: str | Path, args: TrainArgs) -> str:
    """Uploads the folder in one commit and returns the commit's address. Collective.

    Raises:
        TrainingError: the upload failed; a restart uploads again, without training again.
    """
    found = ["", ""]
    if _is_first():
        logger.info("uploading %s to %s", folder, args.hub_model_id)
        try:
            done = HfApi().upload_folder(
                folder_path=str(folder), repo_id=str(args.hub_model_id), commit_message=args.commit_message
            )
            found = [str(done.commit_url), ""]
        except Exception as err:  # noqa: BLE001 - as above
            found = ["", f"upload of {folder} to {args.hub_model_id}: {_reason(err)}"]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    if found[1]:
        raise TrainingError(ExitCode.ERROR, found[1])
    return found[0]


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _reason(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__
