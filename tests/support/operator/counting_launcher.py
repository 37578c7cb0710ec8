"""The trainer's launcher with counting_program.py as its ranks; takes that program's arguments."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "trainer"))

from megatron_trainer.process import launch, ranks

ranks.RANK_COMMAND = [sys.executable, str(Path(__file__).parents[1] / "checkpoint" / "counting_program.py")]
sys.exit(launch.main(sys.argv[1:]))
