"""A manifest -> a job, or all of its problems at once: parsing, rules, building. Pure."""

from megatron_operator.manifest.read import nproc_per_node, parse

__all__ = ["nproc_per_node", "parse"]
