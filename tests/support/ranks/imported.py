"""What the process that ranks are forked from imports, once for all of them.

Without the collector: it would walk over half a million objects of modules, of which none is ever garbage.
"""

import gc

gc.disable()

from megatron_trainer import backend  # noqa: E402

backend.select().install()  # before megatron-core is imported: it would compile its small fusions otherwise, for 10 s

import datasets  # noqa: E402, F401
import transformers.modeling_utils  # noqa: E402, F401

import megatron_trainer.process.run  # noqa: E402, F401
from megatron_trainer.report import html_report  # noqa: E402

html_report.page_template()
