"""mtj from-args: the folder that a script is in, and the paths that it makes of it, are those of bash."""

import os
import shutil
import subprocess

import pytest
import yaml

from megatron_operator.cli.main import main
from megatron_operator.translate.shell.literal import plain
from megatron_operator.translate.shell.statements import read

# Each shows a path; bash runs it as `bash scripts/train.sh` in a folder that has scripts/env.sh and data/.
PATHS = {
    "the folder of the script": 'D="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"; show $D',
    "of its name": 'D=$(cd -- "$( dirname -- "$0" )" >/dev/null 2>&1 && pwd -P); show $D/x.jsonl',
    "one above": 'D=$(cd "$(dirname "$0")/.." && pwd); show $D/data/x.jsonl',
    "in turn": 'D=$(cd "$(dirname "$0")"; pwd); show "$D"',
    "resolved": 'D=$(dirname "$(readlink -f "$0")"); show $D $(realpath "$D/..") $(realpath data)',
    "a suffix": "show ${0%/*}/x ${BASH_SOURCE%/*}/y",
    "of paths": "show $(dirname /x) $(dirname a) $(dirname -- /a/b/) $(basename -- /a/b.c .c)",
    "the name": 'show $(basename "$0") $(basename "$0" .sh) ${0##*/}',
    "where it runs": "show $PWD $(pwd) ${PWD}/x",
    "where it has gone": "cd data; show $PWD; cd ..; show $(pwd)/y; cd /usr/lib && show $PWD; cd ../bin; show $PWD",
    "in a subshell": "(cd data; show $PWD); show $PWD; { cd data; show $PWD; }",
    "in a function": "f() { cd data; show $PWD; }; f; show $PWD",
    "what a file says": 'D=$(cd "$(dirname "$0")" && pwd); source "$D/env.sh"; show $HERE $V',
    "a script of its own": "cat > data/a.sh <<'EOF'\nshow $0 $PWD\nEOF\ncd data; bash a.sh; bash -c 'show $PWD'",
}
ENV = 'HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"\nV=7\n'


def prepared(folder, script):
    """The script below the folder, beside a file that it may source."""
    for name in ("scripts", "data"):
        (folder / name).mkdir()
    (folder / "scripts" / "env.sh").write_text(ENV)
    (folder / "scripts" / "train.sh").write_text(script)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("name", PATHS)
def test_paths_are_those_of_bash(name, tmp_path, monkeypatch):
    folder = tmp_path.resolve()
    prepared(folder, PATHS[name])
    (folder / "show").write_text('#!/bin/sh\necho "$@" >> $SEEN\n')
    (folder / "show").chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SEEN": str(folder / "seen")}
    subprocess.run(["bash", "scripts/train.sh"], cwd=folder, env=environment, check=True, timeout=60)
    expected = (folder / "seen").read_text().replace(str(folder), "/workdir").splitlines()
    monkeypatch.chdir(folder)
    found = read(PATHS[name], folder / "scripts", path="scripts/train.sh").commands
    assert [plain(" ".join(each.words[1:])) for each in found if each.words[0] == "show"] == expected


A = "--max_epochs 1"
# (script, model, dataset, the mounts)
PLACES = {
    "beside the script": (
        f'D=$(cd "$(dirname "$0")" && pwd)\nmegatron sft --model /m/x --dataset $D/a.jsonl {A}',
        ("/m/x", "/workdir/scripts/a.jsonl", ["/m", "/workdir"]),
    ),
    "in the folder that it has gone to": (
        f"cd /nas/me/project\nmegatron sft --model ./models/x --dataset data/a.jsonl {A}",
        ("/nas/me/project/models/x", "/nas/me/project/data/a.jsonl", ["/nas/me"]),
    ),
    "in a folder that is no owner on a Hub": (
        f"cd /nas/me\nmegatron sft --model models/x --dataset datasets/a#10 {A}",
        ("/nas/me/models/x", "/nas/me/datasets/a#10", ["/nas/me"]),
    ),
    "in a folder of where it started": (
        f"cd scripts && megatron sft --model ../models/x --dataset a.jsonl {A}",
        ("/workdir/models/x", "/workdir/scripts/a.jsonl", ["/workdir"]),
    ),
    "in a folder that only the machine knows": (
        f"cd $CODE\nmegatron sft --model /m/x --dataset a.jsonl {A}",
        ("/m/x", "/workdir/a.jsonl", ["/m", "/workdir"]),
    ),
}


@pytest.fixture
def job(tmp_path, monkeypatch, capsys):
    """job(script): (the manifest of scripts/train.sh, what is told)."""

    def run(script):
        prepared(tmp_path, script + "\n")
        monkeypatch.chdir(tmp_path)
        assert main(["from-args", "scripts/train.sh"]) == 0
        captured = capsys.readouterr()
        return yaml.safe_load(captured.out), captured.err

    return run


@pytest.mark.parametrize("name", PLACES)
def test_relative_paths_start_where_the_command_does(name, job):
    script, (model, dataset, mounts) = PLACES[name]
    spec = job(script)[0]["spec"]
    assert (spec["args"]["model"], spec["args"]["dataset"]) == (model, [dataset])
    assert [each["mountPath"] for each in spec["volumeMounts"]] == mounts


def test_a_path_above_the_start_is_not_invented(job):
    manifest, err = job(f'D=$(cd "$(dirname "$0")/../.." && pwd)\nmegatron sft --model ../m --dataset $D/a.jsonl {A}')
    assert "spec.args.model: NOT CARRIED OVER: lies above the folder that the command is started in" in err
    assert "spec.args.dataset: NOT CARRIED OVER: contains a variable or command that only a running shell" in err
    assert manifest["spec"]["args"]["model"] == "../m"


def test_a_configuration_beside_the_script_is_read(job, tmp_path):
    (tmp_path / "run.yaml").write_text("model: /m/x\ndataset: /d/a.jsonl\nmax_epochs: 1\nlr: 3e-5\n")
    manifest, _ = job('ROOT=$(cd "$(dirname "$0")/.." && pwd)\nmegatron sft "$ROOT/run.yaml"')
    assert manifest["spec"]["args"]["lr"] == 3e-5
