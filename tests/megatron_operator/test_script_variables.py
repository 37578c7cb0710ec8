"""mtj from-args: which variables of a script its command sees, and so spec.env and spec.network have."""

import pytest
import yaml

from megatron_operator.cli.main import main

RUN = "megatron sft --model /m/x --dataset /d/a.jsonl --max_epochs 1"


@pytest.fixture
def written(tmp_path, capsys):
    """written(script): (spec, what is told)."""

    def run(script: str):
        (tmp_path / "train.sh").write_text(script)
        assert main(["from-args", str(tmp_path / "train.sh")]) == 0
        captured = capsys.readouterr()
        return yaml.safe_load(captured.out)["spec"], captured.err

    return run


def names(spec):
    return {each["name"] for each in spec.get("env", ())} | set(spec.get("network", {}).get("ncclEnv", ()))


# (script, the variables that come along)
SEEN = {
    "a value of the script alone": (
        f'WANDB_PROJ=p\nTORCH_LOG=/l\nmkdir $TORCH_LOG\n{RUN} --wandb_project "$WANDB_PROJ"\n',
        set(),
    ),
    "exported and used": (
        f"export HF_HOME=/c OMP_NUM_THREADS=4\nmkdir -p $HF_HOME\n{RUN}\n",
        {"HF_HOME", "OMP_NUM_THREADS"},
    ),
    "in front": (f"NCCL_DEBUG=WARN HF_HOME=/c {RUN}\n", {"HF_HOME", "NCCL_DEBUG"}),
    "exported later": (f"HF_HOME=/c\nmkdir -p $HF_HOME\nexport HF_HOME\n{RUN}\n", {"HF_HOME"}),
    "all exported": (f"set -a\nHF_HOME=/c\nset +a\nls $HF_HOME\n{RUN}\n", {"HF_HOME"}),
    "of a container": (f"docker run -e HF_HOME=/c image {RUN}\n", {"HF_HOME"}),
    "a secret": (f"WANDB_API_KEY=hush\n[ -n $WANDB_API_KEY ] && {RUN}\n", {"WANDB_API_KEY"}),
}


@pytest.mark.parametrize("name", SEEN)
def test_variables_that_the_command_sees_come_along(name, written):
    script, expected = SEEN[name]
    spec, _ = written(script)
    assert names(spec) == expected


def test_a_value_that_only_a_running_shell_knows_is_told_and_left_out(written):
    spec, err = written(
        f'export WANDB_NAME="run-$(date +%s)" HF_HOME=$SCRATCH/hf NCCL_IB_HCA=$(ls /sys) OMP_NUM_THREADS=2\n{RUN}\n'
    )
    assert names(spec) == {"OMP_NUM_THREADS"}
    for each in ("WANDB_NAME=run-$(date +%s)", "HF_HOME=$SCRATCH/hf", "NCCL_IB_HCA=$(ls /sys)"):
        assert f"Left out: {each} (only a running shell knows it; add its value to spec.env)." in err


def test_of_two_sizes_of_images_the_tokens_count_as_there(written):
    sizes = "export IMAGE_MAX_TOKEN_NUM=512 MAX_PIXELS=200704 VIDEO_MAX_PIXELS=50176 MIN_PIXELS=784"
    spec, err = written(f"{sizes}\n{RUN} --model_kwargs '{{\"video_max_token_num\": 64}}'\n")
    expected = {"image_max_token_num": 512, "min_pixels": 784, "video_max_token_num": 64}
    assert spec["args"]["model_kwargs"] == expected
    for each in ("MAX_PIXELS: 200704", "VIDEO_MAX_PIXELS: 50176"):
        assert f"Left out: {each} (ms-swift uses the number of tokens)." in err


def test_a_name_of_the_caller_is_not_taken_as_empty(written):
    run = "megatron sft --model /m/x --max_epochs 1"
    _, err = written(f"DIR=$DIR/train\nNNODES=$NNODES {run} --dataset $DIR/a.jsonl\n")
    assert "spec.args.dataset: NOT CARRIED OVER" in err
    assert "Nodes and GPUs cannot be counted from NNODES=$NNODES" in err


@pytest.mark.parametrize(
    "call",
    [
        'eval "$(printf "%q " "${A[@]}")"',
        'srun bash -c "$(printf "%q " "${A[@]}")"',
        'eval "${A[*]@Q}"',
        'C="$(echo "${A[@]}")"; $C',
    ],
)
def test_of_words_that_are_printed_the_known_ones_are_read(call, written):
    spec, err = written(f'A=({RUN} --load "$WHERE" --seed 3)\n{call}\n')
    assert spec["args"]["seed"] == 3
    assert spec["args"]["load"] == "$WHERE"
    assert "spec.args.load: NOT CARRIED OVER" in err
