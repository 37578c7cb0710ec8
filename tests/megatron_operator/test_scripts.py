"""mtj from-args: scripts as people have them. Each case says which jobs come out, and what is told of the rest."""

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from megatron_operator.core.job import Job
from megatron_operator.translate.shell.words import Values, expanded

A = "--model /m/x --dataset /d/a.jsonl --max_epochs 1 --global_batch_size 16"
# (script, what each job has of lr, seed, train_type ... or of its nodes and GPUs)
CASES: dict[str, tuple[str, list[dict]]] = {
    "function": (
        "train() {\n  local lr=$1\n  NPROC_PER_NODE=8 megatron sft RUN --lr $lr\n}\ntrain 1e-4\n",
        [{"lr": 1e-4, "gpus": 8}],
    ),
    "function of many arguments": (
        'function run { megatron sft --model "$1" --dataset "$2" --max_epochs 1 --global_batch_size 16 "${@:3}"; }\n'
        'run /m/x /d/a.jsonl --lr 1e-4\nshift_run() { shift; run "$@"; }\nshift_run gone /m/y /d/b.jsonl --seed 3\n',
        [{"model": "/m/x", "lr": 1e-4}, {"model": "/m/y", "dataset": ["/d/b.jsonl"], "seed": 3}],
    ),
    "loop over values": (
        "for lr in 1e-5 2e-5; do\n  megatron sft RUN --lr $lr\ndone\n",
        [{"lr": 1e-5}, {"lr": 2e-5}],
    ),
    "loop over an array": (
        'RATES=(1e-5 2e-5)\nfor lr in "${RATES[@]}"; do megatron sft RUN --lr "$lr"; done\n',
        [{"lr": 1e-5}, {"lr": 2e-5}],
    ),
    "loops that count": (
        "for i in $(seq 1 2); do megatron sft RUN --seed $i; done\n"
        "for ((i=3; i<=4; i++)); do megatron sft RUN --seed $((i * 10)); done\n",
        [{"seed": 1}, {"seed": 2}, {"seed": 30}, {"seed": 40}],
    ),
    "here-string": ('bash <<< "NPROC_PER_NODE=4 megatron sft RUN"\n', [{"gpus": 4}]),
    "torchrun, switches": (
        "torchrun --standalone --run-path --nproc_per_node 8 --nnodes=2 swift/cli/_megatron/sft.py RUN\n",
        [{"gpus": 8, "nodes": 2}],
    ),
    "case of a default": (
        'case "${1:-full}" in\n  full) megatron sft RUN --train_type full ;;\n'
        "  lora|dora)\n    megatron sft RUN --train_type lora ;;\n  *) exit 1 ;;\nesac\n",
        [{"train_type": "full"}],
    ),
    "case of an unknown value": (
        "case $KIND in\n full) megatron sft RUN --train_type full;;\n *) megatron sft RUN --train_type lora;;\nesac\n",
        [{"train_type": "full"}, {"train_type": "lora"}],
    ),
    "array with comments": (
        "ARGS=(\n  --model /m/x   # a model\n  --dataset /d/a.jsonl\n  --max_epochs 1 --global_batch_size 16\n)\n"
        'ARGS+=(--lr 1e-4)\nmegatron sft "${ARGS[@]}"\n',
        [{"lr": 1e-4}],
    ),
    "declarations": (
        "export LR=1e-4 EPOCHS\ndeclare -x GPUS=4\nreadonly SEED=5\n"
        "NPROC_PER_NODE=$GPUS megatron sft RUN --lr $LR --seed ${SEED}\n",
        [{"lr": 1e-4, "seed": 5, "gpus": 4}],
    ),
    "sourced file": ("source ./env.sh\n. $(dirname $0)/env.sh\nmegatron sft RUN --lr $LR\n", [{"lr": 3e-4, "gpus": 2}]),
    "another script": ("bash other.sh 7\n./other.sh 8\n", [{"seed": 7}, {"seed": 8}]),
    "configuration in a here-document": (
        "cat > config.yaml <<EOF\nmodel: /m/x\ndataset: /d/a.jsonl\nmax_epochs: 1\nglobal_batch_size: 16\n"
        "lr: ${LR:-1e-4}\nEOF\nmegatron sft --config config.yaml --seed 9\n",
        [{"dataset": ["/d/a.jsonl"], "lr": 1e-4, "seed": 9}],
    ),
    "deepspeed": ("deepspeed --num_gpus 8 --num_nodes 2 swift/cli/_megatron/sft.py RUN\n", [{"gpus": 8, "nodes": 2}]),
    "accelerate": (
        "accelerate launch --num_processes 16 --num_machines 2 swift/cli/_megatron/sft.py RUN\n",
        [{"gpus": 8, "nodes": 2}],
    ),
    "mpirun": ("mpirun -np 16 -H a:8,b:8 -x NCCL_DEBUG=INFO megatron sft RUN\n", [{"gpus": 8, "nodes": 2}]),
    "header of a batch script": (
        "#!/bin/bash\n#SBATCH -N 2\n#SBATCH --gres=gpu:a100:8\n#SBATCH --time=24:00:00\n"
        "srun bash -c 'NODE_RANK=$SLURM_NODEID megatron sft RUN'\n",
        [{"gpus": 8, "nodes": 2}],
    ),
    "submitted here-document": (
        "sbatch <<'EOT'\n#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --gpus-per-node=8\nsrun megatron sft RUN\nEOT\n",
        [{"gpus": 8, "nodes": 2}],
    ),
    "options of srun": ("srun -N2 --gpus-per-node=4 --ntasks-per-node=1 megatron sft RUN\n", [{"gpus": 4, "nodes": 2}]),
    "submitted word": ("sbatch -N 2 --gres=gpu:8 --wrap 'megatron sft RUN'\n", [{"gpus": 8, "nodes": 2}]),
    "container": (
        "docker run --gpus all --rm -v /nfs:/m -e WANDB_API_KEY=hush image:3.8 "
        'bash -lc "cd /workspace && NPROC_PER_NODE=8 megatron sft RUN"\n',
        [{"gpus": 8}],
    ),
    "every node over ssh": (
        'for host in node1 node2; do\n  ssh $host "NNODES=2 NPROC_PER_NODE=8 megatron sft RUN" &\ndone\nwait\n',
        [{"gpus": 8, "nodes": 2}],
    ),
    "repeated until it ends well": ("until megatron sft RUN; do sleep 10; done\n", [{}]),
    "calculated": ("N=8\nmegatron sft RUN --seed $((N * 2 + 1))\n", [{"seed": 17}]),
    "parts of names": (
        "NAME=Qwen/Qwen3-8B\nLOW=${NAME,,}\n"
        "megatron sft RUN --wandb_exp_name ${LOW//\\//-}-${NAME##*/} --system ${NAME%-*}\n",
        [{"wandb_exp_name": "qwen-qwen3-8b-Qwen3-8B", "system": "Qwen/Qwen3"}],
    ),
    "command in a variable": ('CMD="megatron sft \\\n RUN"\nCMD+=" --lr 1e-4"\neval $CMD\n', [{"lr": 1e-4}]),
    "tests that the script decides": (
        'TYPE=lora\nif [ "$TYPE" = lora ]; then EXTRA="--train_type lora"; else EXTRA="--train_type full"; fi\n'
        '[[ -z "$TYPE" ]] && EXTRA="--lr 1"\nmegatron sft RUN $EXTRA\n',
        [{"train_type": "lora", "lr": None}],
    ),
    "a command within a value": (
        'OUT="/o/x_$(date +%Y %m)"\nmegatron sft RUN --wandb_exp_name $OUT --save $OUT --lr 1e-4\n',
        [{"wandb_exp_name": "/o/x_$(date +%Y %m)", "lr": 1e-4}],
    ),
    "braces": (
        "megatron sft --model /m/x --dataset /d/{a,b}.jsonl --max_epochs 1 --global_batch_size 16\n",
        [{"dataset": ["/d/a.jsonl", "/d/b.jsonl"]}],
    ),
    "values of a here-document": (
        "set -euo pipefail\n: \"${MODEL:=/m/x}\"\nprintf -v SEED '%s' 4\nread -r -d '' ARGS <<EOF || true\n"
        "--dataset /d/a.jsonl\n--max_epochs 1 --global_batch_size 16\nEOF\n"
        "megatron sft --model $MODEL $ARGS --seed $SEED --system $'You\\nare'\n",
        [{"seed": 4, "system": "You\nare"}],
    ),
    "options behind a redirection": ("megatron sft > log.txt RUN --lr 1e-4 2>&1 | tee all.log\n", [{"lr": 1e-4}]),
    "arguments of the script": ("set -- 1e-4 5\nmegatron sft RUN --lr $1 --seed ${2}\n", [{"lr": 1e-4, "seed": 5}]),
    "one after the other": ("megatron pt RUN && megatron sft RUN || exit 1\n", [{"task": "pt"}, {"task": "sft"}]),
}
# (script, what is said of it on standard error)
TOLD: dict[str, tuple[str, list[str]]] = {
    "undecided, with one value that is known": (
        "M=/m/x\nif [[ $# -gt 0 ]]; then M=$1; fi\n"
        "megatron sft --model $M --dataset /d/a.jsonl --max_epochs 1 --global_batch_size 16\n",
        ["line 2: M depends on a condition: '/m/x' is assumed, it may also be '$1'"],
    ),
    "undecided": (
        'if [ "$USE_LORA" = 1 ]; then TYPE=lora; else TYPE=full; fi\nmegatron sft RUN --train_type $TYPE\n',
        ["line 1: TYPE depends on a condition: 'full' is assumed, it may also be 'lora'"],
    ),
    "skipped": (
        "MODE=full\ncase $MODE in\n full) megatron sft RUN;;\n lora) megatron pt RUN;;\nesac\n",
        ["not translated: megatron pt --model /m/x", "it is in a branch"],
    ),
    "unset": ("megatron sft RUN --lr $LR\n", ["spec.args.lr: NOT CARRIED OVER: contains a variable or command"]),
    "unset path": (
        "megatron sft --model ${MODEL:?give it} --dataset $1 --max_epochs 1\n",
        ["spec.args.model: NOT CARRIED OVER", "spec.args.dataset: NOT CARRIED OVER"],
    ),
    "missing file": ("source /opt/settings.sh\nmegatron sft RUN\n", ["line 1: /opt/settings.sh was not found"]),
    "unknown values of a loop": (
        "for f in $(ls *.yaml); do megatron sft RUN --seed $f; done\n",
        ["the values of $f in this loop are not known", "spec.args.seed: NOT CARRIED OVER"],
    ),
    "no shell": ("megatron sft RUN\nif [ 1 ]; then (\n", ["not understood as a script"]),
    "other variables": (
        "export MY_SWITCH=1\nOWN=2 megatron sft RUN\n",
        ["variables MY_SWITCH, OWN: add the relevant ones"],
    ),
    "other programs": (
        "docker run -v /nfs:/m --env-file prod.env -e HF_TOKEN=hush image megatron sft RUN\n",
        ["its launcher: `docker run -v /nfs:/m --env-file prod.env -e HF_TOKEN=(hidden) image`"],
    ),
    "options of torchrun": (
        "torchrun --nproc_per_node 2 --tee 3 swift/cli/_megatron/sft.py RUN\n",
        ["its launcher: `torchrun --nproc_per_node 2 --tee 3`"],
    ),
}


@pytest.fixture
def translate(tmp_path, capsys):
    """translate(script): (its manifests, text, what is told)."""

    def run(script: str) -> tuple[list[dict], str, str]:
        (tmp_path / "env.sh").write_text("LR=3e-4\nexport NPROC_PER_NODE=2\n")
        (tmp_path / "other.sh").write_text(f"megatron sft {A} --seed $1\n")
        path = tmp_path / "train.sh"
        path.write_text(script.replace("RUN", A))
        assert main(["from-args", str(path)]) == 0
        captured = capsys.readouterr()
        return list(yaml.safe_load_all(captured.out)), captured.out, captured.err

    return run


@pytest.mark.parametrize("name", CASES)
def test_a_script_becomes_the_jobs_that_it_starts(translate, name):
    script, expected = CASES[name]
    jobs, text, _ = translate(script)
    assert len(jobs) == len(expected), text
    for job, said in zip(jobs, expected, strict=True):
        assert isinstance(manifest.parse(job), Job), manifest.parse(job)
        spec = job["spec"]
        found = {**spec["args"], "task": spec["task"], "nodes": spec["numNodes"]}
        found["gpus"] = int(spec["resourcesPerNode"]["limits"]["nvidia.com/gpu"])
        assert {key: found.get(key) for key in said} == said
    assert "hush" not in text


@pytest.mark.parametrize("name", TOLD)
def test_what_cannot_be_carried_over_is_reported_and_commented(translate, name):
    script, parts = TOLD[name]
    _, text, err = translate(script)
    assert [part for part in parts if part not in err] == []
    assert "hush" not in text + err
    written = [part.partition("spec.args.")[2].partition(": ")[2] for part in parts if part.startswith("spec.args.")]
    assert [part for part in written if part not in text] == []
    problems = manifest.parse(yaml.safe_load(text)) if written else ()
    marked = {part.partition(": ")[0] for part in parts if part.startswith("spec.args.")}
    assert {each.path.partition("[")[0] for each in problems} >= marked


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A:-x}", "a/b.c"),
        ("${B:-x$A}", "xa/b.c"),
        ("${A:+y}", "y"),
        ("${B:+y}", ""),
        ("${B:?why}", "${B:?why}"),
        ("${A#*/}", "b.c"),
        ("${A%.*}", "a/b"),
        ("${A%%/*}", "a"),
        ("${A/b/z}", "a/z.c"),
        ("${A^^}", "A/B.C"),
        ("${A:2}", "b.c"),
        ("${A:0:1}", "a"),
        ("${#A}", "5"),
        ("${L[1]}", "q r"),
        ("${#L[@]}", "2"),
        ("$((N*2+1))", "17"),
        ("$(( N / 0 ))", "$(( N / 0 ))"),
        ("$(echo $N)", "8"),
        ("$(basename $A .c)", "b"),
        ("$(hostname)", "$(hostname)"),
    ],
)
def test_variables_stand_for_their_values(text, value):
    values = Values({"A": "a/b.c", "N": "8"}, {"L": ["p", "q r"]})
    assert expanded(text, values) == value
