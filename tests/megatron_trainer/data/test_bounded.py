"""Templates that loop, grow or fail in unusual ways are refused, and rows that make them do so are dropped."""

import copy
import resource
import signal

import pytest

from megatron_trainer.data import bounded
from megatron_trainer.data.conversation.chat_template import ChatTemplate
from megatron_trainer.data.conversation.template import choose_template
from megatron_trainer.data.values import Message, RowError
from megatron_trainer.failure import InvalidInput
from tests.support.models import tiny_model

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}"
GROWTH = "{% set s = namespace(v='ab') %}{% for i in range(60) %}{% set s.v = s.v ~ s.v %}{% endfor %}{{ s.v }}"
HOSTILE = {
    "a loop": (LOOP, "took longer than 0.5 s"),
    "a string that doubles": (GROWTH, "took longer|memory"),
    "a product": ("{{ 'a' * 10**12 }}", "memory"),
    "a width": ("{{ 'a'.center(10**12) }}", "memory"),
    "a power": ("{{ (7 + messages|length) ** (9 ** 9) }}", "took longer|memory"),
    "a division by zero": ("{{ 1 // 0 }}", "by zero"),
    "an overflow": ("{{ 2.0 ** 99999 }}", "34, '"),
}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(bounded.bounded.__wrapped__, "__defaults__", (0.5, 1 << 28))


def only_for(word, template):
    """Renders ordinary rows as ChatML does, and a row that begins so by the hostile template."""
    return f"{{% if messages[0]['content'] == '{word}' %}}{template}{{% endif %}}{tiny_model.CHAT_TEMPLATE}"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_row_for_which_the_template_takes_too_much_or_fails_is_a_drop_with_its_reason(impatient, name):
    source, reason = HOSTILE[name]
    template = ChatTemplate(tiny_model.tokenizer(), source=only_for("boom", source))
    fine = [Message(role="user", content="a"), Message(role="assistant", content="b")]
    assert template.render(fine).text.endswith("b<|im_end|>\n")
    with pytest.raises(RowError, match=reason):
        template.render([Message(role="user", content="boom"), fine[1]])
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
    assert not 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= bounded.SECONDS
    assert template.render(fine).text.endswith("b<|im_end|>\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_never_renders_anything_is_refused_before_any_row(impatient, name):
    source, reason = HOSTILE[name]
    tokenizer = copy.deepcopy(tiny_model.tokenizer())
    tokenizer.chat_template = source
    with pytest.raises(InvalidInput, match=reason):
        choose_template(tokenizer, template=None, use_chat_template=True)


def test_an_alarm_that_was_set_outside_still_comes():
    """pytest-timeout's among them: a test that renders a row would otherwise have no time limit."""
    outside = signal.getitimer(signal.ITIMER_REAL)[0]
    signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        with bounded.bounded(seconds=5):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 5
        assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, outside)
