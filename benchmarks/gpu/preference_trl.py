"""TRL's side of preference.py, which calls it with its settings as JSON: trains, and leaves logging.jsonl as ours does.

Pairs come tokenized and in order. A step's seconds go from the end of the one before to its own, the card waited for.
"""

import json
import sys
from pathlib import Path

import torch
import trl
from clock import Clock
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class InOrder(trl.DPOTrainer):
    """TRL's trainer on tokens that are there already, one pair after the other."""

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset)


def main(given: dict) -> None:
    folder = Path(given["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    rows = [
        tokens_of(json.loads(line), tokenizer, given["max_length"])
        for line in Path(given["pairs"]).read_text().splitlines()
    ]
    on_card = given["device"] == "cuda"
    # What DPOConfig trains full models in by itself is float32 under autocast; frozen weights are bfloat16 anyway.
    half = on_card and (given["lora"] or not given["checkpointing"])
    config = trl.DPOConfig(
        output_dir=str(folder),
        max_steps=given["steps"],
        per_device_train_batch_size=given["micro_pairs"],
        gradient_accumulation_steps=given["num_micro_batches"],
        learning_rate=given["rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_length=None,
        beta=0.1,
        bf16=on_card,
        use_cpu=not on_card,
        gradient_checkpointing=given["checkpointing"],
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=2 if on_card else 0,
        remove_unused_columns=False,
    )
    clock = Clock(folder / "logging.jsonl", tokens_of_steps(rows, given), key="rewards/margins", on_card=on_card)
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.bfloat16 if half else torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=LINEARS) if given["lora"] else None,
        callbacks=[clock],
    )
    trainer.train()


def tokens_of(row: dict, tokenizer, max_length: int) -> dict[str, list[int]]:
    """Prompt, and both answers up to the token that ends them, cut where a sequence is too long."""
    prompt = row["messages"][:1]
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    found = {"prompt_ids": start}
    for name, text in (("chosen", row["messages"][1]["content"]), ("rejected", row["rejected_response"])):
        answer = tokenizer(text.strip(), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        found[f"{name}_ids"] = answer[: max_length - len(start)]
    return found


def tokens_of_steps(rows: list[dict], given: dict) -> list[int]:
    size = given["micro_pairs"] * given["num_micro_batches"]
    lengths = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    return [sum(lengths[start : start + size]) for start in range(0, len(lengths), size)]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
