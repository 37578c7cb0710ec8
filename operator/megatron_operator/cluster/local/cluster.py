"""The cluster of one machine: applies plans to processes, presents them as pods. Decides nothing.

It has one job, and no queue, node or service: all pods start at once and rendezvous on the loopback address.
"""

from __future__ import annotations

import json
import shutil
import socket
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_operator.api import names
from megatron_operator.cluster.local import paths as local_paths
from megatron_operator.cluster.local import pod as local_pod
from megatron_operator.cluster.local.paths import Folders
from megatron_operator.cluster.local.pod import LocalPod, Step
from megatron_operator.cluster.local.state import State
from megatron_operator.core import attempts
from megatron_operator.core.attempts import HeardReport
from megatron_operator.core.desired import service
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Gang, Seen, observe
from megatron_operator.core.plan import Plan
from megatron_trainjob import environment, input_file, launcher
from megatron_trainjob.launcher import Directive

Object = Mapping[str, Any]
LOOPBACK = "127.0.0.1"
SHARED_MEMORY = Path("/dev/shm")
LAUNCHER_INTERVAL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine offers. device: "cpu" or "cuda" forces a backend, None lets the trainer choose."""

    num_gpus: int = 0
    device: str | None = None
    bound: Mapping[str, Path] = field(default_factory=dict)


class LocalCluster:
    """Pods of one job as processes. Stores what an API server would store."""

    def __init__(self, state: State, machine: Machine, now: float) -> None:
        self._state = state
        self._machine = machine
        self._pods: dict[str, LocalPod] = {}
        self._config_maps: dict[str, Object] = {}
        self._ports: dict[str, socket.socket] = {}
        self._heard: dict[str, tuple[HeardReport, int]] = {}
        self._answered: dict[str, int] = {}
        self._status = state.read_status()
        for name in state.pod_names():
            orphan = local_pod.find_orphan(state.pod(name), state.log(name), now)
            if orphan:
                self._pods[name] = orphan

    def see(self, job: Job, now: float) -> Seen:
        """The observed state."""
        self.poll(now)
        attempt = attempts.of_pods(self._status)
        # Writes are cheap here. Without the time of the last write nothing is throttled to a later one, which would
        # never happen after the pods have ended: so their last progress is shown, such as the save of an interrupted
        # run.
        status = {key: value for key, value in self._status.items() if key != "lastUpdatedTime"}
        owned = {"metadata": {"ownerReferences": [{"uid": job.uid, "controller": True}]}}
        seen = observe(
            job_uid=job.uid,
            status=status,
            pods=[pod.seen() for pod in self._pods.values()],
            services=[{**owned, "spec": {"selector": service.selector(job, attempt)}}],
            config_maps=self._config_maps,
            claims=[names.claim_name(job.name)],
            progress=self._state.read_progress(),
        )
        return self._with_group(replace(seen, launchers=self._hear()), job)

    def apply(self, job: Job, plan: Plan, now: float) -> None:
        """Applies the plan, the status first."""
        if plan.status is not None:
            self._state.write_status(plan.status)
            self._status = plan.status
        for ref in plan.delete:
            if ref.kind == "Pod" and ref.name in self._pods:
                self._pods[ref.name].delete(now, grace_s=ref.grace_period_s)
        for wanted in plan.create:
            if wanted["kind"] == "ConfigMap":
                self._config_maps[wanted["metadata"]["name"]] = wanted
            elif wanted["kind"] == "Pod":
                self._start(job, wanted, now)
        self._state.append_events(plan.events, now)
        self._answer(job, now)

    def stop(self, now: float) -> None:
        """Terminates every pod that is not terminating yet: no process outlives the run of its job."""
        for pod in self._pods.values():
            if pod.grace_ends is None:
                pod.delete(now)

    def poll(self, now: float) -> None:
        """Takes in which processes have ended; kills those whose grace period is over."""
        for name, pod in list(self._pods.items()):
            pod.poll(now)
            if pod.is_finished and pod.grace_ends is not None:
                del self._pods[name]

    def kill(self, now: float) -> None:
        """Kills every pod."""
        for pod in self._pods.values():
            pod.delete(now, grace_s=0)

    def free_memory(self, job: Job) -> None:
        """Removes the checkpoints in memory: no process of the job is left, and memory is scarce."""
        shutil.rmtree(memory_folder(self._state, job.uid), ignore_errors=True)

    @property
    def has_pods(self) -> bool:
        """Whether any process may still be running."""
        return any(not pod.is_finished for pod in self._pods.values())

    def _hear(self) -> Mapping[str, HeardReport]:
        """What the launchers of the running pods last said."""
        running = {name: pod for name, pod in self._pods.items() if not pod.is_finished}
        self._heard = {name: heard for name, pod in running.items() if (heard := _report_in(pod.folder))}
        return {name: heard for name, (heard, _) in self._heard.items()}

    def _answer(self, job: Job, now: float) -> None:
        """Answers each report that was seen, after what was decided about it has been written down."""
        for name, (heard, number) in self._heard.items():
            place, answered = names.place_of(name, job.name), self._answered.get(name)
            interval_s = min(LAUNCHER_INTERVAL_S, attempts.interval_s(heard.report, 1, 1))
            directive = place and attempts.directive(self._status, place, heard.report, now, interval_s)
            if directive and number != answered:
                _write_answer(self._pods[name].folder, directive, number)
                self._answered[name] = number

    def _with_group(self, seen: Seen, job: Job) -> Seen:
        """Everything fits on one machine at once, so a gang's group is always admitted."""
        if job.scheduling.gang == "None":
            return seen
        group = Gang(name=names.group_name(job.name, seen.pod_attempt), phase="Running")
        return Seen(**{**vars(seen), "gang": group})

    def _start(self, job: Job, raw: Object, now: float) -> None:
        name = raw["metadata"]["name"]
        folder = self._state.pod(name)
        folder.mkdir(parents=True, exist_ok=True)
        _forget_launcher(folder)
        spec = raw["spec"]
        paths = Folders(
            volumes=self._state.volumes.absolute(),
            scratch=(folder / "volumes").absolute(),
            bound=self._machine.bound,
            memory=memory_folder(self._state, job.uid) / f"node-{_node_rank(spec)}",
        )
        containers = [*spec.get("initContainers", ()), _trainer(spec)]
        steps = [self._step(job, raw, container, paths) for container in containers]
        pod = LocalPod(raw=raw, folder=folder.absolute(), log=self._state.log(name), steps=steps, started_at=now)
        self._pods[name] = pod
        pod.start(now)

    def _step(self, job: Job, raw: Object, container: Object, folders: Folders) -> Step:
        config = {name: folders.scratch.parent / "config" / name for name in self._config_maps}
        paths = local_paths.mapping(raw["spec"], container, folders, config=config)
        if folders.memory is not None and str(folders.memory) in paths.values():
            folders.memory.parent.mkdir(mode=0o700, exist_ok=True)
        for folder in paths.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._write_config(raw["spec"], config, paths)
        given = {entry["name"]: entry.get("value") for entry in container.get("env", ())}
        variables = {name: local_paths.rewritten(text, paths) for name, text in given.items() if isinstance(text, str)}
        command = [*container["command"], *container.get("args", ())]
        working = container.get("workingDir")
        return Step(
            container=container["name"],
            command=[local_paths.rewritten(word, paths) for word in command],
            variables={**variables, **self._local_variables(job, raw, folders)},
            directory=Path(local_paths.rewritten(working, paths)) if working else None,
        )

    def _write_config(self, spec: Object, config: Mapping[str, Path], paths: Mapping[str, str]) -> None:
        """Writes the config maps that the pod mounts, with the paths of this machine."""
        mounted = {local_paths.config_map_of(volume) for volume in spec["volumes"]}
        for name in mounted & set(config):
            config[name].mkdir(parents=True, exist_ok=True)
            for file, text in self._config_maps[name]["data"].items():
                (config[name] / file).write_text(local_paths.rewritten_yaml(text, paths))

    def _local_variables(self, job: Job, raw: Object, folders: Folders) -> dict[str, str]:
        """What differs from a cluster: the master's address, where records go, this pod's GPUs."""
        attempt = raw["metadata"]["labels"][names.LABEL_RESTART_ATTEMPT]
        port = str(self._port(attempt))
        local = {
            environment.MASTER_ADDRESS: LOOPBACK,
            environment.MASTER_PORT: port,
            environment.of_torchrun(environment.MASTER_ADDRESS): LOOPBACK,
            environment.of_torchrun(environment.MASTER_PORT): port,
            environment.PROGRESS_FILE: str(self._state.progress_file.absolute()),
            environment.TERMINATION_LOG: str(folders.scratch.parent / "termination-log"),
        }
        if job.failure_policy.in_place_restart:
            local[environment.LAUNCHER_FOLDER] = str(folders.scratch.parent)
        if self._machine.device:
            local[environment.DEVICE] = self._machine.device
        return {**local, **self._gpus(job, raw)}

    def _port(self, attempt: str) -> int:
        """The rendezvous port of this attempt; held until this process ends, so that no other program gets it."""
        if attempt not in self._ports:
            held = self._ports[attempt] = hold_port()
            weakref.finalize(self, held.close)
        return int(self._ports[attempt].getsockname()[1])

    def _gpus(self, job: Job, raw: Object) -> dict[str, str]:
        """The machine's GPUs, divided among several pods."""
        if job.num_nodes == 1 or self._machine.num_gpus < job.world_size or self._machine.device == "cpu":
            return {}
        first = _node_rank(raw["spec"]) * job.nproc_per_node
        return {"CUDA_VISIBLE_DEVICES": ",".join(str(first + i) for i in range(job.nproc_per_node))}


def hold_port() -> socket.socket:
    """A socket bound to a free port of the loopback address: the system assigns the port to no other program.

    It does not listen, and sets SO_REUSEADDR, as torch's store does too: so the master rank can
    listen there while the port is held.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((LOOPBACK, 0))
    return held


def memory_folder(state: State, uid: str) -> Path:
    """Where the nodes of a job keep checkpoints in memory; on the disk where the system has no such file system."""
    return SHARED_MEMORY / f"mtj-{uid}" if SHARED_MEMORY.is_dir() else state.directory.absolute() / "memory"


def _report_in(folder: Path) -> tuple[HeardReport, int] | None:
    """The last report of the launcher of this pod's folder and its number, None when there is none to be read."""
    path = folder / launcher.REPORT_FILE
    try:
        body, at = input_file.read_json(path), path.stat().st_mtime
        return HeardReport(report=launcher.read_report(body), at=at), int(body["number"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _forget_launcher(folder: Path) -> None:
    """Removes what an earlier pod of this name has left: its report would speak for the new one."""
    for name in (launcher.REPORT_FILE, launcher.DIRECTIVE_FILE):
        (folder / name).unlink(missing_ok=True)


def _write_answer(folder: Path, directive: Directive, number: int) -> None:
    """Answers the launcher's report with this number."""
    path = folder / launcher.DIRECTIVE_FILE
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps({**directive.to_fields(), "number": number}))
    aside.replace(path)


def _node_rank(spec: Object) -> int:
    values = {entry["name"]: entry.get("value") for entry in _trainer(spec)["env"]}
    return int(str(values[environment.NODE_RANK]))


def _trainer(spec: Object) -> Object:
    trainer: Object = next(each for each in spec["containers"] if each["name"] == names.CONTAINER)
    return trainer
