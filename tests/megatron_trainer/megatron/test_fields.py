"""What messages call a field of megatron-core's configurations is one, and what they call none is none."""

import dataclasses
from pathlib import Path

from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import MLATransformerConfig

import megatron_trainer
from megatron_operator.translate.elsewhere import SAME, WITHOUT_EFFECT
from megatron_trainer.models.extra import KNOWN
from megatron_trainjob.args.names import ALIASES
from megatron_trainjob.args.other_programs import FIELDS_OF_MEGATRON, NO_FIELDS
from megatron_trainjob.args.tree import ARGUMENTS

DECIDED = ("models/settings.py", "train/optim.py")


def decided() -> set[str]:
    """The fields that are decided here, which extra_megatron_kwargs may not have."""
    folder = Path(megatron_trainer.__file__).parent
    text = "".join((folder / name).read_text() for name in DECIDED)
    return {name for name in KNOWN if f'"{name}": ' in text}


def test_what_is_called_a_field_is_one():
    assert FIELDS_OF_MEGATRON <= KNOWN


def test_a_field_that_is_decided_here_is_not_said_to_be_passed_on():
    assert FIELDS_OF_MEGATRON & decided() == {"initial_loss_scale"}


def test_what_is_called_none_is_none_or_decided_here():
    assert set(NO_FIELDS) & KNOWN <= decided()


def test_what_a_translation_leaves_out_is_megatrons_default():
    """from-args leaves these fields out for such a value, and passes others on."""
    fields = [*dataclasses.fields(MLATransformerConfig), *dataclasses.fields(OptimizerConfig)]
    defaults = {field.name: str(field.default).lower() for field in fields}
    left_out = {name: values for name, values in SAME.items() if name in FIELDS_OF_MEGATRON}
    assert {name: defaults[name] for name in left_out} == {name: values[0] for name, values in left_out.items()}


def test_what_a_translation_leaves_out_is_no_argument():
    assert not {*SAME, *WITHOUT_EFFECT} & {*ARGUMENTS, *ALIASES}
