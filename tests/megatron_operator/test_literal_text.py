"""mtj from-args: what a shell does not replace is the argument's text, and not something that was left out."""

import pytest
import yaml

from megatron_operator.cli.main import main

RUN = "megatron sft --model /m/x --dataset /d/a.jsonl --max_epochs 1"
CONFIG = "model: /m/x\ndataset: [/d/a.jsonl]\nmax_epochs: 1\nsystem: costs $NAME\n"
CASES = {
    "single quotes": (f"{RUN} --system 'costs $NAME'", "costs $NAME"),
    "a command in single quotes": (f"{RUN} --system 'see `date` or $(date)'", "see `date` or $(date)"),
    "single quotes around braces": (f"{RUN} --system '${{NAME:-8}}'", "${NAME:-8}"),
    "single quotes within double ones": (f"NAME=8\n{RUN} --system \"costs '$NAME'\"", "costs '8'"),
    "ANSI quotes": (f"{RUN} --system $'costs\\t$NAME'", "costs\t$NAME"),
    "a backslash within double quotes": (f'NAME=8\n{RUN} --system "\\$NAME is $NAME"', "$NAME is 8"),
    "a backslash without quotes": (f"{RUN} --system \\$NAME\\`x", "$NAME`x"),
    "pieces": (f"NAME=8\n{RUN} --system 'a$b'\"$NAME\"\\$c", "a$b8$c"),
    "a variable": (f"TEXT='costs $NAME'\n{RUN} --system \"$TEXT\"", "costs $NAME"),
    "an array": (f"MORE=(--system 'costs $NAME')\n{RUN} \"${{MORE[@]}}\"", "costs $NAME"),
    "a default": (f"{RUN} --system \"${{TEXT:-'$NAME'}}\"", "$NAME"),
    "a script in single quotes": (f"export NAME=8\nbash -c '{RUN} --system \"$NAME\"'", "8"),
    "eval": (f"NAME=8\neval '{RUN} --system $NAME'", "8"),
    "a document that is a script": (f"export NAME=8\nbash <<'END'\n{RUN} --system \"$NAME\"\nEND", "8"),
    "a configuration of a quoted document": (
        f"cat > /tmp/c.yaml <<'END'\n{CONFIG}END\nmegatron sft --config /tmp/c.yaml",
        "costs $NAME",
    ),
    "a configuration of a document with escapes": (
        f"PRICE=8\ncat > c.yaml <<END\n{CONFIG.replace('$NAME', '\\$NAME $PRICE')}END\nmegatron sft --config c.yaml",
        "costs $NAME 8",
    ),
    "words that are read": (
        f"echo 'costs $NAME' | while read -r text; do {RUN} --system \"$text\"; done",
        "costs $NAME",
    ),
    "a document of a command": (f"TEXT=$(cat <<'END'\ncosts $NAME\nEND\n)\n{RUN} --system \"$TEXT\"", "costs $NAME"),
    "a document with values of a command": (
        f'PRICE=8\n{RUN} --system "$(cat <<END\ncosts $PRICE\nEND\n)"',
        "costs 8",
    ),
    "a string for a command": (f"TEXT=$(cat <<< 'costs $NAME')\n{RUN} --system \"$TEXT\"", "costs $NAME"),
    "the output of a command": (f"TEXT=$(echo 'costs $NAME')\n{RUN} --system \"$TEXT\"", "costs $NAME"),
}


@pytest.fixture
def written(tmp_path, capsys):
    """The manifest of a script, and what was told."""

    def run(text: str, name: str = "train.sh") -> tuple[dict, str]:
        (tmp_path / name).write_text(text)
        assert main(["from-args", str(tmp_path / name)]) == 0
        captured = capsys.readouterr()
        assert "\ue024" not in captured.out + captured.err
        return yaml.safe_load(captured.out), captured.out + captured.err

    return run


@pytest.mark.parametrize("name", CASES)
def test_text_that_the_shell_passes_on_is_carried_over(written, name):
    script, text = CASES[name]
    manifest, told = written(script + "\n")
    assert manifest["spec"]["args"]["system"] == text
    assert "NOT CARRIED OVER" not in told


@pytest.mark.parametrize(
    "quote", ['"$NAME"', "$NAME", '"it\'s $NAME"', "a$(date)", "`date`", "'a'\"$NAME\"", '"$(cat <<END\n$NAME\nEND\n)"']
)
def test_what_only_a_shell_knows_is_still_not_carried_over(written, quote):
    _, told = written(f"{RUN} --system {quote}\n")
    assert "spec.args.system: NOT CARRIED OVER: contains a variable" in told


def test_a_path_that_nobody_completes_is_told(written):
    manifest, told = written(f"{RUN} --load '$SCRATCH/c'\n")
    assert manifest["spec"]["args"]["load"] == "$SCRATCH/c"
    assert "spec.args.load: NOT CARRIED OVER: begins a name with $ that no shell replaces here" in told


def test_a_configuration_is_read_by_no_shell(written):
    manifest, told = written(CONFIG, "config.yaml")
    assert manifest["spec"]["args"]["system"] == "costs $NAME"
    assert "NOT CARRIED OVER" not in told


def test_a_literal_variable_of_the_environment_keeps_its_text(written):
    manifest, _ = written(f"export WANDB_NOTES='costs $NAME'\n{RUN}\n")
    assert {"name": "WANDB_NOTES", "value": "costs $NAME"} in manifest["spec"]["env"]
