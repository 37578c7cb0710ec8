"""A checkpoint of one layout, read in others: the logits are those of the exported model in transformers.

The model has trained, so that the weights it started from would not pass; what is read comes with its optimizer state.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.models import layouts, tiny_model
from tests.support.ranks import checkpoint_logits, parity
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import arguments, train, write_data

pytestmark = [pytest.mark.dist, pytest.mark.slow]
LORA = {"train_type": "lora", "lora_rank": 4, "lora_dropout": 0.0, "lr": 1e-1, "merge_lora": True}
UNEVEN = {"pipeline_model_parallel_size": 2, "decoder_first_pipeline_num_layers": 1}
NO_EXPERTS = ("tp1", "tp2", "tp2 sp", "pp2", "uneven", "cp2")
EXPERTS = ("tp1", "pp2", "cp2", "ep2", "tp2 sp ep2 etp1")
LARGEST = 1e-4
"""Of float32 sums in another order."""
CASES = {
    "dense": ("llama", "tp2 sp", {}, NO_EXPERTS),
    "uneven stages": ("llama", "uneven", {}, NO_EXPERTS),
    "an adapter": ("llama", "tp2", LORA, NO_EXPERTS),
    "spread experts": ("qwen3_moe", "ep2", {}, EXPERTS),
    "adapters of spread experts": ("qwen3_moe", "ep2", LORA, EXPERTS),
    "latent attention": ("deepseek_v3", "tp2 sp", {}, EXPERTS),
}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model that trained for two steps in one layout, and transformers' logits of its export."""

    given: dict[str, object]
    folder: Path
    reference: Path


def chosen(text: str) -> dict[str, object]:
    return UNEVEN if text == "uneven" else layouts.read(text)["arguments"]


def ranks(text: str) -> int:
    return layouts.num_ranks(chosen(text))


def largest_change(before: Path, after: Path) -> float:
    pairs = zip(torch.load(before)["logits"], torch.load(after)["logits"], strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


@pytest.fixture(scope="module")
def trained(model_root, tmp_path_factory):
    """trained(case): each is made once."""
    root = tmp_path_factory.mktemp("trained")
    data = write_data(root / "train.jsonl")
    made: dict[str, Trained] = {}

    def of(case: str) -> Trained:
        name, saved_in, given, _ = CASES[case]
        if case not in made:
            model = tiny_model.make(name, model_root)
            given = arguments(model, data, root / case, **{"train_iters": 2, "lr": 1e-2, "to_hf": True, **given})
            run = train({**given, **chosen(saved_in)}, ranks=ranks(saved_in))
            assert run.exit_code == 0, run.message
            before, after = (parity.make_reference(path, packed=False) for path in (model, run.folder / "hf"))
            assert largest_change(before, after) > 100 * LARGEST, "or the weights before would pass as well"
            made[case] = Trained(given=given, folder=run.folder, reference=after)
        return made[case]

    return of


@pytest.mark.parametrize(("case", "text"), [(case, text) for case, (*_, texts) in CASES.items() for text in texts])
def test_a_checkpoint_gives_the_same_logits_in_every_layout(trained, case, text):
    saved = trained(case)
    mapping = {**saved.given, **chosen(text), "calculate_per_token_loss": False}
    arguments_of_rank = (mapping, saved.folder, saved.reference)
    assert gloo_ranks(ranks(text)).run(checkpoint_logits.difference, *arguments_of_rank)[0] < LARGEST
