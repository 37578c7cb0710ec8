"""What messages call a field of megatron-core's configurations is one."""

from megatron_trainer.models.extra import KNOWN
from megatron_trainjob.args.other_programs import FIELDS_OF_MEGATRON


def test_what_is_called_a_field_is_one():
    assert FIELDS_OF_MEGATRON <= KNOWN
