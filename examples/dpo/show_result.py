"""Shows what examples/dpo/smollm2.yaml did, measured apart from the trainer, with transformers and peft.

For every held-out pair: log-probabilities of both answers, by the model without and with the adapter. Before training a
reward is 0 for all answers, so that the comparison is how often the right answer is the likelier one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "quickstart"
sys.path.insert(0, str(QUICKSTART))

import torch  # noqa: E402
from measure import encode  # noqa: E402
from peft import PeftModel  # noqa: E402
from place import data_directory  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Show what the training of examples/dpo did.")
    parser.add_argument("--data", type=Path, default=data_directory(), help="folder with model and held-out.jsonl")
    parser.add_argument("--run", type=Path, help="folder of the run (default: dpo-smollm2 in the data folder)")
    args = parser.parse_args()
    run: Path = args.run or args.data / "dpo-smollm2"
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.data / "model")
    rows = [json.loads(line) for line in (args.data / "held-out.jsonl").read_text().splitlines()]
    pairs = [
        [encode(tokenizer, [row["messages"][0], {"role": "assistant", "content": text}]) for text in both]
        for row in rows
        for both in [(row["messages"][1]["content"], row["rejected_response"])]
    ]
    base = AutoModelForCausalLM.from_pretrained(args.data / "model")
    model = PeftModel.from_pretrained(base, run / "adapter").eval()
    with model.disable_adapter():
        before = log_probabilities(model, pairs)
    after = log_probabilities(model, pairs)
    print(f"\n{len(rows)} held-out pairs, measured with transformers and peft")
    for name, found in (("before", before), ("after", after)):
        print(f"  {name:<7} the right answer is likelier in {int((found[:, 0] > found[:, 1]).sum())} of {len(rows)}")
    rewards = after - before
    print(f"  after   the right answer has the higher reward in {int((rewards[:, 0] > rewards[:, 1]).sum())}")


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, pairs: list[list[tuple[list[int], list[int]]]]) -> torch.Tensor:
    """[pairs, 2]: of the right and of the wrong answer, the end of the turn included, in nats."""
    return torch.tensor([[_of_answer(model, *answer) for answer in pair] for pair in pairs])


def _of_answer(model: PreTrainedModel, tokens: list[int], labels: list[int]) -> float:
    logits_TV = model(input_ids=torch.tensor([tokens])).logits[0, :-1].float()
    targets_T = torch.tensor(labels[1:])
    is_answer_T = targets_T != -100
    found_T = logits_TV[is_answer_T].log_softmax(-1).gather(1, targets_T[is_answer_T][:, None])
    return float(found_T.sum())


if __name__ == "__main__":
    main()
