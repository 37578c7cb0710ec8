"""The operator process: `python -m megatron_operator`. Assembles the parts and runs them until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys

from megatron_operator.process import deep_json
from megatron_operator.process import settings as settings_module
from megatron_operator.process.operate import operate
from megatron_trainjob import shown


def main() -> int:
    """The exit code: 0 after SIGTERM, 1 when leadership is lost or a part failed, 2 for wrong settings."""
    try:
        settings = settings_module.read()
    except settings_module.InvalidSettings as error:
        print(error, file=sys.stderr)
        return 2
    shown.configure_logging(settings.log_level, "%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLogger().level))
    deep_json.install()
    collect_rarely()
    return asyncio.run(operate(settings))


def collect_rarely() -> None:
    """Has Python search for cycles of garbage after 20,000 new objects instead of 700, and not in what was imported.

    In a burst most of the new objects are jobs and pods that stay, which each search reads in vain.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


if __name__ == "__main__":
    sys.exit(main())
