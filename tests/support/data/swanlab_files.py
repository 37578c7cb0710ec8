"""What a SwanLab run has stored on disk, read with the client's own reader and records."""

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """One start of a run. scalars: name -> step -> value. config: name -> value."""

    project: str
    name: str
    run_id: str
    scalars: dict[str, dict[int, float]]
    config: dict[str, object]
    is_finished: bool


def stored_run(path: Path) -> StoredRun:
    """The run of a .swanlab file and of the configuration beside it."""
    from swanlab.proto.swanlab.record.v1 import record_pb2
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    reader = DataStoreReader()
    reader.open(path)
    records = [record_pb2.Record.FromString(content) for content in reader]
    reader.close()
    scalars: dict[str, dict[int, float]] = {}
    for each in records:
        if each.HasField("scalar"):
            scalars.setdefault(each.scalar.key, {})[each.scalar.step] = each.scalar.value.number
    [start] = [each.start for each in records if each.HasField("start")]
    config = yaml.safe_load((path.parent / "files/config.yaml").read_text())
    return StoredRun(
        project=start.project,
        name=start.name,
        run_id=start.id,
        scalars=scalars,
        config={name: entry["value"] for name, entry in config.items()},
        is_finished=any(each.HasField("finish") for each in records),
    )
