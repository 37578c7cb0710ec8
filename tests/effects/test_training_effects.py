"""Effects of the basic arguments of training and of its data on real tiny runs; each test changes one argument."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.effects.registry import effect
from tests.support.ranks.tiny_run import write_data

pytestmark = pytest.mark.dist


def exported(run) -> dict[str, torch.Tensor]:
    assert run.exit_code == 0, run.message
    return run.weights()


@effect("train_iters")
def test_train_iters_is_the_number_of_steps(train):
    assert [line["iteration"] for line in train(train_iters=3).log if "lm loss" in line] == [1, 2, 3]


@effect("max_epochs")
def test_max_epochs_ends_the_run_after_that_many_passes(train):
    """18 rows, 4 a step: 36 // 4 = 9 steps in two epochs; an earlier end by train_iters wins."""
    assert len(train(train_iters=None, max_epochs=2, global_batch_size=4).column("lm loss")) == 9
    assert len(train(train_iters=2, max_epochs=2, global_batch_size=4).column("lm loss")) == 2


@effect("global_batch_size")
def test_global_batch_size_is_what_a_step_consumes(train):
    assert train(global_batch_size=6, train_iters=2).column("consumed_samples") == [6, 12]


@effect("micro_batch_size")
def test_micro_batch_size_cuts_the_global_batch_without_changing_it(train):
    """The same samples in 4 passes of 1 or 2 passes of 2: the same loss and step; in order, because the size of a
    micro-batch decides how many of the 18 rows are shuffled."""
    one, two = (train(micro_batch_size=size, dataloader_type="single", to_hf=True) for size in (1, 2))
    assert two.column("lm loss") == pytest.approx(one.column("lm loss"), abs=1e-5)
    assert json.loads((two.folder / "args.json").read_text())["arguments"]["micro_batch_size"] == 2
    for name, tensor in exported(one).items():
        torch.testing.assert_close(exported(two)[name], tensor, atol=2e-4, rtol=0)


@effect("seed")
def test_seed_decides_weights_drawn_at_random(train):
    runs = [train(no_initialization=False, train_iters=1, seed=seed).column("lm loss") for seed in (1, 2, 1)]
    assert runs[0] == runs[2] != runs[1]


@effect("no_initialization")
def test_no_initialization_false_starts_from_random_weights(train, plain):
    run = train(no_initialization=False, train_iters=1)
    assert run.column("lm loss")[0] != plain.column("lm loss")[0]
    assert run.column("lm loss")[0] == pytest.approx(math.log(320), abs=1.0), "an untrained model guesses"


@effect("dataloader_type")
def test_dataloader_type_single_reads_once_in_order_and_ends(train):
    run = train(dataloader_type="single", train_iters=9, global_batch_size=4)
    assert len(run.column("lm loss")) == 18 // 4
    assert run.exit_code == 0


@effect("num_workers")
def test_num_workers_load_in_other_processes_and_change_no_number(train, plain):
    assert train(num_workers=2).column("lm loss") == plain.column("lm loss")


@effect("calculate_per_token_loss")
def test_without_calculate_per_token_loss_every_micro_batch_weighs_the_same(train):
    """Rows of different length: the mean over tokens and the mean over rows pull in different directions."""
    per_token, per_batch = (
        exported(train(calculate_per_token_loss=value, to_hf=True, train_iters=1)) for value in (True, False)
    )
    assert any(not torch.equal(per_token[name], per_batch[name]) for name in per_token)


@effect("cross_entropy_loss_fusion")
def test_cross_entropy_loss_fusion_gives_the_same_loss_with_a_rounded_gradient(train, plain):
    """Megatron's fused kernel returns its gradient in bfloat16: the first loss is equal, later ones within 1e-3."""
    fused, separate = train(cross_entropy_loss_fusion=True).column("lm loss"), plain.column("lm loss")
    assert fused[0] == pytest.approx(separate[0], abs=1e-5)
    assert fused == pytest.approx(separate, abs=1e-3)
    assert fused[1:] != separate[1:]


@effect("enable_dft_loss")
def test_enable_dft_loss_reports_and_trains_the_weighted_loss(train, plain):
    """p log p of single tokens is at most 1 / e."""
    losses = train(enable_dft_loss=True).column("lm loss")
    assert max(losses) < 1 / math.e < min(plain.column("lm loss"))


@effect("manual_gc", "manual_gc_interval")
def test_manual_gc_collects_at_its_own_steps_only(train):
    run = train(manual_gc=True, manual_gc_interval=2, train_iters=5)
    assert scalars(run, "manual-gc-time") == [2, 4]


def scalars(run, name: str) -> list[int]:
    """The steps that TensorBoard has for a scalar."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "runs")).Reload()
    return [event.step for event in events.Scalars(name)]


@effect("use_distributed_optimizer")
def test_the_distributed_optimizer_shards_the_state_and_changes_no_number(train):
    """Each of two ranks holds half of the moments; a checkpoint of either kind names what it holds."""
    sharded, whole = (train(ranks=2, use_distributed_optimizer=value) for value in (True, False))
    assert sharded.column("lm loss") == pytest.approx(whole.column("lm loss"), abs=1e-6)
    assert optimizer_keys(sharded) != optimizer_keys(whole)


def optimizer_keys(run) -> set[str]:
    from torch.distributed.checkpoint import FileSystemReader

    metadata = FileSystemReader(run.folder / "iter_0000004").read_metadata()
    return {key for key in metadata.state_dict_metadata if key.startswith("optimizer")}


@effect("train_type")
def test_train_type_lora_leaves_the_model_alone_and_writes_an_adapter(train, plain):
    run = train(train_type="lora")
    assert (run.folder / "adapter" / "adapter_model.safetensors").exists()
    assert run.column("lm loss")[0] == pytest.approx(plain.column("lm loss")[0], abs=1e-6)
    assert run.column("lm loss")[-1] > plain.column("lm loss")[-1], "few trained weights learn less"


@effect("torch_dtype")
def test_torch_dtype_is_what_the_model_is_trained_and_exported_in(train):
    assert {t.dtype for t in exported(train(torch_dtype="bfloat16", to_hf=True)).values()} == {torch.bfloat16}


@effect("model")
def test_model_is_the_directory_that_weights_come_from(train, model_root, plain):
    from tests.support.models import tiny_model

    other = tiny_model.make("llama", model_root, seed=2)
    assert train(model=str(other), train_iters=1).column("lm loss")[0] != plain.column("lm loss")[0]
    missing = train(model="/nowhere/model", name="missing")
    assert missing.exit_code == 66
    assert "/nowhere/model" in missing.message


@effect("dataset")
def test_dataset_names_what_is_read(train, tmp_path, plain):
    few = write_data(tmp_path / "few.jsonl", rows=4)
    run = train(dataset=[str(few)], train_iters=None, max_epochs=3, global_batch_size=4)
    assert len(run.column("lm loss")) == 3
    missing = train(dataset=[str(tmp_path / "missing.jsonl")], name="missing")
    assert missing.exit_code == 66
    assert "missing.jsonl" in missing.message


@effect("val_dataset")
def test_val_dataset_is_what_evaluation_reads(train, tmp_path):
    eight, three = (write_data(tmp_path / f"{rows}.jsonl", rows=rows) for rows in (8, 3))
    assert train(val_dataset=[str(eight)], train_iters=1).column("eval_samples") == [8]
    of_one_batch = train(dataset=[str(three)], global_batch_size=3, train_iters=1).column("lm loss")
    less_than_one = train(val_dataset=[str(three)], train_iters=1, lr=1e-9, global_batch_size=4)
    assert less_than_one.column("eval_samples") == [3]
    assert less_than_one.column("eval_lm loss") == pytest.approx(of_one_batch, abs=1e-5)


@effect("split_dataset_ratio")
def test_split_dataset_ratio_holds_rows_out_and_writes_them_down(train):
    run = train(split_dataset_ratio=0.25, train_iters=None, max_epochs=1, global_batch_size=4)
    held_out = (run.folder / "val_dataset.jsonl").read_text().splitlines()
    assert len(held_out) == 4
    assert run.column("eval_samples") == [4]
    assert len(run.column("lm loss")) == (18 - 4) // 4


@effect("dataset_shuffle", "data_seed")
def test_dataset_shuffle_and_its_seed_decide_which_rows_come_first(train):
    """Read in order, the first batch holds other rows than shuffled with one seed or another."""
    settings = {"dataloader_type": "single", "train_iters": 1}
    plain, one, two = (
        train(**settings, **choice).column("lm loss")
        for choice in ({"dataset_shuffle": False}, {"data_seed": 1}, {"data_seed": 2})
    )
    assert len({plain[0], one[0], two[0]}) == 3
    assert train(**settings, data_seed=1).column("lm loss") == one


@effect("max_length")
def test_max_length_drops_longer_rows_and_says_so(train):
    run = train(max_length=40, train_iters=1)
    report = json.dumps(json.loads((run.folder / "data_report.json").read_text()))
    assert "longer than max_length" in report


@effect("seq_length")
def test_seq_length_is_max_length_where_that_is_unset(train):
    longer, shorter = (
        json.loads((train(train_iters=1, **lengths).folder / "data_report.json").read_text())
        for lengths in ({"max_length": 256, "seq_length": 40}, {"max_length": None, "seq_length": 40})
    )
    assert "longer than max_length" not in json.dumps(longer)
    assert "longer than max_length" in json.dumps(shorter)


@effect("padding_free")
def test_padding_free_false_pads_rows_and_changes_no_loss(train, plain):
    run = train(padding_free=False, micro_batch_size=2, dataloader_type="single")
    free = train(micro_batch_size=2, dataloader_type="single")
    assert run.column("lm loss") == pytest.approx(free.column("lm loss"), abs=1e-5)


def test_a_tokenizer_that_names_no_token_to_pad_with_trains_alike(train, llama, tmp_path):
    model = shutil.copytree(llama, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    named = {name: token for name, token in settings.items() if name not in ("pad_token", "eos_token")}
    (model / "tokenizer_config.json").write_text(json.dumps(named))
    padded = {"padding_free": False, "micro_batch_size": 2, "dataloader_type": "single", "train_iters": 2}
    without, usual = train(model=str(model), **padded), train(**padded)
    assert without.exit_code == 0, without.message
    assert without.column("lm loss") == usual.column("lm loss")


@effect("to_hf")
def test_to_hf_writes_a_model_that_transformers_loads(train, plain):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(plain.folder / "hf").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain.weights().items())
    assert not (train(train_iters=1).folder / "hf").exists()


@effect("merge_lora")
def test_merge_lora_exports_the_model_with_the_adapter_in_it(train):
    run = train(train_type="lora", merge_lora=True, lora_dropout=0.0)
    assert run.exit_code == 0, run.message
    assert (run.folder / "hf" / "model.safetensors").exists()


@effect("add_version")
def test_add_version_gives_every_run_a_folder_of_its_own(train):
    for _ in range(2):
        assert train(add_version=True, train_iters=1, name="versions").exit_code == 0
    folder: Path = train(add_version=True, train_iters=1, name="versions").folder
    versions = sorted(path.name.split("-")[0] for path in folder.glob("v*"))
    assert versions == ["v0", "v1", "v2"]
