"""Files in the older format `torch`, in each form that torch.load takes: tensors are read, and nothing is ever run."""

import contextlib
import io
import pickle

import pytest
import torch

from megatron_trainer.checkpoint import legacy
from tests.support.ranks.legacy_ranks import Forged

PARTS = ("magic number", "protocol", "system", "object", "keys of storages")
"""The pickles of a file from before torch 1.6, which follow each other."""


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_are_read_from_old_and_new_files(tmp_path, is_zip):
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    torch.save({"model": weights}, tmp_path / "file", _use_new_zipfile_serialization=is_zip)
    read = legacy.read_file(tmp_path / "file")["model"]
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], value) for name, value in weights.items())


@pytest.mark.parametrize("part", PARTS)
def test_no_part_of_an_old_file_is_run(tmp_path, part):
    contents = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}, {"model": {}}, []]
    contents[PARTS.index(part)] = Forged(tmp_path / "was-run")
    (tmp_path / "file").write_bytes(b"".join(pickle.dumps(each, protocol=2) for each in contents))
    with contextlib.suppress(RuntimeError, TypeError):  # some are refused, others read without what was forged
        legacy.read_file(tmp_path / "file")
    assert not (tmp_path / "was-run").exists()


def test_a_path_of_names_that_ends_like_a_storage_leads_nowhere():
    unpickler = legacy._TensorUnpickler(io.BytesIO())
    assert unpickler.find_class("torch", "storage.UntypedStorage") is legacy._Inert
    assert unpickler.find_class("torch", "FloatStorage") is torch.FloatStorage


class Program(torch.nn.Module):
    """Anything that TorchScript can compile."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.script(Program()).save(str(tmp_path / "file"))
    with pytest.raises(ValueError, match="TorchScript"):
        legacy.read_file(tmp_path / "file")
