"""What file names and headers of a model folder tell of its weights, without a tensor library."""

import json

import pytest

from megatron_trainjob import families, weight_files
from megatron_trainjob.families import tensors
from tests.support.operator.job_values import write_weights

CONFIG = {"model_type": "llama", "vocab_size": 320}
INDEX = weight_files.INDEX_FILE


def problems(folder):
    return list(weight_files.problems(folder, CONFIG))


def test_a_folder_without_weights_is_told_where_they_may_lie(tmp_path):
    (found,) = problems(tmp_path)
    assert found.startswith("has no weights (model.safetensors, model.safetensors.index.json, pytorch_model.bin")


@pytest.mark.parametrize("content", ["{", "[]", "{}"], ids=["broken", "a list", "without a map"])
def test_an_index_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    (found,) = problems(tmp_path)
    assert found.startswith(f"its {INDEX} cannot be read")


def test_a_shard_that_is_lost_is_named(tmp_path):
    shards = {"model.embed_tokens.weight": "one.safetensors", "lm_head.weight": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": shards}))
    write_weights(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "one.safetensors")
    assert problems(tmp_path) == ["its index names two.safetensors, which is not there; download it again"]


def test_rows_of_another_vocabulary_are_named_for_each_tensor(tmp_path):
    write_weights(tmp_path, model__embed_tokens__weight=321, lm_head__weight=320)
    (found,) = problems(tmp_path)
    assert found.endswith("model.embed_tokens.weight has 321 rows, vocab_size says 320")


def test_the_rows_of_a_shard_are_read_from_the_shard(tmp_path):
    write_weights(tmp_path, lm_head__weight=64)
    (tmp_path / "model.safetensors").rename(tmp_path / "two.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "two.safetensors"}}))
    (found,) = problems(tmp_path)
    assert found.endswith("lm_head.weight has 64 rows, vocab_size says 320")


def test_a_file_that_is_no_safetensors_is_left_to_loading(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    assert problems(tmp_path) == []


LLAMA = {**CONFIG, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
LOST = "model.layers.1.mlp.up_proj.weight"


def test_tensors_that_are_missing_or_left_over_are_named_as_loading_names_them(tmp_path):
    model = families.read(LLAMA)
    stored = {name.replace(".", "__"): 320 for name in {*tensors.names(model), "extra"} - {LOST}}
    write_weights(tmp_path, **stored)
    assert list(weight_files.problems(tmp_path, LLAMA, model)) == [
        f"1 tensors that the model needs are missing: {LOST}",
        "1 tensors belong to no part of the model; is config.json of another model?: extra",
    ]


def test_an_index_that_its_files_belie_is_named(tmp_path):
    write_weights(tmp_path, model__norm__weight=4)
    (tmp_path / "model.safetensors").rename(tmp_path / "one.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "one.safetensors"}}))
    message = "its index says that one.safetensors holds lm_head.weight, which is not there; download it again"
    assert problems(tmp_path) == [message]
