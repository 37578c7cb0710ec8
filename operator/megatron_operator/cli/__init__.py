"""The command line `mtj`, also installed as `kubectl-mtj`."""

from megatron_operator.cli.main import main

__all__ = ["main"]
