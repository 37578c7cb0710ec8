"""Which test shows the effect of which argument: an argument may be called `works` only when it has one.

    @effect("lora_rank")
    def test_lora_rank_is_the_width_of_an_adapter(): ...

An effect test changes only its argument and observes what the reference documents. One test may stand for several
arguments when each alone is changed in it.
"""

from collections.abc import Callable

EFFECTS: dict[str, list[Callable[..., object]]] = {}


def effect[Test: Callable[..., object]](*arguments: str) -> Callable[[Test], Test]:
    """Enters the decorated test for each of the arguments and leaves it as it is."""

    def enter(test: Test) -> Test:
        for name in arguments:
            EFFECTS.setdefault(name, []).append(test)
        return test

    return enter
