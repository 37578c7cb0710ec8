"""One training run with arguments that the command line refuses until a GPU has shown that they work.

python3 train_unproven.py ARGUMENTS.yaml SAVE
"""

import sys
import tempfile
from pathlib import Path

import yaml

import gpu_training

arguments = yaml.safe_load(Path(sys.argv[1]).read_text())
with tempfile.TemporaryDirectory() as folder, gpu_training.single_rank(Path(folder) / "store"):
    places = {"model": Path(arguments.pop("model")), "data": Path(arguments["dataset"][0]), "save": Path(sys.argv[2])}
    gpu_training.train(arguments, **places)
