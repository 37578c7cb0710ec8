"""The weights of each strategy, token by token, against hand-written expectations."""

import pytest

from megatron_trainer.data.encoding.encode import Encoder, EncodeSettings
from megatron_trainer.data.encoding.loss_scale import STRATEGIES
from megatron_trainer.data.row import Record
from megatron_trainjob.args.tree import ARGUMENTS
from tests.support.models.text_models import THINKING, chatml_tokenizer

TOKENIZER = chatml_tokenizer()
END = ("<|im_end|>", 1)


def weighed(messages, loss_scale, tokenizer=TOKENIZER):
    """The trained text as (text, weight) runs."""
    encoder = Encoder(tokenizer, EncodeSettings(loss_scale=loss_scale))
    [result] = encoder.encode([Record(0, "x", 1, {"messages": messages})])
    runs = []
    for token, weight in zip(result.input_ids[0], result.weights[0], strict=True):
        if weight > 0 and runs and runs[-1][1] == weight:
            runs[-1][0].append(token)
        elif weight > 0:
            runs.append(([token], weight))
    return [(tokenizer.decode(tokens), weight) for tokens, weight in runs]


def asked(answer, question="Do it"):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


REACT = "Thought: hm\nAction: look\nAction Input: sky\nObservation: blue\nFinal Answer: blue"
CASES = {
    "react": (
        asked(REACT),
        "react",
        [
            ("Thought: hm\n", 1),
            ("Action: look\nAction Input: sky\nObservation:", 2),
            ("Final Answer: blue<|im_end|>", 1),
        ],
    ),
    "react ends with a tool's answer": (asked("Observation: blue"), "react", [("Observation:", 2), END]),
    "alpha_umi": (
        asked("Action: look\nNext: caller"),
        "alpha_umi",
        [("Action: look\nNext: caller", 2), END],
    ),
    "hermes": (
        asked('So: <tool_call>\n{"a": 1}\n</tool_call> done'),
        "hermes",
        [("So: ", 1), ('<tool_call>\n{"a": 1}\n</tool_call>', 2), (" done<|im_end|>", 1)],
    ),
    "qwen": (
        asked("✿FUNCTION✿: look\n✿ARGS✿: {}\n✿RESULT✿: x\n✿RETURN✿: y"),
        "qwen",
        [("✿FUNCTION✿: look\n✿ARGS✿: {}\n✿RESULT✿:", 2), ("✿RETURN✿: y<|im_end|>", 1)],
    ),
    "agentflan keywords": (asked("Action: look"), "agentflan", [("Action:", 1), (" look", 3), END]),
    "agentflan question": (
        asked("look", "What is the tool you want to use?"),
        "agentflan",
        [("look", 3), END],
    ),
    "two rounds, each by its own question": (
        asked("a", "What is the value of x?") + asked("b"),
        "agentflan",
        [("a", 3), ("<|im_end|>b<|im_end|>", 1)],
    ),
    "ignore_empty_think": (asked("<think>\n\n</think>\n\nYes"), "ignore_empty_think", [("Yes<|im_end|>", 1)]),
    "ignore_empty_think keeps a thought": (
        asked("<think>hm</think>Yes"),
        "ignore_empty_think",
        [("<think>hm</think>Yes<|im_end|>", 1)],
    ),
    "last_round_with_ignore_empty_think": (
        asked("No") + asked("<think></think>Yes"),
        "last_round_with_ignore_empty_think",
        [("Yes<|im_end|>", 1)],
    ),
    "last_round+hermes": (
        asked("<tool_call>a</tool_call>") + asked("So <tool_call>b</tool_call>"),
        "last_round+hermes",
        [("So ", 1), ("<tool_call>b</tool_call>", 2), END],
    ),
    "react+ignore_empty_think": (
        asked("<think></think>Action: look<think> </think>up\nObservation: blue"),
        "react+ignore_empty_think",
        [("Action: lookup\nObservation:", 2), END],
    ),
    "agentflan+ignore_empty_think, a question": (
        asked("<think>\n</think>look", "What is the tool you want to use?"),
        "agentflan+ignore_empty_think",
        [("look", 3), END],
    ),
    "last_round+qwen+ignore_empty_think": (
        asked("✿ARGS✿: 1") + asked("<think></think>✿ARGS✿: 2"),
        "last_round+qwen+ignore_empty_think",
        [("✿ARGS✿: 2", 2), END],
    ),
}


@pytest.mark.parametrize(("messages", "loss_scale", "expected"), CASES.values(), ids=CASES.keys())
def test_weights(messages, loss_scale, expected):
    assert weighed(messages, loss_scale) == expected


def test_an_empty_thought_that_the_template_adds_is_ignored_too():
    tokenizer = chatml_tokenizer(THINKING)
    assert weighed(asked("Yes"), "default", tokenizer) == [("<think>\n\n</think>\n\nYes<|im_end|>", 1)]
    assert weighed(asked("Yes"), "ignore_empty_think", tokenizer) == [("Yes<|im_end|>", 1)]


def test_there_is_a_strategy_for_every_choice_of_the_argument():
    assert set(STRATEGIES) == set(ARGUMENTS["loss_scale"].choices)


def test_only_strategies_that_choose_are_binary():
    binary = {name for name, strategy in STRATEGIES.items() if strategy.is_binary}
    assert binary == {"default", "last_round", "all", "ignore_empty_think", "last_round_with_ignore_empty_think"}
