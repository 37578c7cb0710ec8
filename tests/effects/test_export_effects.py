"""Effects of the arguments of an export, on a tiny Llama and its LoRA adapter."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_trainjob.exit_codes import ExitCode
from tests.effects.registry import effect
from tests.support.models import tiny_model
from tests.support.ranks import tiny_run
from tests.support.ranks.exporting import export

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.make("llama", tmp_path_factory.mktemp("models"), dtype="bfloat16")


@pytest.fixture(scope="module")
def mcore(model, tmp_path_factory):
    """The model as a Megatron-Core checkpoint, its precision tested."""
    folder = tmp_path_factory.mktemp("mcore") / "converted"
    done = export(to_mcore=True, model=model, output_dir=folder, thread_count=3, test_convert_precision=True)
    assert done.exit_code == 0, (done.message, done.comparison)
    assert done.comparison[-1] == "precision test: passed"
    return folder


@pytest.fixture(scope="module")
def hf(mcore, tmp_path_factory):
    """The checkpoint as a Hugging Face folder again."""
    folder = tmp_path_factory.mktemp("hf") / "back"
    assert export(to_hf=True, mcore_model=mcore, output_dir=folder).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def trained(model, data, tmp_path_factory):
    """A LoRA run."""
    save = tmp_path_factory.mktemp("lora") / "run"
    settings = {"train_type": "lora", "train_iters": 2, "lr": 1e-2, "lora_rank": 4, "torch_dtype": "bfloat16"}
    run = tiny_run.train(tiny_run.arguments(model, data, save, **settings))
    assert run.exit_code == 0, run.message
    return save


def tensors(folder):
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def differing(one, other):
    return [name for name in one.keys() | other.keys() if not torch.equal(one.get(name, torch.tensor(0)), other[name])]


@effect("to_mcore")
def test_to_mcore_writes_a_checkpoint_that_other_tools_find(mcore):
    assert (mcore / "latest_checkpointed_iteration.txt").read_text() == "1"
    assert json.loads((mcore / "iter_0000001" / "metadata.json").read_text())["sharded_backend"] == "torch_dist"
    assert json.loads((mcore / "args.json").read_text())["arguments"]["lora_rank"] == 8


@effect("thread_count")
def test_thread_count_is_the_number_of_files_of_a_checkpoint(mcore, model, tmp_path):
    assert len(list((mcore / "iter_0000001").glob("*.distcp"))) == 3
    assert export(to_mcore=True, model=model, output_dir=tmp_path / "out").exit_code == 0
    assert len(list((tmp_path / "out" / "iter_0000001").glob("*.distcp"))) == 2, "at least two, each up to 10 GB"


@effect("mcore_model")
def test_mcore_model_is_the_checkpoint_that_is_converted(hf, model):
    assert differing(tensors(model), tensors(hf)) == []
    assert sorted(path.name for path in hf.iterdir()) == sorted(path.name for path in model.iterdir())
    loaded = AutoModelForCausalLM.from_pretrained(hf, dtype="auto").state_dict()
    assert differing(tensors(model), {name: loaded[name] for name in tensors(model)}) == []


@effect("output_dir")
def test_output_dir_takes_the_result_and_is_beside_the_input_when_unset(mcore, hf):
    assert (hf / "config.json").is_file()
    done = export(to_hf=True, mcore_model=mcore)
    assert done.exit_code == 0, done.message
    beside = mcore.with_name("converted-hf")
    assert differing(tensors(hf), tensors(beside)) == []


@effect("exist_ok")
def test_exist_ok_writes_into_a_folder_and_leaves_other_files(mcore, hf, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model-00001-of-00009.safetensors").write_text("an earlier export")
    refused = export(to_hf=True, mcore_model=mcore, output_dir=tmp_path)
    assert refused.exit_code == ExitCode.BAD_ARGUMENTS
    assert (
        f"args.output_dir: exists; choose another folder, or set exist_ok to write into it (got {str(tmp_path)!r})"
        == (refused.message)
    )
    assert export(to_hf=True, mcore_model=mcore, output_dir=tmp_path, exist_ok=True).exit_code == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert differing(tensors(hf), tensors(tmp_path)) == []


@effect("max_shard_size")
def test_max_shard_size_is_the_largest_file_of_weights(mcore, hf, tmp_path):
    done = export(to_hf=True, mcore_model=mcore, output_dir=tmp_path / "out", max_shard_size="100KB")
    assert done.exit_code == 0, done.message
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert max(path.stat().st_size for path in files) < 110_000
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors(hf).keys()
    assert differing(tensors(hf), tensors(tmp_path / "out")) == []


@effect("safe_serialization")
def test_safe_serialization_false_is_refused(hf):
    assert (hf / "model.safetensors").is_file()
    refused = export(to_hf=True, mcore_model=hf, safe_serialization=False)
    assert refused.exit_code == ExitCode.BAD_ARGUMENTS
    assert "weights are written as safetensors only" in refused.message


@effect("test_convert_precision")
def test_test_convert_precision_compares_and_names_the_first_layer_that_departs(mcore, tmp_path):
    done = export(to_hf=True, mcore_model=mcore, output_dir=tmp_path / "hf", test_convert_precision=True)
    assert done.exit_code == 0, (done.message, done.comparison)
    assert done.comparison[-2:] == ("layers: all within 1e-04 of their largest value", "precision test: passed")
    changed = export(
        to_mcore=True, model=tmp_path / "hf", rotary_base=9, output_dir=tmp_path / "m", test_convert_precision=True
    )
    assert changed.exit_code == ExitCode.ERROR, changed.message
    assert changed.comparison[-2].startswith("layers: the first to diverge is layer 0: by up to ")
    assert changed.comparison[-1] == "precision test: FAILED"


@effect("test_convert_dtype")
def test_test_convert_dtype_is_what_the_comparison_computes_in(mcore, tmp_path):
    given = {"to_hf": True, "mcore_model": mcore, "test_convert_precision": True}
    half = export(**given, output_dir=tmp_path / "one", test_convert_dtype="bfloat16")
    assert half.exit_code == 0, half.comparison
    assert "(bound 1e-01)" in half.comparison[1]


@effect("mcore_adapters")
def test_mcore_adapters_are_merged_and_may_be_a_peft_folder(trained, hf, tmp_path):
    merged = export(to_hf=True, mcore_adapters=[str(trained)], output_dir=tmp_path / "m", test_convert_precision=True)
    assert merged.exit_code == 0, (merged.message, merged.comparison)
    assert "model.layers.0.self_attn.q_proj.weight" in differing(tensors(hf), tensors(tmp_path / "m"))
    peft = export(to_hf=True, adapter_load=[str(trained / "adapter")], output_dir=tmp_path / "p")
    assert peft.exit_code == 0, peft.message
    assert differing(tensors(tmp_path / "m"), tensors(tmp_path / "p")) == []
    mcore = export(to_mcore=True, mcore_adapters=[str(trained)], output_dir=tmp_path / "c")
    assert mcore.exit_code == 0, mcore.message
    assert export(to_hf=True, mcore_model=tmp_path / "c", output_dir=tmp_path / "h").exit_code == 0
    assert differing(tensors(tmp_path / "m"), tensors(tmp_path / "h")) == []


def test_an_adapter_that_stays_unmerged_is_written_as_peft_loads_it(trained, tmp_path):
    done = export(to_hf=True, mcore_adapters=[str(trained)], merge_lora=False, output_dir=tmp_path / "a")
    assert done.exit_code == 0, done.message
    assert differing(tensors(trained / "adapter"), tensors(tmp_path / "a")) == []
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["r"] == 4


@pytest.fixture(scope="module")
def adapter(trained, tmp_path_factory):
    """The adapter as PEFT loads it, compared on the way out."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    done = export(
        to_hf=True, mcore_adapters=[str(trained)], merge_lora=False, output_dir=folder, test_convert_precision=True
    )
    assert done.exit_code == 0, (done.message, done.comparison)
    assert done.comparison[-1] == "precision test: passed"
    return folder


@pytest.mark.slow
def test_a_precision_test_of_an_adapter_finds_where_it_departs(adapter, tmp_path):
    done = export(
        to_mcore=True, mcore_adapters=[str(adapter)], merge_lora=False, output_dir=tmp_path / "m", rotary_base=9,
        test_convert_precision=True,
    )  # fmt: skip
    assert done.exit_code == ExitCode.ERROR, (done.message, done.comparison)
    assert done.comparison[-2].startswith("layers: the first to diverge is layer 0")


@pytest.mark.slow
def test_a_peft_adapter_becomes_a_checkpoint_that_training_starts_from(adapter, trained, model, data, tmp_path):
    """A run of rate 0 from the checkpoint leaves the adapter as it was; converted back it is the same."""
    mcore = tmp_path / "mcore"
    done = export(
        to_mcore=True, adapters=[str(adapter)], merge_lora=False, output_dir=mcore, test_convert_precision=True
    )
    assert done.exit_code == 0, (done.message, done.comparison)
    assert done.comparison[-1] == "precision test: passed"
    assert export(to_hf=True, mcore_adapters=[str(mcore)], merge_lora=False, output_dir=tmp_path / "p").exit_code == 0
    assert differing(tensors(trained / "adapter"), tensors(tmp_path / "p")) == []
    settings = {"train_type": "lora", "train_iters": 1, "lr": 1e-30, "lora_rank": 4, "torch_dtype": "bfloat16"}
    settings |= {"adapter_load": str(mcore), "finetune": True}
    run = tiny_run.train(tiny_run.arguments(model, data, tmp_path / "run", **settings))
    assert run.exit_code == 0, run.message
    assert differing(tensors(trained / "adapter"), tensors(tmp_path / "run" / "adapter")) == []


def test_a_megatron_adapter_is_not_converted_to_itself(trained, tmp_path):
    done = export(to_mcore=True, mcore_adapters=[str(trained)], merge_lora=False, output_dir=tmp_path / "m")
    assert done.exit_code == ExitCode.MISSING_INPUT
    assert "is a Megatron-Core checkpoint already; set to_hf" in done.message


@pytest.mark.slow
def test_an_adapter_on_a_megatron_base_is_compared_on_that_base(mcore, adapter, tmp_path):
    done = export(
        to_hf=True, mcore_model=mcore, mcore_adapters=[str(adapter)], merge_lora=False, output_dir=tmp_path / "p",
        test_convert_precision=True,
    )  # fmt: skip
    assert done.exit_code == 0, (done.message, done.comparison)
    assert done.comparison[-1] == "precision test: passed"
