"""What the environment says to a launcher and what a launcher puts into that of its ranks."""

import importlib.util
import os
from pathlib import Path

import pytest

from megatron_trainer import environment
from megatron_trainer.process import launch


@pytest.fixture
def no_recorder_settings(monkeypatch):
    """The flight recorder is left to the trainer, and what it sets is taken back."""
    for name in (*environment.FORMER_NAMES, *environment.FORMER_NAMES.values()):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", [None, "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"])
def test_torch_remembers_collectives_for_a_timeout_unless_the_user_says_otherwise(
    monkeypatch, no_recorder_settings, name
):
    if name:
        monkeypatch.setenv(name, "100")
    variables = environment.for_rank(environment.read({}), 0, 1)
    assert variables["TORCH_FR_BUFFER_SIZE"] == ("100" if name else "2000")
    assert not {"TORCH_FR_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT"} & variables.keys(), "torch dumps by itself"


@pytest.mark.parametrize("name", ["TORCH_FR_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT"])
def test_what_torch_remembers_is_not_written_where_the_user_wants_none(monkeypatch, no_recorder_settings, name):
    monkeypatch.setenv(name, "0")
    variables = environment.for_rank(environment.read({}), 0, 1)
    names = ("TORCH_FR_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT")
    assert [variables[each] for each in names] == ["0", "0"], "torch 2.11 knows only the former name"


@pytest.mark.parametrize("name", [None, "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"])
def test_remembered_collectives_lie_in_the_save_folder_unless_the_user_names_another(
    monkeypatch, no_recorder_settings, tmp_path, name
):
    if name:
        monkeypatch.setenv(name, "/elsewhere/of_")
    environment.place_flight_recorder(tmp_path / "run")
    ours = str(tmp_path / "run" / "nccl_trace" / "rank_")
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == ("/elsewhere/of_" if name else ours)
    assert (tmp_path / "run" / "nccl_trace").is_dir() == (not name)


def test_torch_knows_the_variables_of_its_flight_recorder():
    torch = importlib.util.find_spec("torch")
    library = (Path(torch.origin).parent / "lib" / "libtorch_python.so").read_bytes()
    library += (Path(torch.origin).parent / "lib" / "libtorch_cpu.so").read_bytes()
    names = ("TORCH_FR_BUFFER_SIZE", environment.FLIGHT_RECORDER_FILE, "TORCH_NCCL_DUMP_ON_TIMEOUT")
    assert [name for name in names if name.encode() not in library] == []


def test_each_rank_knows_its_place_in_the_world():
    env = environment.read({"NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "job-a0-master-0.job"})
    variables = environment.for_rank(env, 1, 8)
    assert {k: variables[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")} == {
        "RANK": "17",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "32",
        "MASTER_ADDR": "job-a0-master-0.job",
        "MASTER_PORT": "29500",
    }


@pytest.mark.parametrize(("name", "value"), [("NNODES", "two"), ("MTJ_RESUME", "Maybe"), ("MTJ_DEVICE", "gpu")])
def test_a_wrong_variable_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: must be .*{value}"):
        environment.read({name: value})


@pytest.mark.parametrize(
    ("gpus", "variables", "start"),
    [
        (0, {}, "fork"),
        (8, {}, "spawn"),
        (8, {"MTJ_DEVICE": "cpu"}, "fork"),
        (8, {"MTJ_RANK_START": "fork"}, "fork"),
        (0, {"MTJ_RANK_START": "spawn"}, "spawn"),
    ],
)
def test_ranks_are_forked_where_that_was_measured_or_asked_for(monkeypatch, gpus, variables, start):
    monkeypatch.setattr(environment, "num_gpus", lambda: gpus)
    assert environment.read(variables).rank_start == start


def test_ranks_of_a_later_attempt_in_the_same_pod_say_so():
    pod = {"MTJ_RESTART_ATTEMPT": "2", "KUBEFLOW_TRAINER_SERVER_URL": "https://server/status"}
    ours = environment.read({**pod, "MTJ_LAUNCHER_URL": "https://server/launcher"})
    variables = environment.for_rank(ours, 0, 1, attempt=5)
    assert variables["MTJ_RESTART_ATTEMPT"] == "5"
    assert variables["KUBEFLOW_TRAINER_SERVER_URL"] == "https://server/status?attempt=5"
    of_kubeflow = environment.for_rank(environment.read(pod), 0, 1)
    assert "KUBEFLOW_TRAINER_SERVER_URL" not in of_kubeflow, "as it is in the launcher's own environment"


def test_auto_means_one_process_on_a_machine_set_to_use_its_cpu():
    assert launch.num_processes(environment.read({"MTJ_DEVICE": "cpu"})) == 1
