"""mtj from-args: scripts as people have them. Each case says which jobs come out, and what is told of the rest."""

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from megatron_operator.core.job import Job
from megatron_operator.translate.shell.values import Values
from megatron_operator.translate.shell.words import expanded

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
    "checks of files that a guess would fail": (
        "missing=0\nfor f in $MORE a.jsonl b.jsonl; do\n  if [[ ! -f $f ]]; then echo no $f >&2; missing=1; fi\ndone\n"
        'if [[ "$missing" -ne 0 ]]; then\n  exit 1\nfi\n[ -d /m ] || bad=1\n[ "$bad" = 1 ] && exit 2\n'
        'MORE=(--seed 4)\nmegatron sft RUN "${MORE[@]}"\n',
        [{"seed": 4}],
    ),
    "a value that is certain": (
        "[ -f x ] && STOP=1\nSTOP=1\nmegatron sft RUN\nif [ $STOP = 1 ]; then exit 0; fi\nmegatron sft RUN --seed 3\n",
        [{"task": "sft"}],
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
    "lines of a file": (
        "while read -r lr seed; do\n  megatron sft RUN --lr $lr --seed $seed\ndone < sweep.txt\n"
        "tail -n +2 sweep.txt | while read lr rest; do megatron sft RUN --lr $lr; done\n",
        [{"lr": 1e-4, "seed": 1}, {"lr": 2e-4, "seed": 2}, {"lr": 2e-4, "seed": None}],
    ),
    "lines of a here-document": (
        'while IFS=, read -r model data; do\n  [ -z "$model" ] && continue\n'
        "  megatron sft --model $model --dataset $data --max_epochs 1 --global_batch_size 16\n"
        "done <<EOF\n/m/a,/d/a.jsonl\n\n/m/b,/d/b.jsonl\nEOF\n",
        [{"model": "/m/a"}, {"model": "/m/b", "dataset": ["/d/b.jsonl"]}],
    ),
    "xargs": (
        "cut=1\ncat sweep.txt | xargs -L 1 echo | head -n 0\nseq 2 | xargs -I{} megatron sft RUN --seed {}\n"
        "echo 3 4 | xargs -n 1 megatron sft RUN --seed\nxargs -a args.txt megatron sft\n",
        [{"seed": 1}, {"seed": 2}, {"seed": 3}, {"seed": 4}, {"lr": 5e-4}],
    ),
    "text of files": (
        "megatron sft $(cat args.txt) --seed 1\nARGS=$(< args.txt)\nmegatron sft $ARGS --seed 2\n"
        "mapfile -t LINES < args.txt\nmegatron sft ${LINES[@]} --seed 3\nread -r LR _ < sweep.txt\n"
        "megatron sft RUN --lr $LR\nexport $(grep -v '^#' env.sh | xargs)\nmegatron sft RUN --seed 5\n",
        [{"lr": 5e-4, "seed": 1}, {"seed": 2}, {"lr": 5e-4, "seed": 3}, {"lr": 1e-4}, {"seed": 5, "gpus": 2}],
    ),
    "arrays with keys": (
        "declare -A LR=([small]=1e-4 [big]=5e-6) CFG\nCFG[seed]=7\nSIZE=big\nEXTRA=''\n"
        'for k in "${!CFG[@]}"; do EXTRA="$EXTRA --$k ${CFG[$k]}"; done\n'
        "megatron sft RUN --lr ${LR[$SIZE]} $EXTRA\n",
        [{"lr": 5e-6, "seed": 7}],
    ),
    "elements that change": (
        "ARGS=(--lr 1e-4 --seed 1)\nARGS[1]=2e-4\nARGS+=(--max_length 2048)\nn=SEED\nSEED=9\n"
        'unset "ARGS[5]"\nARGS[5]=1024\nmegatron sft RUN "${ARGS[@]}" --save_interval ${!n}\n',
        [{"lr": 2e-4, "seed": 1, "max_length": 1024, "save_interval": 9}],
    ),
    "whole numbers": (
        "GPUS=8\nif (( GPUS >= 8 )); then TP=4; else TP=1; fi\n(( MB = GPUS / 4 ))\nlet 'SEED = 3 + 4'\n"
        "NPROC_PER_NODE=`expr 4 + 4` megatron sft RUN --tensor_model_parallel_size $TP --micro_batch_size $MB "
        "--seed $SEED\n",
        [{"tensor_model_parallel_size": 4, "micro_batch_size": 2, "seed": 7, "gpus": 8}],
    ),
    "rounds of a test": (
        "i=0\nwhile [ $i -lt 2 ]; do\n  megatron sft RUN --seed $i\n  i=$((i+1))\ndone\n"
        "for ((j=5; j<9; j+=3)); do megatron sft RUN --seed $j; done\n"
        "for k in {3..4}; do megatron sft RUN --seed $k; done\n",
        [{"seed": 0}, {"seed": 1}, {"seed": 5}, {"seed": 8}, {"seed": 3}, {"seed": 4}],
    ),
    "this and that, or the other": (
        'MODE=${1:-lora}\n[ "$MODE" = lora ] && LR=1e-4 || LR=1e-5\n[ -z "$MODE" ] && S=1 || S=2\n'
        "true && T=3 || T=4\nmegatron sft RUN --lr $LR --seed $S --save_interval $T\n",
        [{"lr": 1e-4, "seed": 2, "save_interval": 3}],
    ),
    "switches": (
        "USE=true\nif $USE; then A='--train_type lora'; fi\n"
        "if [[ $USE == t* && ( -n $A || 1 -gt 2 ) ]]; then B='--seed 4'; fi\n"
        'if ! [ "$USE" = true -o -z "$B" ]; then B="--seed 5"; fi\n[[ 72B =~ ^[0-9]+B$ ]] && C="--lr 1e-4"\n'
        "megatron sft RUN $A $B $C\n",
        [{"train_type": "lora", "seed": 4, "lr": 1e-4}],
    ),
    "rounds that end": (
        "for m in a b c; do\n  [[ $m == b ]] && continue\n  for s in 1 2; do\n"
        "    [[ $m == c && $s -eq 2 ]] && break\n"
        "    megatron sft --model /m/$m --dataset /d/a.jsonl --max_epochs 1 --global_batch_size 16 --seed $s\n"
        "  done\ndone\n",
        [{"model": "/m/a", "seed": 1}, {"model": "/m/a", "seed": 2}, {"model": "/m/c", "seed": 1}],
    ),
    "functions that return": (
        'run() {\n  if [ "$1" = no ]; then return; fi\n  megatron sft RUN --seed $1\n}\nrun no\nrun 2\n',
        [{"seed": 2}],
    ),
    "usage and an end": (
        "if [ $# -gt 5 ]; then echo usage; exit 1; fi\ncd /ws || exit 1\n[ -d /m ] || { echo no; exit 2; }\n"
        "megatron sft RUN\n",
        [{}],
    ),
    "a shell within": (
        "(export NPROC_PER_NODE=4; LR=1; megatron sft RUN)\nmegatron sft RUN --seed 2 --lr ${LR:-1e-4}\n",
        [{"gpus": 4}, {"gpus": 1, "lr": 1e-4}],
    ),
    "retries": ("for n in 1 2 3; do\n  megatron sft RUN && break\n  sleep 60\ndone\n", [{}]),
    "submitted files": (
        "launch() {\ncat > /tmp/run_$1.sh <<EOF\nNPROC_PER_NODE=8 megatron sft RUN --seed $1\nEOF\n"
        "sbatch -N 2 /tmp/run_$1.sh\n}\nfor s in 1 2; do launch $s; done\n",
        [{"seed": 1, "nodes": 2, "gpus": 8}, {"seed": 2, "nodes": 2}],
    ),
    "configuration by tee": (
        "CONFIG=/tmp/c.yaml\ntee $CONFIG > /dev/null <<EOF\nmodel: /m/x\ndataset: [/d/a.jsonl]\nmax_epochs: 1\n"
        "global_batch_size: 16\nEOF\nmegatron sft --config $CONFIG --seed 3\n",
        [{"seed": 3, "model": "/m/x"}],
    ),
    "a terminal of its own": (
        'tmux new-session -d -s train "NPROC_PER_NODE=8 megatron sft RUN 2>&1 | tee log"\n',
        [{"gpus": 8}],
    ),
    "written by printf": (
        "ARGS=\"$(printf -- '--seed %03d ' 7)\"\nmegatron sft RUN $ARGS\n",
        [{"seed": 7}],
    ),
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
    "a name that is first added to": (
        'ARGS="$ARGS --seed 3"\nmegatron sft RUN $ARGS\n',
        ["line 1: ARGS has no value before this line, which adds to it; it is taken as empty"],
    ),
    "an array that a condition lengthens": (
        'A=(RUN --system \'costs $5\')\n[ -n "$(hostname)" ] && A+=(--seed 3)\nmegatron sft "${A[@]}"\n',
        ["A depends on a condition: '... $5 --seed 3' is assumed, it may also be '... $5'"],
    ),
    "skipped": (
        "MODE=full\ncase $MODE in\n full) megatron sft RUN;;\n lora) megatron pt RUN;;\nesac\n",
        ["not translated: megatron pt --model /m/x", "it is in a branch"],
    ),
    "fields of a value that is not known": (
        'IFS=: read -r -a D <<< "${DATA:?a:b list}"\nmegatron sft --model /m/x --dataset "${D[@]}" --max_epochs 1\n',
        ["spec.args.dataset: NOT CARRIED OVER"],
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
    "ended": ("megatron sft RUN\nexit 0\nmegatron pt RUN\n", ["not translated: megatron pt", "it is in a branch"]),
    "unknown lines": (
        "while read -r seed; do megatron sft RUN --seed $seed; done < /nowhere.txt\n",
        ["line 1: the lines that this loop reads into seed are not known", "spec.args.seed: NOT CARRIED OVER"],
    ),
    "unknown words": ("ls /d | xargs megatron sft RUN\n", ["the words that xargs reads are not known"]),
    "many rounds": (
        "for i in {1..70}; do S=$i; done\nmegatron sft RUN\n",
        ["line 1: only the first 64 of 70 rounds of this loop are read"],
    ),
    "nothing like it": (
        "megatron sft RUN\nswift infer --model /o\n",
        ["not translated: swift infer --model /o; it neither"],
    ),
    "in the text of another": (
        "megatron pt RUN\ninvoke 'megatron sft --seed {}' 1 2\n",
        ["not translated: invoke megatron sft --seed {}"],
    ),
    "a pattern of files": (
        "megatron sft --model /m/x --dataset /d/*.jsonl --max_epochs 1\n",
        ["dataset: FILL IN: the shell puts the names of files in place of this pattern"],
    ),
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
        (tmp_path / "sweep.txt").write_text("1e-4 1\n2e-4 2\n")
        (tmp_path / "args.txt").write_text(f"{A}\n--lr 5e-4\n")
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


def test_of_a_flag_that_is_given_twice_the_last_counts_and_the_first_is_named(translate):
    [job], text, _ = translate("megatron sft RUN --lr 1e-4 --seed 3 --dataset /d/b.jsonl --lr=2e-4\n")
    assert (job["spec"]["args"]["lr"], job["spec"]["args"]["dataset"]) == (2e-4, ["/d/b.jsonl"])
    assert "# Left out: lr: 1e-4 (the command gives it again behind; the last one counts)." in text
    assert "# Left out: dataset: /d/a.jsonl" in text


def test_sizes_of_a_launcher_that_only_a_shell_knows_are_named(translate):
    launcher = "python -m torch.distributed.run --nproc_per_node=8 --nnodes=$NODES"
    _, text, _ = translate(f"{launcher} -m swift.cli._megatron.sft RUN\n")
    assert "# Nodes and GPUs cannot be counted from --nnodes=$NODES: set numNodes and resourcesPerNode." in text


def test_a_manifest_of_another_kind_is_answered_with_those_that_are_read(tmp_path, capsys):
    path = tmp_path / "ray.yaml"
    path.write_text("kind: RayCluster\nspec: {headGroupSpec: {}}\n")
    assert main(["from-args", str(path)]) == 2
    assert "RayCluster: not read; manifests of PyTorchJob, TrainJob, MPIJob" in capsys.readouterr().err


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
    values = Values({"A": "a/b.c", "N": "8"}, {"L": {"0": "p", "1": "q r"}})
    assert expanded(text, values) == value
