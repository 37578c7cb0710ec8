"""Speeds on one card: tokens per second, MFU, and the peak of memory beside what `mtj plan` says.

    python3 benchmarks/gpu/one_card.py OUT DATA.jsonl TOKENIZER_DIR CASE ...

DATA is packed as it is; where megatron-core alone is measured too, rows are all of full length. Prints a row of a table
for each case. Instead of the paths, --list prints the names of all cases; --write before them writes the inputs of the
cases and their arguments.yaml alone, for profile_step.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import card_speeds
import torch
import yaml
from card_cases import ALL_RECOMPUTED, FP8, LORA, TWO_BYTE_MOMENTS, Speed, batches
from shapes import EXPERTS, QWEN2_5_7B, QWEN3_30B_A3B, SHAPE

ONE_BYTE_MOMENTS = {**TWO_BYTE_MOMENTS, "exp_avg_dtype": "fp8", "exp_avg_sq_dtype": "fp8"}
FOUR_LAYERS = {**ALL_RECOMPUTED, "recompute_method": "block", "recompute_num_layers": 4}
RECIPES = {
    "": FP8,
    "-tensorwise": {**FP8, "fp8_recipe": "tensorwise"},
    "-blockwise": {"fp8_format": "e4m3", "fp8_recipe": "blockwise"},
    "-ends-in-bf16": {
        **FP8,
        "fp8_recipe": "tensorwise",
        "extra_megatron_kwargs": {
            "first_last_layers_bf16": True,
            "num_layers_at_start_in_bf16": 1,
            "num_layers_at_end_in_bf16": 1,
        },
    },
}


def case(name: str, shape, *arguments, raw=None, environment=None, depth: str = "whole") -> Speed:
    merged = {key: value for part in arguments for key, value in part.items()}
    return Speed(
        name=name, shape=shape, num_cards=1, arguments=merged, raw=raw, depth=depth, environment=environment or {}
    )


def cases() -> list[Speed]:
    small = TWO_BYTE_MOMENTS
    seven = (batches(1, 16), ONE_BYTE_MOMENTS)
    return [
        case("full", SHAPE, batches(4, 2)),
        case("full-two-bytes", SHAPE, small, batches(8, 1)),
        case("rows", SHAPE, batches(4, 2), raw=("4", "2")),
        *(case(f"full-fp8{name}", SHAPE, batches(4, 2), recipe) for name, recipe in RECIPES.items()),
        case("rows-fp8", SHAPE, batches(4, 2), FP8, raw=("4", "2", "--fp8")),
        case("lora", SHAPE, LORA, batches(4, 2)),
        case("lora-7b", QWEN2_5_7B, LORA, batches(2, 4)),
        *(case(f"lora-7b-fp8{name}", QWEN2_5_7B, LORA, batches(2, 4), recipe) for name, recipe in RECIPES.items()),
        case("full-7b", QWEN2_5_7B, *seven),
        case("full-7b-two-rows", QWEN2_5_7B, *seven, batches(2, 8)),
        case("full-7b-four-layers", QWEN2_5_7B, *seven, FOUR_LAYERS),
        case("full-7b-norms", QWEN2_5_7B, *seven, {"recompute_modules": ["layernorm"]}),
        case("full-7b-recomputed", QWEN2_5_7B, *seven, ALL_RECOMPUTED, batches(4, 4)),
        case("full-7b-fp8", QWEN2_5_7B, *seven, FP8),
        case("experts", EXPERTS, small, batches(8, 1)),
        case("experts-cublas", EXPERTS, small, batches(8, 1), environment={"NVTE_USE_CUTLASS_GROUPED_GEMM": "0"}),
        case("experts-16", EXPERTS, small, batches(16, 1)),
        case("experts-rows", EXPERTS, small, batches(4, 2), raw=("4", "2", "--two-byte-moments")),
        case("experts-30b-slice", QWEN3_30B_A3B, small, batches(8, 1), depth="as fits"),
        case("experts-30b-slice-4", QWEN3_30B_A3B, small, batches(4, 2), depth="as fits"),
    ]


def main(out: Path, data: Path, tokenizer: Path, names: list[str]) -> None:
    known = {each.name: each for each in cases()}
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()} | tokens/s | MFU | peak GiB | planned | raw", flush=True)
    for name in names:
        chosen, folder = known[name], out / name
        folder.mkdir(parents=True)
        try:
            chosen = card_speeds.fitted(chosen, total)
            model, rows = card_speeds.write_inputs(chosen, folder, data, tokenizer)
            found = card_speeds.measure(chosen, model, data if chosen.raw is None else rows, folder / "run")
            raw = card_speeds.measure_raw(replace(chosen), model, folder / "raw.log") if chosen.raw else 0
        except card_speeds.SpeedFailed as err:
            print(f"{name} | failed: {err}", flush=True)
            continue
        planned = f"{found.planned_gib:.1f} ({found.depth} layers)"
        numbers = f"{found.tokens_per_second_per_card:,.0f} | {found.mfu or 0:.3f} | {found.peak_gib:.1f} | {planned}"
        print(f"{name} | {numbers} | {raw:,.0f}", flush=True)


def write(out: Path, data: Path, tokenizer: Path, names: list[str]) -> None:
    known = {each.name: each for each in cases()}
    for name in names:
        chosen, folder = card_speeds.fitted(known[name], torch.cuda.get_device_properties(0).total_memory), out / name
        folder.mkdir(parents=True)
        model, rows = card_speeds.write_inputs(chosen, folder, data, tokenizer)
        arguments = card_speeds.arguments_of(chosen, model, data if chosen.raw is None else rows, folder / "run")
        (folder / "arguments.yaml").write_text(yaml.safe_dump(arguments))


if __name__ == "__main__":
    given = sys.argv[1:]
    if given == ["--list"]:
        print("\n".join(each.name for each in cases()))
    else:
        run = write if given[0] == "--write" else main
        paths = given[1:] if run is write else given
        run(*(Path(part).absolute() for part in paths[:3]), paths[3:])
