"""Checkpoints whose pickles run code for an ordinary reader: at every entry they are refused and nothing is run."""

import ast
import importlib.util
import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_trainer.checkpoint import unpickle
from megatron_trainer.train.reference_cache import stored
from megatron_trainjob import checkpoint_index
from megatron_trainjob.checkpoint_folder import MANIFEST
from megatron_trainjob.exit_codes import ExitCode
from tests.support.checkpoint.forged_pickles import (
    Command,
    gadgets,
    with_entry,
    with_index,
    with_place,
    without_file,
)
from tests.support.data import preference_data
from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.ranks.exporting import export
from tests.support.ranks.tiny_run import arguments, train, write_data

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]
REFUSED = (ExitCode.CHECKPOINT_INCOMPATIBLE, ExitCode.NO_CHECKPOINT)


@pytest.fixture(scope="module")
def saved(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    given = arguments(llama, write_data(folder / "train.jsonl"), folder / "run", train_iters=1)
    assert train(given).exit_code == 0
    return given


@pytest.fixture(scope="module")
def adapter(saved, tmp_path_factory):
    given = {**saved, "save": str(tmp_path_factory.mktemp("adapter") / "run"), "train_type": "lora", "lora_rank": 2}
    assert train(given).exit_code == 0
    return given


def copy(given, folder):
    """A copy of the run's folder, and its one checkpoint."""
    shutil.copytree(given["save"], folder)
    return folder / "iter_0000001"


def test_an_honest_index_is_accepted(saved, tmp_path):
    path = copy(saved, tmp_path / "run") / ".metadata"
    assert checkpoint_index.problem(path) is None
    with path.open("rb") as file:
        index = unpickle.read_index(file, str(path))
    assert index == pickle.loads(path.read_bytes())


ENTRIES = ("resume", "load", "finetune", "foreign", "adapter_load", "mcore_model")


@pytest.mark.parametrize(
    ("forge", "entry"),
    mostly_slow(
        [(forge, entry) for forge in ("index", "common_state", "rng_state") for entry in ENTRIES],
        [*(("index", entry) for entry in ENTRIES), ("common_state", "resume"), ("rng_state", "resume")],
    ),
)
def test_nothing_that_is_loaded_runs_code(saved, adapter, tmp_path, forge, entry):
    source = adapter if entry == "adapter_load" else saved
    marker, checkpoint = tmp_path / "it-was-run", copy(source, tmp_path / "run")
    if forge == "index":
        with_index(checkpoint, gadgets(marker)["os.system"])
    else:
        with_entry(checkpoint, forge, [Command(marker)])
    if entry == "foreign":
        (checkpoint / MANIFEST).unlink()
        (checkpoint.parent / "owner.json").unlink()
    code, message = use(entry, {**source, "train_iters": 2}, checkpoint.parent, tmp_path / "new")
    assert not marker.exists()
    if forge == "rng_state" and entry not in ("resume", "load"):
        assert code == 0, "it is not read"
    else:
        assert code in REFUSED, message
        assert "posix.system" in message
        assert "run" in message


OUTSIDE = ("../iter_0000001/__0_0.distcp", "/dev/zero", "..", "")


@pytest.mark.parametrize(
    ("name", "entry"),
    mostly_slow(
        [(name, entry) for name in OUTSIDE for entry in ("resume", "load", "foreign", "mcore_model")],
        [*((OUTSIDE[0], entry) for entry in ("foreign", "mcore_model")), *((name, "resume") for name in OUTSIDE)],
    ),
)
def test_an_index_that_points_out_of_its_folder_is_refused(saved, tmp_path, name, entry):
    checkpoint = copy(saved, tmp_path / "run")
    with_place(checkpoint, name)
    assert f"names {name!r}, which is not a file name in its folder" in checkpoint_index.problem(
        checkpoint / ".metadata"
    )
    if entry == "foreign":
        (checkpoint / MANIFEST).unlink()
        (checkpoint.parent / "owner.json").unlink()
    code, message = use(entry, {**saved, "train_iters": 2}, checkpoint.parent, tmp_path / "new")
    assert code in REFUSED, message
    assert f"names {name!r}" in message


def use(entry, given, folder, new):
    """Exit code and message of a run, or an export, that takes the checkpoint from there."""
    if entry == "mcore_model":
        done = export(to_hf=True, mcore_model=folder, output_dir=new)
        return done.exit_code, done.message
    own = {
        "resume": {"save": str(folder)},
        "load": {"save": str(new), "load": str(folder)},
        "finetune": {"save": str(new), "load": str(folder), "finetune": True},
        "foreign": {"save": str(new), "load": str(folder), "finetune": True},
        "adapter_load": {"save": str(new), "adapter_load": str(folder), "finetune": True},
    }[entry]
    run = train({**given, **own}, resume="Auto", attempt=1)
    return run.exit_code, run.message


@pytest.mark.parametrize("wrap", [lambda b: torch.frombuffer(bytearray(b), dtype=torch.uint8), io.BytesIO])
def test_a_forged_record_of_fp8_scaling_is_refused_before_transformer_engine_sees_it(tmp_path, wrap):
    marker = tmp_path / "it-was-run"
    honest = {"scale_fwd": torch.ones(3), "recipe": None, "extra_fp8_variables": {"num_gemms": 1}}
    unpickle.check_scaling({"a._extra_state": wrap(pickle.dumps(honest)), "b._extra_state": torch.empty(0)})
    with pytest.raises(unpickle.ForgedError, match="posix.system"):
        unpickle.check_scaling({"a._extra_state": wrap(pickle.dumps(Command(marker)))})
    assert not marker.exists()


def test_a_model_of_fewer_layers_or_with_tied_embeddings_does_not_go_on_from_a_part_of_it(saved, model_root, tmp_path):
    checkpoint = copy(saved, tmp_path / "run")
    (tmp_path / "run" / "args.json").unlink()
    without_file(checkpoint, "args.json")
    given = {**saved, "save": str(tmp_path / "run"), "train_iters": 2}
    tied = tiny_model.make("llama_tied", model_root)
    found = train({**given, "model": str(tied)}, resume="Auto", attempt=1)
    assert found.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert "this model has no output_layer.weight" in found.message


@pytest.mark.parametrize("entry", ["ref_load", "ref_adapter_load"])
def test_no_reference_model_that_is_loaded_runs_code(saved, adapter, tmp_path, entry):
    source = saved if entry == "ref_load" else adapter
    marker, checkpoint = tmp_path / "it-was-run", copy(source, tmp_path / "forged")
    with_index(checkpoint, gadgets(marker)["os.system"])
    pairs = preference_data.write(tmp_path / "pairs.jsonl", 8)
    own = {"dataset": [str(pairs)], "save": str(tmp_path / "new"), "rlhf_type": "dpo", entry: str(checkpoint.parent)}
    run = train({**source, **own}, task="rlhf")
    assert not marker.exists()
    assert run.exit_code in REFUSED, run.message
    assert "posix.system" in run.message


@pytest.mark.parametrize("content", ["a pickle", "cut off", "a claim", "another shape", "nothing"])
def test_forged_reference_log_probabilities_are_no_answer(tmp_path, content):
    """They are asked again: what is kept beside a run is no more than a note."""
    marker, path = tmp_path / "it-was-run", tmp_path / "a.npy"
    honest = np.ones((3, 2), np.float32)
    np.save(path, honest)
    assert (stored(path, shape=(3, 2)) == honest).all()
    whole = path.read_bytes()
    match content:
        case "a pickle":
            np.save(path, np.array([Command(marker)], dtype=object), allow_pickle=True)
        case "cut off":
            path.write_bytes(whole[:-3])
        case "a claim":
            path.write_bytes(whole.replace(b"(3, 2), ", b"(9999999999, 2), ")[: len(whole)])
        case "another shape":
            np.save(path, np.ones((4, 2), np.float32))
        case "nothing":
            path.write_bytes(b"")
    assert stored(path, shape=(3, 2)) is None
    assert not marker.exists()


def test_a_record_of_scaling_may_hold_every_recipe_that_megatron_core_makes():
    """megatron-core subclasses recipes of TransformerEngine, and records hold the recipe; read from its source here,
    where TransformerEngine is not installed."""
    path = Path(importlib.util.find_spec("megatron.core").origin).parent / "extensions" / "transformer_engine.py"
    classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    recipes = {node.name for node in classes if any(".recipe." in ast.unparse(base) for base in node.bases)}
    assert recipes
    assert {("megatron.core.extensions.transformer_engine", name) for name in recipes} <= unpickle.SCALING_NAMES
