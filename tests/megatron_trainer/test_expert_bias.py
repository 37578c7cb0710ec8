"""What moves the bias of experts: their tokens in a global batch, however it is padded and spread over ranks."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.support.models import layouts, tiny_model
from tests.support.ranks import tiny_run

pytestmark = [pytest.mark.dist, pytest.mark.slow]

BIAS = "e_score_correction_bias"
RATE = 0.01


@pytest.fixture(scope="module")
def biases(tmp_path_factory):
    """biases(layout, **arguments): of every layer, after one step of one global batch of samples of many lengths."""
    root = tmp_path_factory.mktemp("biases")
    data = tiny_run.write_data(root / "train.jsonl", rows=8)

    def run(text, **given):
        chosen = layouts.read(text)["arguments"]
        settings = {"train_iters": 1, "global_batch_size": 8, "moe_router_bias_update_rate": RATE, "to_hf": True}
        arguments = tiny_run.arguments(
            tiny_model.make("deepseek_v3", root), data, root / f"{text}{len(given)}", **settings, **chosen, **given
        )
        done = tiny_run.train(arguments, ranks=layouts.num_ranks(chosen))
        assert done.exit_code == 0, done.message
        # Stages write a file each.
        files = [load_file(path) for path in (done.folder / "hf").glob("*.safetensors")]
        return {name: value for file in files for name, value in file.items() if name.endswith(BIAS)}

    return run


def test_padding_counts_for_no_expert_whole_or_split_over_ranks(biases):
    """One sample a micro-batch has nothing to pad. Eight in one are padded to the longest of them."""
    unpadded = biases("tp1", micro_batch_size=1)
    for text in ("tp1", "tp2 sp etp1", "tp2 sp pp2 etp1"):
        padded = biases(text, micro_batch_size=8, padding_free=False)
        assert padded.keys() == unpadded.keys()
        assert [name for name in padded if not torch.allclose(padded[name], unpadded[name], atol=RATE / 10)] == []
