"""Damaged inputs through the program's own entry: each ends with a code that a retry cannot help, and says why."""

import shutil

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from megatron_trainjob.exit_codes import ExitCode, retry_class
from tests.support.checkpoint import damaged_inputs
from tests.support.models import tiny_model
from tests.support.ranks.tiny_run import arguments, run_program, write_data

pytestmark = [pytest.mark.dist, pytest.mark.slow]

HARMLESS = {
    *("config: rope_scaling {}", "config: architectures 'x'", "config: architectures 3", "config: architectures [3]"),
    *("config: auto_map {'AutoConfig': 'x.Y'}", "config: pad_token_id -1", "config: transformers_version 3"),
    "config: dtype None",
    "generation: eos beyond",  # no token has this number, so it is no stop; the others are
    "tokenizer_config: class unknown",  # transformers takes the general class, as for many published models
    *("tokenizer_config: template a number", "tokenizer_config: templates odd"),  # chat_template.jinja is read instead
}
"""Labels that say nothing about the model, or that transformers replaces by what lies beside."""

HARMLESS_IN_ADAPTER = {
    *("adapter_config: bias 'lora_only'", "adapter_config: bias 3", "adapter_config: target_modules 3"),
    *("adapter_config: target_modules ['nope']", "adapter_config: modules_to_save 3"),
    "adapter_config: modules_to_save ['lm_head']",
}
"""What is adapted is told by the names of the tensors."""


def refused(run, *, names):
    """Asserts that the run ended for good and that its message names what is damaged and what to do."""
    assert retry_class(run.exit_code) == "never", run.output
    assert run.exit_code in (ExitCode.BAD_ARGUMENTS, ExitCode.BAD_DATA, ExitCode.MISSING_INPUT, ExitCode.UNSUPPORTED)
    assert any(name in run.output for name in names), run.output
    assert "Traceback" not in run.output, run.output


@pytest.fixture(scope="module")
def started(model_root, tmp_path_factory):
    """A right model, a right adapter of it, and data."""
    root = tmp_path_factory.mktemp("damaged")
    model = tiny_model.make("llama", model_root)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(root / "adapter")
    return model, root / "adapter", write_data(root / "train.jsonl")


@pytest.mark.parametrize("name", damaged_inputs.MODEL)
def test_a_damaged_model_folder_ends_the_rank_with_its_code(started, tmp_path, name):
    model, _, data = started
    folder = shutil.copytree(model, tmp_path / "model")
    damaged_inputs.MODEL[name](folder)
    given = {"train_iters": 1, "torch_dtype": None if "dtype" in name else "float32"}
    run = run_program(arguments(folder, data, tmp_path / "run", **given))
    if name in HARMLESS:
        assert run.exit_code == 0, run.output
    else:
        refused(run, names=("config.json", "spec.args.model", "template"))


LORA = {"train_type": "lora", "lora_rank": 4, "lora_alpha": 8, "target_modules": ["linear_qkv"], "finetune": True}


@pytest.mark.parametrize("name", damaged_inputs.ADAPTER)
def test_a_damaged_adapter_ends_the_rank_with_its_code(started, tmp_path, name):
    model, adapter, data = started
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    damaged_inputs.ADAPTER[name](folder)
    given = {**LORA, "train_iters": 1, "adapter_load": str(folder)}
    run = run_program(arguments(model, data, tmp_path / "run", **given))
    if name in HARMLESS_IN_ADAPTER:
        assert run.exit_code == 0, run.output
    else:
        refused(run, names=("spec.args.adapter_load",))
