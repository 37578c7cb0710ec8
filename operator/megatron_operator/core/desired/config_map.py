"""The arguments of one attempt as an immutable ConfigMap: the file that the trainer reads."""

from __future__ import annotations

from typing import Any

import yaml

from megatron_operator.api import names
from megatron_operator.core.desired import labels
from megatron_operator.core.job import Job

FILE_NAME = "args.yaml"
AUTHORITY_FILE = "progress-ca.crt"
# libyaml's, which most builds have, takes a quarter of the time.
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def config_map(job: Job, attempt: int) -> dict[str, Any]:
    """The ConfigMap of this attempt. Each attempt has its own, so no pod ever sees its file change."""
    name = names.config_map_name(job.name, attempt)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": labels.metadata(job, name, {names.LABEL_RESTART_ATTEMPT: str(attempt)}),
        "immutable": True,
        "data": {FILE_NAME: args_text(job), **_authority(job)},
    }


def _authority(job: Job) -> dict[str, str]:
    return {} if job.progress_push is None else {AUTHORITY_FILE: job.progress_push.authority}


def args_text(job: Job) -> str:
    """The arguments as YAML, sorted by name."""
    return yaml.dump(plain(job.trainer_args), Dumper=DUMPER, sort_keys=True, allow_unicode=True, width=100)


def plain(value: Any) -> Any:  # noqa: ANN401 (any YAML value)
    """The value with lists and dicts in place of tuples and mappings, as the YAML writer needs them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
