"""mtj from-args: patterns of file names, which a shell replaces, and folders in other folders, which share a volume."""

import pytest
import yaml

from megatron_operator.cli.main import main


@pytest.fixture
def written(tmp_path, capsys):
    """written(script): (its last manifest, the text, what is told)."""

    def run(script: str):
        (tmp_path / "train.sh").write_text(script)
        assert main(["from-args", str(tmp_path / "train.sh")]) == 0
        captured = capsys.readouterr()
        documents = list(yaml.safe_load_all(captured.out))
        return documents[-1], captured.out, captured.err

    return run


@pytest.mark.parametrize("words", ["--dataset /d/*.jsonl", "--cached_dataset /d/shard-?/train"])
def test_a_pattern_in_a_path_is_to_be_filled_in(words, written):
    _, _, err = written(f"megatron sft --model /m/x {words} --max_epochs 1\n")
    assert "dataset: FILL IN: the shell puts the names of files in place of this pattern" in err


def test_a_loop_over_a_pattern_has_no_known_values(written):
    script = "for f in /d/*.jsonl; do swift export --model /m --dataset $f --to_cached_dataset true; done\n"
    _, text, err = written(f"{script}")
    assert "line 1: the values of $f in this loop are not known: /d/*.jsonl" in err
    assert "dataset: NOT CARRIED OVER" in err
    assert "/d/*" not in text


def test_a_loop_over_quoted_and_plain_words_has(written):
    script = 'for s in "1" 2; do megatron sft --model /m/x --dataset /d/a.jsonl --max_epochs 1 --seed $s; done\n'
    _, text, _ = written(script)
    assert [each["spec"]["args"]["seed"] for each in yaml.safe_load_all(text)] == [1, 2]


def test_a_folder_in_another_one_needs_no_volume_of_its_own(written):
    job, text, _ = written("megatron sft --model /nfs/ckpts/x/y --dataset /nfs/a.jsonl /e/b.jsonl --max_epochs 1\n")
    assert [each["mountPath"] for each in job["spec"]["volumeMounts"]] == ["/nfs", "/e"]
    assert [each["name"] for each in job["spec"]["volumes"]] == ["nfs", "e"]
    assert "/nfs (claim fill-in-nfs), /e (claim fill-in-e)." in text
