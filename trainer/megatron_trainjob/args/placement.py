"""Which layers each pipeline stage holds, chunk by chunk. Pure.

A stage holds one chunk of consecutive layers, or with the interleaved schedule several, which take turns: of 8 layers
in two stages of two chunks each the first stage holds layers 0, 1 and 4, 5. Callers have checked the rules; a division
that they forbid raises ValueError here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate

from megatron_trainjob.args.derive import whole
from megatron_trainjob.args.tree import TrainArgs

EMBEDDING, DECODER, PREDICTION, LOSS = "E", "t", "m", "L"
"""The parts of a model in pipeline_model_parallel_layout; "|" ends a chunk, "(..)*n" and "x*n" repeat."""
_MOST = 10_000
"""Characters of a repetition when it is written out."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """pipeline_model_parallel_layout: the parts of each chunk, in the order of the layers."""

    chunks: tuple[str, ...]

    def count(self, part: str) -> int:
        """How often the part occurs."""
        return sum(chunk.count(part) for chunk in self.chunks)

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers of each chunk."""
        return tuple(chunk.count(DECODER) for chunk in self.chunks)


def read_layout(text: str) -> Layout:
    """The chunks of a text such as Et*3|(tt|)*2,m|L: Ettt, tt, tt, m, L. Commas only part the text.

    Raises ValueError for another character, or parts in another order than that of the model.
    """
    written = text.replace(",", "").replace(" ", "")
    for pattern in (r"\(([^()]+)\)\*(\d+)", r"([EtmL|])\*(\d+)"):
        written = re.sub(pattern, _repeated, written)
    wrong = sorted(set(written) - set("EtmL|"))
    if wrong:
        raise ValueError(f"has {wrong[0]!r}; it is written with E (embedding), t (layer), m, L (loss), |, * and ( )")
    if not re.fullmatch("Et+m*L", written.replace("|", "")):
        raise ValueError("must begin with the only E, then have the layers t, then any m, and end with the only L")
    chunks = tuple(written.split("|"))
    if "" in chunks:
        raise ValueError(f"leaves chunk {chunks.index('') + 1} of {len(chunks)} empty")
    if PREDICTION in written and (written.count(PREDICTION) != chunks[-1].count(PREDICTION)):
        raise ValueError("must have every m in the last chunk, beside L")
    return Layout(chunks=chunks)


def _repeated(match: re.Match[str]) -> str:
    part, number = match[1], match[2]
    if len(number) > len(str(_MOST)) or int(number) * len(part) > _MOST:
        raise ValueError(f"repeats {part} {number} times; a model has no more than {_MOST} parts")
    return part * int(number)


def _given_layout(args: TrainArgs) -> Layout | None:
    text = args.pipeline_model_parallel_layout
    return read_layout(text) if text and args.pipeline_model_parallel_size > 1 else None


def _layout(args: TrainArgs, num_layers: int) -> Layout | None:
    """The layout where one is given. Raises ValueError if it is for another number of layers or stages."""
    layout = _given_layout(args)
    if layout is None:
        return None
    whole(len(layout.chunks), args.pipeline_model_parallel_size, "the number of chunks", "pipeline_model_parallel_size")
    if layout.count(DECODER) != num_layers:
        raise ValueError(f"places {layout.count(DECODER)} layers, and the model has {num_layers}")
    return layout


def layers_per_stage(args: TrainArgs, num_layers: int) -> tuple[int, ...]:
    """Layers of each pipeline stage, first to last. Raises ValueError when they cannot be placed evenly."""
    stages = args.pipeline_model_parallel_size
    first, last = args.decoder_first_pipeline_num_layers, args.decoder_last_pipeline_num_layers
    if stages == 1:
        return (num_layers,)
    middle_stages = stages - (first is not None) - (last is not None)
    middle_layers = num_layers - (first or 0) - (last or 0)
    if middle_stages == 0:
        if middle_layers != 0:
            raise ValueError(f"the two stages hold {(first or 0) + (last or 0)} of {num_layers} layers")
        return tuple(layers for layers in (first, last) if layers is not None)
    if middle_layers % middle_stages:
        raise ValueError(f"{middle_layers} layers are not divisible by {middle_stages} pipeline stages")
    each = middle_layers // middle_stages
    if each < 1:
        raise ValueError(f"{middle_layers} layers are left for {middle_stages} pipeline stages")
    return (
        *(() if first is None else (first,)),
        *(each,) * middle_stages,
        *(() if last is None else (last,)),
    )


def virtual_stages(args: TrainArgs, num_layers: int) -> int | None:
    """Number of interleaved chunks of each pipeline stage; None without interleaving. ValueError: uneven chunks."""
    stages, given = args.pipeline_model_parallel_size, args.virtual_pipeline_model_parallel_size
    if stages == 1:
        return None
    layout = _layout(args, num_layers)
    if layout is not None:
        chunks = len(layout.chunks) // stages
        if given not in (None, chunks):
            raise ValueError(f"pipeline_model_parallel_layout gives {chunks} chunks per stage, not {given}")
        return chunks if chunks > 1 else None
    if args.num_layers_per_virtual_pipeline_stage is not None:
        size = stages * args.num_layers_per_virtual_pipeline_stage
        chunks = whole(num_layers, size, "number of layers", "stages * num_layers_per_virtual_pipeline_stage")
        if given not in (None, chunks):
            raise ValueError(f"num_layers_per_virtual_pipeline_stage gives {chunks} chunks per stage, not {given}")
        given = chunks
    if given is None or given == 1:
        return None
    whole(num_layers, stages * given, "number of layers", "stages * virtual_pipeline_model_parallel_size")
    return given


def layers_per_chunk(args: TrainArgs, num_layers: int) -> tuple[int, ...]:
    """Layers of every chunk that has any. Raises ValueError when they cannot be placed evenly."""
    chunks = chunks_of_stages(args, num_layers)
    return tuple(len(chunk) for of_stage in chunks for chunk in of_stage if chunk)


def chunks_of_stages(args: TrainArgs, num_layers: int) -> tuple[tuple[range, ...], ...]:
    """The layers of each pipeline stage, chunk by chunk: with virtual stages the chunks of the stages alternate.

    Raises ValueError when they cannot be placed evenly.
    """
    stages, rounds = args.pipeline_model_parallel_size, virtual_stages(args, num_layers) or 1
    layout = _layout(args, num_layers)
    sizes = (
        layout.layers
        if layout is not None
        else tuple(layers // rounds for layers in layers_per_stage(args, num_layers)) * rounds
    )
    ends = tuple(accumulate(sizes))
    chunks = tuple(range(end - size, end) for size, end in zip(sizes, ends, strict=True))
    return tuple(chunks[stage::stages] for stage in range(stages))
