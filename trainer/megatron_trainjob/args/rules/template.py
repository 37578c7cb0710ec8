"""Chat templates and formats of tools: built-in ones, files, and names of those that models have themselves."""

from __future__ import annotations

import difflib

from megatron_trainjob.args import template_names
from megatron_trainjob.args.groups.base_template import BUILT_IN_TEMPLATES, TEMPLATE_CHOICES, TEMPLATE_FILES
from megatron_trainjob.args.rules.rule import Facts, rule

FORMATS_OF_TOOLS = {
    "llama3": ("llama",),
    "llama4": ("llama4", "llama4_text"),
    "mistral": ("mistral", "mixtral"),
    "glm4": ("glm",),
    "glm4_0414": ("glm4",),
    "glm4_5": ("glm4_moe",),
}
"""Values of agent_template that name what the chat template of models of these types renders itself."""


@rule("agent_template", "template", needs_model=True)
def tools_are_rendered_by_the_models_own_template(facts: Facts) -> str:
    """The format of a family is that of its models' own chat templates."""
    args, kind = facts.args, str(facts.config.get("model_type"))
    if args.agent_template not in FORMATS_OF_TOOLS:
        return ""
    if not template_names.is_own(args.template):
        return "names a format of tools, which the template decides; remove it, or leave template unset"
    if kind in FORMATS_OF_TOOLS[args.agent_template]:
        return ""
    return f"is not the format of a model of type {kind}, whose chat template renders tools in its own way; remove it"


@rule("agent_template", severity="warning")
def the_words_about_tools_are_our_own(facts: Facts) -> str:
    """Markers of calls and results are those of the formats; the sentences that explain them to the model are not."""
    if not str(facts.args.agent_template).startswith(("react_", "toolbench", "qwen_")):
        return ""
    return "explains tools to the model in words of its own (`mtj data --show 5`); serve the model with the same ones"


@rule("template", "use_chat_template")
def a_template_is_built_in_or_a_file(facts: Facts) -> str:
    """A name of BUILT_IN_TEMPLATES, of a model's own template, or a file of one of the known kinds."""
    name = facts.args.template
    if not facts.args.use_chat_template or template_names.is_own(name) or name in BUILT_IN_TEMPLATES:
        return ""
    if str(name).endswith(TEMPLATE_FILES):
        return ""
    near = difflib.get_close_matches(str(name), (*BUILT_IN_TEMPLATES, *template_names.NAMES), n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}? Otherwise " if near else ""
    return f"no such template; {hint}leave it out to use the tokenizer's own, or {TEMPLATE_CHOICES}"


@rule("template", "use_chat_template", "model", needs_model=True)
def a_model_has_its_own_template(facts: Facts) -> str:
    """The name of another model's template is no template here: that one is in the other model's files."""
    name, kind = str(facts.args.template), facts.config.get("model_type")
    models = template_names.models_of(name)
    if not models or name in BUILT_IN_TEMPLATES or kind in models or not facts.args.use_chat_template:
        return ""
    return (
        f"is the chat template of models of type {' or '.join(models)}, not of {kind}; leave it out to use the model's "
        "own, or give a .jinja file with the other one"
    )


@rule("template", "use_chat_template", "model", needs_model=True, severity="warning")
def a_name_of_a_template_is_that_of_the_model(facts: Facts) -> str:
    """Models of one type may have several templates, of which this name is one."""
    name, kind = str(facts.args.template), facts.config.get("model_type")
    is_certain = kind in template_names.OWN.get(name, ())
    if is_certain or kind not in template_names.models_of(name) or not facts.args.use_chat_template:
        return ""
    return f"stands for the model's own chat template, which is {name} only in some of type {kind}: `mtj data --show 3`"


RULES = (
    tools_are_rendered_by_the_models_own_template,
    the_words_about_tools_are_our_own,
    a_template_is_built_in_or_a_file,
    a_model_has_its_own_template,
    a_name_of_a_template_is_that_of_the_model,
)
