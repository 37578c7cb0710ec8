"""What file names and headers of a model folder tell of its weights, without a tensor library."""

import json
import math
import re

import pytest

from megatron_trainjob import families, weight_files
from megatron_trainjob.families import shapes, tensors
from megatron_trainjob.quantization import Quantization
from tests.support.data.no_files import lay
from tests.support.operator.job_values import write_header, write_weights

CONFIG = {"model_type": "llama", "vocab_size": 320}
INDEX = weight_files.INDEX_FILE


def problems(folder):
    return list(weight_files.problems(folder, CONFIG))


def test_error_for_a_folder_without_weights_lists_accepted_files(tmp_path):
    (found,) = problems(tmp_path)
    assert found.startswith("has no weights (model.safetensors, model.safetensors.index.json, pytorch_model.bin")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors has no index beside it"),
        ("model-Q4_K_M.gguf", "model-Q4_K_M.gguf is in a format that is not read"),
        ("model-00001-of-00002.gguf", "is in a format that is not read"),
    ],
)
def test_what_lies_in_a_folder_in_place_of_weights_decides_the_remedy(tmp_path, name, said):
    (tmp_path / name).write_text("")
    (found,) = problems(tmp_path)
    assert said in found


@pytest.mark.parametrize(
    ("has_weights", "said"),
    [
        (True, "holds an adapter beside the model (adapter_config.json), which transformers loads with it"),
        (False, "has no weights (.*); it holds an adapter: pass it as adapter_load, and its base model as model"),
    ],
)
def test_an_adapter_in_the_folder_of_a_model_is_not_left_out_unsaid(tmp_path, has_weights, said):
    if has_weights:
        write_weights(tmp_path, **dict.fromkeys(("lm_head__weight", "model__embed_tokens__weight"), 320))
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text("")
    (found,) = problems(tmp_path)
    assert re.match(re.escape(said).replace(r"\.\*", ".*"), found)


def test_a_link_to_weights_that_were_not_copied_is_named(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("../../blobs/5c1f")
    (found,) = problems(tmp_path)
    assert "model.safetensors is a link to ../../blobs/5c1f, which is missing; copy the folder with cp -L" in found


@pytest.mark.parametrize(
    "section", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes"}, {"bits": 4}, "4bit"]
)
def test_weights_in_an_unsupported_quantization_are_left_to_the_check_of_config_json(tmp_path, section):
    write_header(tmp_path, {"model.layers.0.self_attn.q_proj.qweight": (8, 64)})
    assert list(weight_files.problems(tmp_path, {**CONFIG, "quantization_config": section})) == []


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
    assert problems(tmp_path) == ["its index names two.safetensors, which is missing; download it again"]


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


@pytest.mark.parametrize("content", [b"no header", b"", b"\2" + bytes(7) + b"[]"], ids=["text", "empty", "a list"])
def test_a_file_that_is_no_safetensors_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    (found,) = problems(tmp_path)
    assert found.startswith("its model.safetensors cannot be read (no header of safetensors")


def test_a_file_that_is_cut_short_is_named(tmp_path):
    header = json.dumps({"lm_head.weight": {"dtype": "F32", "shape": [320, 4], "data_offsets": [0, 5120]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
    whole = 8 + len(header) + 5120
    message = f"its model.safetensors is truncated: {whole - 5020} of {whole} bytes; download it again"
    assert problems(tmp_path) == [message]


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ("[320, 4]", "[0, 1e999]"),
        ("[1e999]", "[0, 0]"),
        ("[320, 4]", "[-900, -1]"),
        ("[320, 4]", "[320, 0]"),
        ("[320, 4]", "[1, 0]"),
        ("[-1, 4]", "[0, 0]"),
    ],
)
def test_offsets_and_sizes_that_no_tensor_has_are_named(tmp_path, shape, offsets):
    """The pair is tied, so that loading and this check would compare the bytes at these offsets."""
    tensor = f'{{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}'
    header = f'{{"{tensors.EMBEDDING}": {tensor}, "{tensors.OUTPUT}": {tensor}}}'.encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    config = {**LLAMA, "tie_word_embeddings": True}
    (found,) = weight_files.problems(tmp_path, config, families.read(config))
    assert found.startswith("its model.safetensors cannot be read (no header of safetensors")


LLAMA = {**CONFIG, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
LOST = "model.layers.1.mlp.up_proj.weight"


def test_tensors_that_are_missing_or_left_over_are_named_as_loading_names_them(tmp_path):
    model = families.read(LLAMA)
    stored = {name: shape for name, shape in {**shapes.shapes(model), "extra": (3,)}.items() if name != LOST}
    write_header(tmp_path, stored)
    assert list(weight_files.problems(tmp_path, LLAMA, model)) == [
        f"1 tensors that the model needs are missing: {LOST}",
        "1 tensors belong to no part of the model; is config.json of another model?: extra",
    ]


def test_scales_are_recognized_by_one_table_and_not_counted_as_weights(tmp_path, monkeypatch):
    """A table for each of the 90,000 tensors of a large model in FP8 would take minutes."""
    config = {**LLAMA, "quantization_config": {"quant_method": "fp8"}}
    model = families.read(config)
    stored = shapes.shapes(model)
    grids = {f"{name}_scale_inv": (1, 1) for name in stored if name.endswith("proj.weight")}
    write_header(tmp_path, {**stored, **grids, "left.weight_scale_inv": (1, 1)})
    tables, is_scale = [], Quantization.is_scale

    def noted(self, name, names):
        tables.append(names)
        return is_scale(self, name, names)

    monkeypatch.setattr(Quantization, "is_scale", noted)
    (found,) = weight_files.problems(tmp_path, config, model)
    assert found.endswith("is config.json of another model?: left.weight_scale_inv")
    assert len(tables) > len(stored)
    assert all(table is tables[0] for table in tables)


@pytest.mark.parametrize("index", [None, {}], ids=["a file", "an index"])
def test_weights_without_a_tensor_are_not_taken_for_a_model(tmp_path, index):
    model = families.read(LLAMA)
    if index is None:
        write_header(tmp_path, {})
    else:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
    (found,) = weight_files.problems(tmp_path, LLAMA, model)
    assert found.startswith(f"{len(tensors.names(model))} tensors that the model needs are missing: lm_head.weight")


def test_tensors_of_another_shape_are_named_with_both(tmp_path):
    model = families.read(LLAMA)
    narrow = {"model.layers.0.self_attn.k_proj.weight": (32, 64), "model.norm.weight": (65,)}
    write_header(tmp_path, {**shapes.shapes(model), **narrow})
    assert list(weight_files.problems(tmp_path, LLAMA, model)) == [
        "2 tensors differ from config.json and the arguments: "
        "model.layers.0.self_attn.k_proj.weight is [32, 64] and not [64, 64], model.norm.weight is [65] and not [64]"
    ]


def test_another_output_layer_than_the_tied_embedding_is_named(tmp_path):
    config = {**LLAMA, "tie_word_embeddings": True}
    model = families.read(config)
    data = {name: bytes(4 * math.prod(shape)) for name, shape in shapes.shapes(model).items()}
    embedding = data["model.embed_tokens.weight"]
    for output, expected in ((embedding, []), (embedding[:-1] + b"1", ["lm_head.weight is another than"])):
        write_header(
            tmp_path, {**shapes.shapes(model), "lm_head.weight": (320, 64)}, {**data, "lm_head.weight": output}
        )
        found = list(weight_files.problems(tmp_path, config, model))
        assert [text.partition(": ")[2][:30] for text in found] == expected


def test_an_index_that_its_files_belie_is_named(tmp_path):
    write_weights(tmp_path, model__norm__weight=4)
    (tmp_path / "model.safetensors").rename(tmp_path / "one.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "one.safetensors"}}))
    message = "its index says that one.safetensors holds lm_head.weight, which is missing; download it again"
    assert problems(tmp_path) == [message]


def in_hub_cache(root):
    """A model folder as the Hub's cache lays it: links to blobs beside it."""
    snapshot, blobs = root / "snapshots" / "a1", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_weights(snapshot, model__embed_tokens__weight=321)
    (snapshot / "model.safetensors").rename(blobs / "b1")
    (snapshot / "model-00001-of-00001.safetensors").symlink_to("../../blobs/b1")
    index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00001.safetensors"}}
    (blobs / "b2").write_text(json.dumps(index))
    (snapshot / INDEX).symlink_to("../../blobs/b2")
    return snapshot


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    (found,) = problems(in_hub_cache(tmp_path))
    assert "model.embed_tokens.weight has 321 rows" in found


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "../a1/model-00001-of-00001.safetensors", "a/b"]
)
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, name):
    folder = in_hub_cache(tmp_path)
    (tmp_path / "blobs" / "b2").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    (found,) = problems(folder)
    assert f"names {name!r}, which is not a file name in this folder" in found


@pytest.mark.timeout(10)
@pytest.mark.parametrize("what", ["a named pipe", "a device"])
def test_an_index_that_is_no_file_is_named_at_once(tmp_path, what):
    folder = in_hub_cache(tmp_path)
    (tmp_path / "blobs" / "b2").unlink()
    lay(what, tmp_path / "blobs" / "b2")
    assert any(what in found or "has no weights" in found for found in problems(folder))
