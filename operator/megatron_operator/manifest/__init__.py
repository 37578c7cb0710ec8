"""A manifest -> a job: read, checked by rules, built, or all that is wrong with it at once. Pure."""

from megatron_operator.manifest.read import nproc_per_node, parse

__all__ = ["nproc_per_node", "parse"]
