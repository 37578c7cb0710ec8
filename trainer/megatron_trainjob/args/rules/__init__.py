"""Constraints between arguments. One function or table row per constraint; none changes an argument."""

from megatron_trainjob.args.rules.check import RULES, check

__all__ = ["RULES", "check"]
