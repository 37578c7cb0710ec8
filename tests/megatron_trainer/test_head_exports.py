"""`mtj export` of what classifiers, reward models, embedding models and rerankers leave: what their runs export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.data import preference_data
from tests.support.matrix import mostly_slow
from tests.support.models import classification_truth, retrieval_truth, tiny_model
from tests.support.ranks import tiny_run
from tests.support.ranks.exporting import export

pytestmark = pytest.mark.dist

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "classifier": ("sft", {"task_type": "seq_cls", "num_labels": 3}),
    "reward model": ("rlhf", {"rlhf_type": "rm"}),
    "reranker": ("sft", {"task_type": "reranker"}),
    "embedding": ("sft", {"task_type": "embedding", "use_chat_template": False}),
}
LORA = {"train_type": "lora", "lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.0, "lr": 1e-2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(kind, **arguments): a short run with its export, made once."""
    root = tmp_path_factory.mktemp("heads")
    model = tiny_model.make("llama", root, num_hidden_layers=2)
    done: dict[str, Path] = {}

    def run(kind: str, **given: Any) -> Path:
        key = f"{kind} {given}"
        if key not in done:
            task, own = KINDS[kind]
            data = root / f"{kind}.jsonl"
            if task == "rlhf":
                preference_data.write(data)
            elif kind == "classifier":
                classification_truth.write(data, "single_label_classification")
            else:
                retrieval_truth.write(data, retrieval_truth.triplets())
            arguments = tiny_run.arguments(model, data, root / f"run{len(done)}", train_iters=2, **own, **given)
            made = tiny_run.train(arguments, task=task)
            assert made.exit_code == 0, made.message
            done[key] = made.folder
        return done[key]

    return run


def same(one: Path, other: Path, name: str) -> None:
    first, second = load_file(one / name), load_file(other / name)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["reward model", "embedding"]))
def test_a_checkpoint_gives_the_model_that_its_run_exported(trained, kind, tmp_path):
    run = trained(kind, to_hf=True)
    done = export(to_hf=True, mcore_model=run, output_dir=tmp_path / "hf")
    assert done.exit_code == 0, done.message
    same(tmp_path / "hf", run / "hf", "model.safetensors")
    files = {str(path.relative_to(run / "hf")) for path in (run / "hf").rglob("*.json")}
    assert {"modules.json", "1_Pooling/config.json"} <= files or kind != "embedding"
    for file in files - {"generation_config.json"}:
        assert json.loads((tmp_path / "hf" / file).read_text()) == json.loads((run / "hf" / file).read_text()), file


@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["classifier", "embedding"]))
def test_an_adapter_gives_what_its_run_left(trained, kind, tmp_path):
    run = trained(kind, **LORA, merge_lora=True, to_hf=True)
    adapter = export(to_hf=True, mcore_adapters=[str(run)], output_dir=tmp_path / "adapter", merge_lora=False)
    assert adapter.exit_code == 0, adapter.message
    same(tmp_path / "adapter", run / "adapter", "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == ("FEATURE_EXTRACTION" if kind == "embedding" else "SEQ_CLS")
    for name, source in (("merged", run), ("from-peft", run / "adapter")):
        given = {"num_labels": 1} if source.name == "adapter" and kind in ("reward model", "reranker") else {}
        given |= {"num_labels": 3} if source.name == "adapter" and kind == "classifier" else {}
        given |= {"task_type": "seq_cls"} if given else {}
        merged = export(to_hf=True, mcore_adapters=[str(source)], output_dir=tmp_path / name, merge_lora=True, **given)
        assert merged.exit_code == 0, merged.message
        same(tmp_path / name, run / "hf", "model.safetensors")
