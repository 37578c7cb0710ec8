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

# Decoded JSON makes thousands of objects and no cycles. At Python's 700, looking for cycles took a quarter of the CPU.
OBJECTS_BETWEEN_COLLECTIONS = 20_000


def collect_seldom() -> None:
    """Excludes imported modules from garbage collection, and makes collections rarer."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, 10, 10)


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
    collect_seldom()
    return asyncio.run(operate(settings))


if __name__ == "__main__":
    sys.exit(main())
