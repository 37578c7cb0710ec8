"""Scripts that start several jobs and conversions: what from-args writes of them is one file for kubectl."""

import json

import pytest
import yaml

from megatron_operator.cli.main import main

RUN = "megatron sft --model /m/x --dataset /d/a.jsonl --max_epochs 1"


@pytest.fixture
def written(tmp_path, capsys):
    """written(script, name): the path of what from-args writes for it."""

    def run(script: str, name: str = "sweep.sh"):
        (tmp_path / name).write_text(script)
        assert main(["from-args", str(tmp_path / name)]) == 0
        path = tmp_path / "jobs.yaml"
        path.write_text(capsys.readouterr().out)
        return path

    return run


def test_jobs_of_one_script_have_names_of_their_own_and_are_valid(written, capsys):
    path = written(f"for lr in 1e-5 2e-5 3e-5; do {RUN} --lr $lr; done\n")
    jobs = list(yaml.safe_load_all(path.read_text()))
    assert [each["metadata"]["name"] for each in jobs] == ["sweep", "sweep-2", "sweep-3"]
    assert main(["validate", str(path)]) == 0
    said = capsys.readouterr().out
    assert [f"{name} is valid" in said for name in ("sweep", "sweep-2", "sweep-3")] == [True] * 3


def test_a_name_keeps_its_number_and_stays_short_enough(written):
    name = "train-a-model-of-a-very-long-name-for-a-job-qwen3.sh"
    names = [
        each["metadata"]["name"] for each in yaml.safe_load_all(written(f"{RUN}\n{RUN} --seed 2\n", name).read_text())
    ]
    assert max(map(len, names)) <= 45
    assert len(set(names)) == 2
    assert yaml.safe_load(written(f"{RUN}\n", "8-qwen3.sh").read_text())["metadata"]["name"] == "qwen3"


def test_the_problems_of_every_job_are_reported_under_its_name(written, capsys):
    path = written(f"for seed in 1 2; do {RUN} --seed $seed --lr -1; done\n")
    assert main(["validate", str(path)]) == 2
    said = capsys.readouterr().err
    assert "jobs.yaml: sweep: 1 problem" in said
    assert "jobs.yaml: sweep-2: 1 problem" in said
    assert main(["validate", str(path), "--output", "json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["valid"], len(answer["violations"]), [each["name"] for each in answer["jobs"]]) == (
        False,
        2,
        ["sweep", "sweep-2"],
    )


def test_two_jobs_of_one_name_are_refused(written, capsys):
    path = written(f"for seed in 1 2; do {RUN} --seed $seed; done\n")
    path.write_text(path.read_text().replace("sweep-2", "sweep"))
    assert main(["validate", str(path)]) == 2
    assert "another job of this file has this name" in capsys.readouterr().err


def test_a_command_for_one_job_asks_to_split_the_file(written, capsys):
    path = written(f"for seed in 1 2; do {RUN} --seed $seed; done\n")
    assert main(["plan", str(path)]) == 2
    assert "must contain exactly one MegatronTrainJob; split the file" in capsys.readouterr().err


def test_a_conversion_beside_a_job_is_a_comment(written):
    path = written(f"swift export --model /m/x --to_mcore true --output_dir /m/y\n{RUN}\n")
    documents = [each for each in yaml.safe_load_all(path.read_text()) if each is not None]
    assert [each["kind"] for each in documents] == ["MegatronTrainJob"]
    assert "\n# mtj export --model /m/x --to_mcore true --output_dir /m/y\n" in path.read_text()


def test_a_conversion_alone_is_a_command(written):
    text = written("swift export --model /m/x --to_mcore true --output_dir /m/y\n").read_text()
    assert text.splitlines()[-1] == "mtj export --model /m/x --to_mcore true --output_dir /m/y"
