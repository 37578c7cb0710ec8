"""What became of odd model folders: our logits and our export beside transformers, or why a model was refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.support.models.odd_models import OddModel, draw
from tests.support.ranks import model_logits

EXPORTED = "exported"
BOUND = 2e-5
"""Of the difference, as a share of the largest logit."""

Outcome = Literal["equal", "refused", "refused late", "wrong", "crashed", "unmade", "ours alone"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """outcome: "unmade" when both transformers and we refuse the config.json, "ours alone" when transformers refuses or
    cannot run what we accept, "refused late" when the trainer refuses what `mtj validate` would let pass.
    detail: the message or the difference.
    """

    odd: OddModel
    outcome: Outcome
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.odd.seed} {self.odd.family} ({self.odd.storage}): {self.outcome}: {self.detail}"


def judge_all(seeds: Iterable[int], root: Path) -> list[Verdict]:
    """Runs on one gloo rank."""
    return [judge(draw(seed), root) for seed in seeds]


def judge_each(models: Mapping[str, OddModel], root: Path) -> dict[str, Verdict]:
    """The same of named models."""
    return {name: judge(odd, root / name.replace(" ", "-")) for name, odd in models.items()}


def judge(odd: OddModel, root: Path) -> Verdict:
    """Makes the model, asks both and compares."""
    directory = root / str(odd.seed)
    try:
        return _judge(odd, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _judge(odd: OddModel, directory: Path) -> Verdict:
    from tests.support.models.odd_folders import write

    try:
        write(odd, directory)
    except Exception as error:  # noqa: BLE001 - transformers raises anything
        return _unmade(odd, directory, f"{type(error).__name__}: {error}")
    validated = list(_validated(directory))
    try:
        logits = model_logits.ours_of(directory, export=directory / EXPORTED)
    except Exception as error:  # noqa: BLE001 - whatever else ends a rank is a defect
        return Verdict(odd=odd, outcome="crashed", detail=f"{type(error).__name__}: {error}")
    if isinstance(logits, list):
        late = [message for message in logits if message not in validated]
        return Verdict(odd=odd, outcome="refused late" if late else "refused", detail="; ".join(late or logits))
    if validated:
        return Verdict(odd=odd, outcome="wrong", detail=f"validate alone refuses it: {'; '.join(validated)}")
    try:
        expected = _theirs(odd, directory)
    except Exception as error:  # noqa: BLE001 - transformers raises anything
        return Verdict(odd=odd, outcome="ours alone", detail=f"run: {type(error).__name__}: {error}")
    exported = _of_transformers(directory / EXPORTED, odd.family)
    differences = [float(abs(other - expected).max() / abs(expected).max()) for other in (logits, exported)]
    outcome: Outcome = "equal" if max(differences) <= BOUND else "wrong"
    return Verdict(odd=odd, outcome=outcome, detail="{:.1e}, exported {:.1e}".format(*differences))


def _unmade(odd: OddModel, directory: Path, reason: str) -> Verdict:
    """A config.json that transformers does not take: we must not take it either."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(odd.config))
    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.failure import InvalidInput
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    args = TrainArgs(model=str(directory), torch_dtype="float32")
    try:
        spec = read_model(directory, args)
        parallel.initialize(args)
        build_model(spec, args, backends.select())
    except InvalidInput as refused:
        return Verdict(odd=odd, outcome="unmade", detail=f"{reason} | {refused}")
    except Exception as error:  # noqa: BLE001
        return Verdict(odd=odd, outcome="crashed", detail=f"{type(error).__name__}: {error}")
    return Verdict(odd=odd, outcome="ours alone", detail=f"read: {reason}")


def _validated(directory: Path) -> Iterator[str]:
    """What `mtj validate` says of the folder."""
    from megatron_trainjob import weight_files
    from megatron_trainjob.args.model.check import check
    from megatron_trainjob.args.tree import TrainArgs

    raw = json.loads((directory / "config.json").read_text())
    checked = check(raw, TrainArgs(model=str(directory), torch_dtype="float32"))
    yield from (violation.message for violation in checked.violations)
    yield from weight_files.problems(directory, raw, None if checked.violations else checked.model)


def _theirs(odd: OddModel, directory: Path) -> Any:
    from transformers import CompressedTensorsConfig, FineGrainedFP8Config

    kinds = {"blocks": FineGrainedFP8Config, "channels": CompressedTensorsConfig, "tensors": CompressedTensorsConfig}
    kind = kinds.get(odd.storage)
    return _of_transformers(directory, odd.family, **({"quantization_config": kind(dequantize=True)} if kind else {}))


def _of_transformers(directory: Path, family: str, **settings: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    if family == "kimi_k2":  # transformers has its code under another name
        content = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**content, "model_type": "deepseek_v3"}))
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", **settings
    )
    with torch.no_grad():
        return model.eval()(model_logits.row(model.config.vocab_size), use_cache=False).logits[0].float().numpy()


def main() -> None:
    """python -m tests.support.ranks.odd_logits FIRST LAST: says what is not equal, and counts the rest."""
    import sys
    import tempfile

    from tests.support.ranks.odd_logits import judge_all  # not of __main__, which no rank has
    from tests.support.ranks.pool import gloo_ranks

    first, last = (int(text) for text in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as root:
        (verdicts,) = gloo_ranks(1).run(judge_all, range(first, last), Path(root))
    for verdict in verdicts:
        if verdict.outcome != "equal":
            print(verdict)
    print(Counter(verdict.outcome for verdict in verdicts))


if __name__ == "__main__":
    main()
