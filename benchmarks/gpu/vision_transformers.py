"""transformers' side of vision.py, which calls it with its settings as JSON and reads the logging.jsonl that it leaves.

Rows become tokens and pixels in the worker processes of its Trainer, in order, by the model's own image processor.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from clock import Clock
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, SequentialSampler
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, Trainer, TrainingArguments

IGNORED = -100
END = "<|im_end|>"
LINEARS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


class InOrder(Trainer):
    """transformers' trainer, one row after the other."""

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset)


class Rows(Dataset):
    """Token ids, labels, pixels and grids of each row; the answer and the token that ends it have a loss."""

    def __init__(self, path: Path, model: str, max_pixels: int) -> None:
        self.folder = path.parent
        self.rows = [json.loads(line) for line in path.read_text().splitlines()]
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.processor = AutoImageProcessor.from_pretrained(model, backend="pil")
        least = min(self.processor.size["shortest_edge"], max_pixels)
        self.processor.size = type(self.processor.size)(shortest_edge=least, longest_edge=max_pixels)
        self.image = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        question, answer = self.rows[number]["messages"]
        names = self.rows[number].get("images", [])
        found, counts = {}, []
        if names:
            pictures = [Image.open(self.folder / name).convert("RGB") for name in names]
            made = self.processor(images=pictures, return_tensors="pt")
            found = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
            counts = (made["image_grid_thw"].prod(-1) // self.processor.merge_size**2).tolist()
        text = question["content"].removeprefix("<image>" * len(names))
        turns = [{"role": "user", "content": [{"type": "image"}] * len(names) + [{"type": "text", "text": text}]}]
        shown = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        start = self.tokenizer(shown, return_tensors="pt")["input_ids"][0]
        repeats = torch.ones_like(start)
        repeats[start == self.image] = torch.tensor(counts, dtype=torch.long)
        start = start.repeat_interleave(repeats)
        end = self.tokenizer(answer["content"] + END, return_tensors="pt")["input_ids"][0]
        labels = torch.cat([torch.full_like(start, IGNORED), end])
        return {"input_ids": torch.cat([start, end]), "labels": labels, **found}


class Padded:
    """A micro-batch of rows, padded on the right."""

    def __init__(self, image: int) -> None:
        self.image = image

    def __call__(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        tokens = [row["input_ids"] for row in rows]
        ids = pad_sequence(tokens, batch_first=True)
        batch = {
            "input_ids": ids,
            "attention_mask": pad_sequence([torch.ones_like(each) for each in tokens], batch_first=True),
            "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
            "mm_token_type_ids": (ids == self.image).int(),
        }
        for key in ("pixel_values", "image_grid_thw"):
            if parts := [row[key] for row in rows if key in row]:
                batch[key] = torch.cat(parts)
        return batch


def main(given: dict) -> None:
    folder = Path(given["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    on_card = given["device"] == "cuda"
    rows = Rows(Path(given["rows"]), given["model"], given["max_pixels"])
    model = load(given, on_card=on_card)
    trainer = InOrder(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=given["steps"],
            per_device_train_batch_size=given["micro_rows"],
            gradient_accumulation_steps=given["num_micro_batches"],
            learning_rate=given["rate"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            bf16=on_card,
            use_cpu=not on_card,
            gradient_checkpointing=given["checkpointing"],
            gradient_checkpointing_kwargs={"use_reentrant": False} if given["checkpointing"] else None,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=given["workers"],
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=Padded(rows.image),
        callbacks=[Clock(folder / "logging.jsonl", tokens_of_steps(rows, given), key="loss", on_card=on_card)],
    )
    trainer.train()


def load(given: dict, *, on_card: bool) -> torch.nn.Module:
    """The model in bfloat16 with the parts frozen that are to be, or with adapters on its language model."""
    flash = on_card and importlib.util.find_spec("flash_attn") is not None
    attention = "flash_attention_2" if flash else "sdpa"
    model = AutoModelForImageTextToText.from_pretrained(
        given["model"], dtype=torch.bfloat16, attn_implementation=attention
    )
    model.config.use_cache = False
    print(f"attention: {attention}", flush=True)
    if given["kind"] == "lora":
        return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=LINEARS))
    model.model.visual.requires_grad_(given["kind"] == "full")
    return model


def tokens_of_steps(rows: Rows, given: dict) -> list[int]:
    """Tokens of text and images in each step; padding does not count."""
    size = given["micro_rows"] * given["num_micro_batches"]
    lengths = [len(rows[number]["input_ids"]) for number in range(len(rows))]
    return [sum(lengths[start : start + size]) for start in range(0, len(lengths), size)]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
