"""mtj from-args: which commands of a shell script train, behind whatever program, and which are only mentioned."""

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from megatron_operator.core.job import Job
from megatron_operator.translate.shell import statements
from tests.support.operator.from_args import LENGTH, RUN, saved, spec_of, written

ODD = r"""#!/usr/bin/env bash
cat > train2.sh <<'EOF'
megatron sft --model of-the-text --dataset of-the-text
EOF
ARGS=(--dataset /data/a.jsonl --max_epochs 1)
ARGS+=(--lr 1e-4)
srun --nodes=2 --ntasks-per-node=1 bash -c "NPROC_PER_NODE=8 NNODES=2 \
    megatron sft --model /models/qwen --dataset /data/a.jsonl --max_epochs 1"
numactl --cpunodebind=0 torchrun --nproc-per-node=4 $(which megatron) sft --model /models/qwen "${ARGS[@]}" "$@"
docker run --rm -e NPROC_PER_NODE=8 image megatron pt --model /models/qwen --dataset /data/b.jsonl --max_epochs 1 \
"""


@pytest.mark.parametrize(
    "end",
    ["\\\n# slower\n", "\\ \n", "# \\\n", "\n"],
    ids=["comment between", "blank", "commented out", "no backslash"],
)
def test_options_behind_the_end_of_a_command_are_named(capsys, tmp_path, end):
    path = saved(tmp_path, f"megatron sft {RUN} {LENGTH} {end}  --lr 3e-6 --seed 5\n")
    assert main(["from-args", path]) == 0
    shown = capsys.readouterr()
    assert "lr" not in spec_of(shown.out)["args"]
    assert "not translated: --lr 3e-6 --seed 5; the shell takes it for a program" in shown.err + shown.out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b\\\n c", [("a", "b", "c")]),
        ("a 'x y' \"z $N\"; N=1 b $N", [("a", "x y", "z $N"), ("b", "$N")]),
        ("N=1; b $N ${M:-2} ${N}x", [("b", "1", "2", "1x")]),
        ("a d#5 # comment\nb", [("a", "d#5"), ("b",)]),
        ('W="x y"; a $W "$W"', [("a", "x", "y", "x y")]),
        ("L=(p 'q r'); a ${L[@]} \"${L[@]}\"", [("a", "p", "q", "r", "p", "q r")]),
        ("a $(hostname) `id`", [("a", "$(hostname)", "`id`")]),
        ("a >x 2>&1 && b", [("a",), ("b",)]),
        ("a '' b", [("a", "", "b")]),
        ('a "{\\"k\\": 1}"', [("a", '{"k": 1}')]),
    ],
)
def test_a_script_is_read_as_a_shell_reads_it(text, words):
    assert [command.words for command in statements.read(text).commands] == words


def test_commands_behind_other_programs_are_found_and_text_is_no_command(capsys, tmp_path):
    """A here-document is text; arrays grow; `bash -c`, torchrun and a container's command are read."""
    text = written(capsys, saved(tmp_path, ODD))
    jobs = list(yaml.safe_load_all(text))
    found = [(job["spec"]["task"], job["spec"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"]) for job in jobs]
    assert found == [("sft", "8"), ("sft", "4"), ("pt", "8")]
    assert jobs[0]["spec"]["numNodes"] == 2
    assert jobs[1]["spec"]["args"]["lr"] == 1e-4
    assert jobs[1]["spec"]["args"]["dataset"] == ["/data/a.jsonl"]
    assert all(isinstance(manifest.parse(job), Job) for job in jobs)


@pytest.mark.parametrize(
    "lines",
    [
        'CMD="megatron sft @"; echo $CMD; $CMD',
        'CMD="megatron sft @"\necho "+ $CMD"\neval "$CMD"',
        "if true; then NPROC_PER_NODE=8 megatron sft @; fi || echo megatron sft @",
        "printf '%s ' megatron sft @; /bin/echo megatron sft @; ./with_environment.sh megatron sft @",
        "bash -euo pipefail -c 'megatron sft @'; echo bash -c 'megatron sft @'",
        "$LAUNCHER megatron sft @; grep swift export log.txt; mkdir -p swift export; sudo mkdir -p swift export",
        "srun mkdir -p swift export; srun timeout -k 5 60 megatron sft @; git clone megatron sft",
        "kubectl exec master -- megatron sft @; kubectl exec master -- echo megatron sft @",
        "accelerate launch --num_machines 1 swift/cli/_megatron/sft.py @; conda run -n a echo megatron sft",
    ],
)
def test_a_command_that_is_only_mentioned_is_not_read_as_one(capsys, tmp_path, lines):
    """The other ones run it, whatever stands before it."""
    text = written(capsys, saved(tmp_path, lines.replace("@", f"{RUN} {LENGTH}")))
    assert spec_of(text)["task"] == "sft"


@pytest.mark.parametrize("words", ["grep swift export log.txt", "mkdir -p swift export", "echo megatron sft --model m"])
def test_what_only_mentions_a_command_starts_no_training(capsys, words):
    assert "no known training command" in written(capsys, words, code=2)


@pytest.mark.parametrize(
    "lines",
    [
        'docker run -e NPROC_PER_NODE=8 image bash -c "megatron sft @"',
        'docker run -eNPROC_PER_NODE=8 -e OTHER=1 image bash -c "cd /x && megatron sft @"',
        "srun --export=ALL,NPROC_PER_NODE=8,OTHER=1 megatron sft @",
        "docker run --env=NPROC_PER_NODE=8 image megatron sft @",
        "export MODEL=/m NPROC_PER_NODE=8; srun bash -c 'megatron sft @'",
        "export NPROC_PER_NODE=8\nbash <<'EOF'\nmegatron sft @\nEOF\necho done",
        "export NPROC_PER_NODE=8\nsrun --nodes=1 bash -s -- a << EOF | tee log.txt\nMODEL=/m\nmegatron sft @\nEOF",
        "sudo -E env NPROC_PER_NODE=8 bash -l -c 'megatron sft @'",
    ],
)
def test_what_an_outer_command_sets_holds_for_the_command_within(capsys, tmp_path, lines):
    model = "$MODEL" if "MODEL=" in lines else "/m"
    spec = spec_of(
        written(capsys, saved(tmp_path, lines.replace("@", f"--model {model} --dataset /d/x.jsonl {LENGTH}")))
    )
    assert (spec["args"]["model"], spec["resourcesPerNode"]["limits"]["nvidia.com/gpu"]) == ("/m", "8")


def test_the_arguments_of_a_script_or_function_are_named_and_not_swallowed(capsys, tmp_path):
    text = written(capsys, saved(tmp_path, ODD))
    assert "# Left out: $@: the arguments of the script" in text
    assert "'$@'" not in text


def test_a_training_behind_an_unknown_program_is_reported(capsys, tmp_path):
    lines = (f"megatron sft {RUN}", f"launch-it --gpus 8 megatron pt {RUN}", f"echo megatron sft {RUN}")
    assert main(["from-args", saved(tmp_path, "\n".join(lines))]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("kind: MegatronTrainJob") == 1
    (told,) = [line for line in captured.err.splitlines() if "not translated" in line]
    assert "not translated: launch-it --gpus 8 megatron pt" in told
    assert "pass the training command by itself" in told
