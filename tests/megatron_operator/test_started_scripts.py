"""mtj from-args: scripts that another script starts, directly or behind a launcher."""

import pytest
import yaml

from megatron_operator.cli.main import main

INNER = """#!/bin/bash
megatron sft --model /m/x --dataset /d/a.jsonl --max_epochs 1 --lr ${LR:-1e-5} --seed ${1:-1}
"""
# (script, what the job has of nodes, GPUs, lr and seed)
STARTS = {
    "srun of a file": ("export NPROC_PER_NODE=8\nsrun -N 2 ./inner.sh 3\n", (2, "8", 1e-5, 3)),
    "srun of a shell": ("export NPROC_PER_NODE=8\nsrun --nodes=2 --export=ALL bash inner.sh 3\n", (2, "8", 1e-5, 3)),
    "header": ("#SBATCH -N 4\n#SBATCH --gpus-per-node=8\nsrun bash inner.sh\n", (4, "8", 1e-5, 1)),
    "nohup": ("LR=2e-5 NPROC_PER_NODE=8 nohup bash inner.sh 4 > log.txt 2>&1 &\n", (1, "8", 2e-5, 4)),
    "env": ("nohup env NPROC_PER_NODE=4 NNODES=2 LR=3e-5 bash inner.sh\n", (2, "4", 3e-5, 1)),
    "mpirun": ("mpirun -np 16 -H a:8,b:8 bash ./inner.sh 5\n", (2, "8", 1e-5, 5)),
    "timeout": ("export NPROC_PER_NODE=2\ntimeout 10h ./inner.sh 6\n", (1, "2", 1e-5, 6)),
}


@pytest.fixture
def outer(tmp_path):
    """outer(text): the path of a script beside inner.sh."""

    def write(text: str):
        (tmp_path / "inner.sh").write_text(INNER)
        path = tmp_path / "outer.sh"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", STARTS)
def test_a_script_behind_other_programs_is_read(outer, name, capsys):
    text, expected = STARTS[name]
    assert main(["from-args", outer(text)]) == 0
    spec = yaml.safe_load(capsys.readouterr().out)["spec"]
    gpus = spec["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    assert (spec["numNodes"], gpus, spec["args"]["lr"], spec["args"]["seed"]) == expected


def test_a_script_that_is_not_there_is_named(outer, capsys):
    assert main(["from-args", outer("srun --export=ALL /shared/code/run_training.sh\n")]) == 2
    err = capsys.readouterr().err
    assert "not translated: /shared/code/run_training.sh; this script does not lie there; pass it by itself" in err
    assert "contains no known training command" in err


@pytest.mark.parametrize("start", ["python3 swift/cli/export.py", "python -m swift.cli.export", "swift export"])
def test_an_export_by_its_program_is_one(outer, start, capsys):
    assert main(["from-args", outer(f"{start} --model /m/x --to_mcore true --output_dir /m/y\n")]) == 0
    assert capsys.readouterr().out.endswith("\nmtj export --model /m/x --to_mcore true --output_dir /m/y\n")


def test_a_training_with_transformers_is_said_to_be_one(outer, capsys):
    assert main(["from-args", outer("swift sft --model /m/x --dataset a\nswift infer --model /m/x\n")]) == 2
    err = capsys.readouterr().err
    assert "swift sft --model /m/x --dataset a; it trains with transformers, whose arguments have other names" in err
    assert "swift infer --model /m/x; it neither trains nor exports" in err


def test_a_script_of_a_chinese_editor_is_read_and_said_to_be_one(tmp_path, capsys):
    path = tmp_path / "train.sh"
    path.write_bytes(
        "# 训练\r\nmegatron sft --model /m/x --dataset a --max_epochs 1 --system '你好'\r\n".encode("gb18030")
    )
    assert main(["from-args", str(path)]) == 0
    captured = capsys.readouterr()
    assert yaml.safe_load(captured.out)["spec"]["args"]["system"] == "你好"
    assert "train.sh: is no UTF-8 and was read as GB 18030; check its texts" in captured.err


def test_a_file_that_is_no_text_is_answered(tmp_path, capsys):
    path = tmp_path / "train.sh"
    path.write_bytes(b"megatron sft --system \xe9 x")
    assert main(["from-args", str(path)]) == 2
    assert "is no text in UTF-8; save it as one" in capsys.readouterr().err
