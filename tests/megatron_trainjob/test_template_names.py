"""Names of chat templates in ms-swift: what each means for each model, and suggestions for others."""

import pytest

from megatron_trainjob.args.groups.base_template import BUILT_IN_TEMPLATES
from megatron_trainjob.args.rules.check import check
from megatron_trainjob.args.template_names import NAMES, OF_SOME, OWN, is_own, models_of
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import FAMILIES


def said(template: str, model_type: str | None = None, **given) -> list[tuple[str, str]]:
    args = TrainArgs(model="m", dataset=("d",), template=template, **given)
    config = None if model_type is None else {"model_type": model_type}
    found = check(args, frozenset({"template"}), task="sft", hf_config=config, path="")
    return [(each.severity, each.message) for each in found if each.path.endswith("template")]


def test_names_belong_to_models_that_are_trained_and_none_is_built_in():
    known = {*FAMILIES, "internvl"}
    assert {kind for kinds in (*OWN.values(), *OF_SOME.values()) for kind in kinds} <= known
    assert not NAMES & set(BUILT_IN_TEMPLATES)
    assert all(not set(OWN.get(name, ())) & set(OF_SOME.get(name, ())) for name in NAMES)


@pytest.mark.parametrize(("template", "model_type"), [("qwen3", "qwen3_moe"), ("llama4", "llama4"), ("glm4", "glm4")])
def test_the_name_of_the_models_own_template_is_accepted(template: str, model_type: str):
    assert said(template, model_type) == said(template) == []


def test_a_name_that_only_some_models_of_the_type_have_is_accepted_with_a_warning():
    message = "stands for the model's own chat template, which is qwen3_nothinking only in some of type qwen3"
    assert said("qwen3_nothinking", "qwen3") == [("warning", f"{message}: `mtj data --show 3`")]
    assert said("qwen3_nothinking", "qwen3", use_chat_template=False) == []
    assert [severity for severity, _ in said("llama3_2", "llama")] == ["warning"], "as are Vicuna and SmolLM2"


def test_the_template_of_another_model_is_refused_with_what_to_do():
    [(severity, message)] = said("qwen2_5", "llama")
    assert severity == "error"
    assert message.startswith("is the chat template of models of type qwen2, not of llama; leave it out to use")
    assert models_of("glm4") == ("glm4", "glm")


@pytest.mark.parametrize(("template", "near"), [("qwen3-thinking", "qwen3_thinking"), ("chat_ml", "chatml")])
def test_an_unknown_name_gets_a_suggestion(template: str, near: str):
    [(severity, message)] = said(template, "qwen3")
    assert severity == "error"
    assert message.startswith(f"no such template; did you mean {near}? Otherwise leave it out")
    assert "did you mean" not in said("yuan", "qwen3")[0][1]


def test_a_name_renders_as_if_it_were_unset_and_built_in_ones_do_not():
    assert all(map(is_own, (None, "qwen3", "llama3_2")))
    assert not any(map(is_own, ("chatml", "llama3", "own.jinja")))
