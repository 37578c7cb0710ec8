"""The definition of a model family, without tensors: the keys of config.json it reads and their meaning.

A family is a value. Adding one means adding a record in this package and listing it in __init__.py; its weight table is
in weights.py, under the same model_type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_trainjob.families.config import Config
from megatron_trainjob.families.model import Model
from megatron_trainjob.violation import Violation


def nothing(_: Config) -> Iterable[Violation]:
    """Refuses nothing."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family.

    model_type: of config.json. title: its models, for the docs. keys: those of config.json that the family's code in
    transformers reads -> their defaults. aliases: other names of keys. build: makes the model from the keys. refuse:
    variants that would be computed differently from transformers. transformers_type: the model_type of that code if
    transformers uses another name. classifier: its class in transformers for sequence classification, "" if there is
    none.
    """

    model_type: str
    title: str
    keys: Mapping[str, Any]
    build: Callable[[Config], Model]
    refuse: Callable[[Config], Iterable[Violation]] = nothing
    aliases: Mapping[str, str] = field(default_factory=dict)
    transformers_type: str = ""
    classifier: str = ""

    def config(self, raw: Mapping[str, Any]) -> Config:
        """The file's content as this family reads it."""
        return Config(raw=raw, keys=self.keys, aliases=self.aliases)


def refused(key: str, value: object, message: str) -> Violation:
    """A setting of config.json that cannot be trained correctly."""
    return Violation(path=f"config.json:{key}", value=value, message=message)
