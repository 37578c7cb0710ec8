"""What several_cards.py runs on a number of cards: loss curves, checkpoints that change the layout, and speeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shapes import EXPERTS, QWEN2_5_7B, QWEN3_30B_A3B, SHAPE

from tests.support.models import layouts

Arguments = Mapping[str, Any]

TUNERS: dict[str, Arguments] = {
    "full": {"lr": 1e-3},
    "lora": {"train_type": "lora", "lr": 3e-3, "lora_dropout": 0.0},
}
DTYPES = {"float32": 2e-4, "bfloat16": 5e-3}
"""Of a tiny model's numbers -> relative difference of a loss that is rounding."""
OF_TWO = {"llama": ("tp2 sp", "pp2", "pp2 vpp2", "cp2", "dp2"), "qwen3_moe": ("ep2", "etp2", "pp2")}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A tiny model trained in one layout; compared with the same on one card."""

    model: str
    tuner: str
    dtype: str
    layout: str

    @property
    def name(self) -> str:
        """For example "llama lora bfloat16 tp2 pp2 dp2"."""
        return f"{self.model} {self.tuner} {self.dtype} {self.layout}"

    @property
    def num_cards(self) -> int:
        """Ranks of its layout."""
        return layouts.of_run(self.layout)[1]

    @property
    def arguments(self) -> Arguments:
        """Those of tuner, type and layout."""
        return {**TUNERS[self.tuner], "torch_dtype": self.dtype, **layouts.of_run(self.layout)[0]}


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A training that is stopped and goes on in the next layout, each with its own number of cards."""

    model: str
    tuner: str
    layouts: tuple[str, ...]

    @property
    def name(self) -> str:
        """For example "llama full: tp2 pp2 dp2 -> pp2 -> tp1"."""
        return f"{self.model} {self.tuner}: {' -> '.join(self.layouts)}"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A shape with random weights on full rows. raw: options of raw_megatron_core.py for the same, None for none.

    depth: "as fits" takes as many layers as the plan says that a card holds. steps: of which the first six are warm-up.
    """

    name: str
    shape: Arguments
    num_cards: int
    arguments: Arguments
    raw: tuple[str, ...] | None = None
    depth: str = "whole"
    target: str = ""
    limit_s: float = 150.0
    steps: int = 16
    environment: Mapping[str, str] = field(default_factory=dict)


def layouts_for(num_cards: int) -> dict[str, tuple[str, ...]]:
    """Layouts of each model, of as many cards as there are, or fewer."""
    known = OF_TWO if num_cards < 4 else layouts.OF_FOUR_AND_EIGHT
    return {
        model: tuple(text for text in texts if layouts.of_run(text)[1] <= num_cards) for model, texts in known.items()
    }


def curves(num_cards: int) -> list[Curve]:
    """On one card first: the others are compared with these."""
    of_one = {model: ("tp1",) for model in layouts_for(num_cards)}
    return [
        Curve(model=model, tuner=tuner, dtype=dtype, layout=text)
        for known in (of_one, layouts_for(num_cards))
        for dtype in DTYPES
        for tuner in TUNERS
        for model, texts in known.items()
        for text in texts
        if tuner == "full" or layouts.takes_adapters(text)
    ]


def chains(num_cards: int) -> list[Chain]:
    """All cards -> two -> one -> all of them otherwise."""
    dense, experts = {
        8: (("tp2 pp2 dp2", "pp2", "tp1", "tp4 sp dp2"), ("ep2 pp2 dp2", "ep2", "tp1", "etp2 ep2 dp2")),
        4: (("tp2 pp2", "pp2", "tp1", "tp4 sp"), ("pp2 ep2", "ep2", "tp1", "ep4")),
        2: (("tp2 sp", "tp1", "pp2"), ("ep2", "tp1", "pp2")),
    }[num_cards]
    return [
        Chain(model="llama", tuner="full", layouts=dense),
        Chain(model="llama", tuner="lora", layouts=dense),
        Chain(model="qwen3_moe", tuner="full", layouts=experts),
    ]


FP8 = {"fp8_format": "hybrid"}
LORA = {"train_type": "lora"}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
TWO_BYTE_MOMENTS = {
    "use_precision_aware_optimizer": True,
    "exp_avg_dtype": "bf16",
    "exp_avg_sq_dtype": "bf16",
    "main_grads_dtype": "bf16",
}
ALL_RECOMPUTED = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
LONG = {2: 32768, 4: 131072}
"""Cards -> tokens of one sample that they share."""
SMALL_MOMENTS = ("--two-byte-moments",)


def batches(micro: int, in_a_row: int, copies: int = 1) -> Arguments:
    """Micro-batches one after the other on each of the data-parallel copies."""
    return {"micro_batch_size": micro, "global_batch_size": micro * in_a_row * copies}


def speeds(num_cards: int) -> list[Speed]:
    """The most telling first: the time may end before the last."""
    n = num_cards
    return [
        Speed(name="SmolLM2-1.7B, one card", shape=SHAPE, num_cards=1, arguments=batches(4, 2), raw=("4", "2")),
        Speed(
            name=f"SmolLM2-1.7B, dp{n}",
            shape=SHAPE,
            num_cards=n,
            arguments={**batches(4, 2, n), **OVERLAP},
            raw=("4", "2", "--overlap") if n > 2 else None,
            target="0.95 of one card",
        ),
        *(_of_two_cards() if n == 2 else ()),
        _seven("full, bf16", n, {}, target="11,000 tokens/s a card"),
        _seven("full, FP8", n, FP8),
        Speed(
            name=f"Qwen2.5-7B, LoRA, bf16, dp{n}",
            shape=QWEN2_5_7B,
            num_cards=n,
            arguments={**LORA, **batches(2, 4, n), **OVERLAP},
        ),
        Speed(
            name=f"Qwen2.5-7B, LoRA, FP8, dp{n}",
            shape=QWEN2_5_7B,
            num_cards=n,
            arguments={**LORA, **FP8, **batches(2, 4, n), **OVERLAP},
        ),
        *(_experts(ep) for ep in ((2,) if n == 2 else (4, 8)) if ep <= n),
        _long_rows(min(n, 4)),
    ]


def _of_two_cards() -> tuple[Speed, ...]:
    """Layouts that split a model which one card holds, beside that card."""
    tensor = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    experts = Speed(
        name="16 experts, one card", shape=EXPERTS, num_cards=1, arguments={**TWO_BYTE_MOMENTS, **batches(8, 1)}
    )
    two = {**experts.arguments, **OVERLAP, **batches(8, 1, 2), "expert_model_parallel_size": 2}
    return (
        Speed(name="SmolLM2-1.7B, tp2 sp", shape=SHAPE, num_cards=2, arguments={**tensor, **batches(4, 2)}),
        Speed(
            name="SmolLM2-1.7B, pp2",
            shape=SHAPE,
            num_cards=2,
            arguments={"pipeline_model_parallel_size": 2, **batches(4, 16)},
            steps=10,
        ),
        experts,
        replace(experts, name="16 experts, ep2", num_cards=2, arguments=two, target="0.9 of one card"),
    )


def _seven(name: str, num_cards: int, given: Arguments, target: str = "") -> Speed:
    """Every card holds the model whole where eight share the optimizer's state, else half of it."""
    tensor = 1 if num_cards == 8 else 2
    layout = {"tensor_model_parallel_size": 2, "sequence_parallel": True} if tensor == 2 else {}
    micro, copies = 1, num_cards // tensor
    options = (str(micro), "8", "--overlap", "--tp", str(tensor), *SMALL_MOMENTS, *(("--fp8",) if given else ()))
    return Speed(
        name=f"Qwen2.5-7B, {name}, tp{tensor} dp{copies}",
        shape=QWEN2_5_7B,
        num_cards=num_cards,
        arguments={**layout, **OVERLAP, **TWO_BYTE_MOMENTS, **given, **batches(micro, 8, copies)},
        raw=options,
        target=target,
        limit_s=180.0,
    )


def _experts(ep: int) -> Speed:
    return Speed(
        name=f"Qwen3-30B-A3B's widths, ep{ep}",
        shape=QWEN3_30B_A3B,
        num_cards=ep,
        depth="as fits",
        arguments={"expert_model_parallel_size": ep, **OVERLAP, **TWO_BYTE_MOMENTS, **batches(2, 4, ep)},
        raw=("2", "4", "--overlap", "--ep", str(ep), *SMALL_MOMENTS),
        target="MFU .30",
        limit_s=180.0,
    )


def _long_rows(cards: int) -> Speed:
    length = LONG[cards]
    recomputed = cards > 2  # else it fits without
    return Speed(
        name=f"SmolLM2-1.7B's shape, rows of {length // 1024}k, cp{cards}",
        shape={**SHAPE, "max_position_embeddings": length},
        num_cards=cards,
        arguments={
            **(ALL_RECOMPUTED if recomputed else {}),
            **OVERLAP,
            **batches(1, 2),
            "context_parallel_size": cards,
            "max_length": length,
            "packing_length": length,
        },
        raw=(*("1", "2", "--overlap", "--cp", str(cards), "--length", str(length)), *(["--recompute"] * recomputed)),
        limit_s=240.0,
    )
