"""Effects of the arguments that say where model, tokenizer and arguments come from."""

import json
from pathlib import Path

import pytest
import torch

from megatron_trainer.process import recorded_arguments as inherit
from megatron_trainjob.args.parse import Accepted, Refused, parse
from tests.effects.registry import effect
from tests.support.models import tiny_model
from tests.support.ranks import source_ranks, tiny_run
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.source_ranks import lay_out_hub

pytestmark = pytest.mark.dist


@effect("new_special_tokens")
def test_new_special_tokens_grow_tokenizer_and_embedding(train, tmp_path):
    """One from the argument, two from a file; the export is a model that transformers loads with them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "more.txt").write_text("<file>\n<line>\n")
    run = train(new_special_tokens=["<call>", str(tmp_path / "more.txt")], to_hf=True, train_iters=1)
    assert run.exit_code == 0, run.message
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "hf")
    ids = tokenizer.convert_tokens_to_ids(["<call>", "<file>", "<line>"])
    assert ids == list(range(ids[0], ids[0] + 3))
    assert tokenizer("<call>")["input_ids"] == [ids[0]]
    model = AutoModelForCausalLM.from_pretrained(run.folder / "hf")
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] >= len(tokenizer)


@pytest.mark.slow
def test_new_special_tokens_are_trained_beside_an_adapter(train, llama):
    """PEFT's merge of the adapter folder is the merged export, new rows too; the tokenizer lies beside it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train(
        new_special_tokens=["<call>"],
        train_type="lora",
        modules_to_save=["word_embeddings", "output_layer"],
        merge_lora=True,
        train_iters=2,
        lr=1e-2,
    )
    assert run.exit_code == 0, run.message
    merged = AutoModelForCausalLM.from_pretrained(run.folder / "hf")
    base = AutoModelForCausalLM.from_pretrained(llama)
    base.resize_token_embeddings(merged.config.vocab_size)
    adapted = PeftModel.from_pretrained(base, run.folder / "adapter").merge_and_unload().state_dict()
    assert all(torch.allclose(adapted[name], tensor, atol=1e-6) for name, tensor in merged.state_dict().items())
    assert "<call>" in AutoTokenizer.from_pretrained(run.folder / "adapter").get_vocab()


@effect("use_hf", "model_revision")
def test_use_hf_takes_the_model_from_the_hub_at_its_revision(llama, data, model_root, tmp_path):
    main, second = (tiny_model.make("llama", model_root, seed=seed, num_hidden_layers=2) for seed in (1, 2))
    cache = lay_out_hub(tmp_path / "hub", main=main, second=second)

    def loss(name: str, model: str, **given: object) -> float:
        arguments = tiny_run.arguments(Path(model), data, tmp_path / name, train_iters=1, **given)
        (run,) = gloo_ranks(1).run(source_ranks.train_from_hub, str(cache), arguments)
        assert run.exit_code == 0, run.message
        return run.column("lm loss")[0]

    assert loss("a", "tiny/llama", use_hf=True) == loss("b", str(llama))
    assert loss("c", "tiny/llama", use_hf=True, model_revision="second") == loss("d", str(second))


@effect("use_hf")
def test_without_use_hf_a_repository_is_refused_with_what_to_do(train):
    run = train(model="tiny/llama")
    assert run.exit_code == 66
    assert "set use_hf: true" in run.message


@effect("max_model_len")
def test_max_model_len_decides_the_factor_of_a_scaling_that_is_named(llama):
    """The tiny model reaches 512 tokens by itself."""
    for length, factor in ((1024, 2.0), (2048, 4.0)):
        settings = {"rope_scaling": "yarn", "max_model_len": length}
        (scaling,) = gloo_ranks(1).run(source_ranks.rotary_scaling, str(llama), settings)
        assert scaling["factor"] == factor


@pytest.fixture(scope="module")
def checkpoint(llama, data, tmp_path_factory):
    """A run with a system prompt, in a folder of its own."""
    folder = tmp_path_factory.mktemp("first") / "run"
    run = tiny_run.train(tiny_run.arguments(llama, data, folder, train_iters=1, system="Be brief.", max_length=120))
    assert run.exit_code == 0, run.message
    return folder


def inherited(checkpoint: Path, **given: object):
    common = {"load": str(checkpoint), "finetune": True, "dataset": ["d.jsonl"], "train_iters": 1}
    parsed = parse({**common, **given}, task="sft")
    assert isinstance(parsed, Accepted), parsed
    return inherit.complete(parsed, "sft", world_size=1)


@effect("load_args")
def test_load_args_takes_model_and_template_arguments_from_the_checkpoint(checkpoint, llama):
    """What is given here wins; the model is taken over in any case, what belongs to data or training never."""
    args = inherited(checkpoint, load_args=True, max_length=64).args
    assert (args.model, args.system, args.torch_dtype, args.max_length) == (str(llama), "Be brief.", "float32", 64)
    assert args.lr is None
    without = inherited(checkpoint).args
    assert (without.model, without.system, without.torch_dtype) == (str(llama), None, None)


@effect("load_data_args")
def test_load_data_args_takes_the_data_from_the_checkpoint(checkpoint, data):
    args = inherited(checkpoint, load_data_args=True, dataset=None).args
    assert args.dataset == (str(data),)
    assert args.system is None


@effect("load_args")
def test_a_checkpoint_without_a_record_is_refused_and_named(tmp_path):
    parsed = inherited(tmp_path, load_args=True, model="m")
    assert isinstance(parsed, Refused)
    assert str(tmp_path / "args.json") in parsed.violations[0].message


@effect("load_args")
def test_a_run_starts_from_the_record_of_another_alone(checkpoint, data, tmp_path):
    given = {"load": str(checkpoint), "finetune": True, "load_args": True, "dataset": [str(data)], "train_iters": 1}
    common = {"save": str(tmp_path / "second"), "add_version": False, "num_workers": 0, "global_batch_size": 4}
    run = tiny_run.run_program({**given, **common})
    assert run.exit_code == 0, run.output
    record = json.loads((tmp_path / "second" / "args.json").read_text())["arguments"]
    assert record["system"] == "Be brief."
    assert torch.tensor(run.column("lm loss")).isfinite().all()
