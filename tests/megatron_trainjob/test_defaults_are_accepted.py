"""Writing an argument's default out changes nothing: manifests made by tools name every argument."""

import pytest

from megatron_trainjob.args.parse import Accepted, parse, task_defaults
from megatron_trainjob.args.tree import ARGUMENTS

DATA = {"model": "m", "dataset": ["d"], "train_iters": 10}
CONTEXTS = {
    "pt": ("pt", DATA),
    "sft": ("sft", DATA),
    "sft-lora": ("sft", {**DATA, "train_type": "lora"}),
    "sft-packing": ("sft", {**DATA, "packing": True}),
    "sft-stream": ("sft", {**DATA, "streaming": True}),
    "classifier": ("sft", {**DATA, "task_type": "seq_cls", "num_labels": 2}),
    "embedding": ("sft", {**DATA, "task_type": "embedding", "loss_type": "infonce"}),
    "reranker": ("sft", {**DATA, "task_type": "reranker", "loss_type": "pointwise_reranker"}),
    "dpo": ("rlhf", DATA),
    "dpo-lora": ("rlhf", {**DATA, "train_type": "lora"}),
    "kto": ("rlhf", {**DATA, "rlhf_type": "kto", "loss_type": "kto", "micro_batch_size": 2}),
    "rm": ("rlhf", {**DATA, "rlhf_type": "rm"}),
    "export": ("export", {"model": "m", "to_mcore": True}),
}


@pytest.mark.parametrize(("task", "given"), CONTEXTS.values(), ids=CONTEXTS)
def test_every_argument_is_accepted_at_its_default(task, given):
    defaults = {
        name: argument.default
        for name, argument in ARGUMENTS.items()
        if task in argument.applies_to and argument.status != "refused"
    }
    parsed = parse({**defaults, **task_defaults(task), **given}, task=task)
    assert isinstance(parsed, Accepted), [str(violation) for violation in parsed.violations]
