"""What a whole run leaves and prints of names that act on a terminal, and of secrets."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_trainjob import shown
from megatron_trainjob.progress import FILE as PROGRESS_FILE
from tests.support.ranks.tiny_run import QUESTIONS, arguments, run_program

pytestmark = pytest.mark.dist
ACTING = "\x1b[2J\u202e\r"
SECRETS = ("hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345", "hunter2")


@pytest.fixture(scope="module")
def run(llama, tmp_path_factory):
    """A run whose data, channels and arguments are full of them; it saves, evaluates and ends."""
    folder = tmp_path_factory.mktemp("clean")
    rows = [
        {"query": f"{question} {ACTING}", "response": answer, "channel": f"a{ACTING}{number % 2}"}
        for number, (question, answer) in enumerate(QUESTIONS * 2)
    ]
    path = folder / f"train{ACTING}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"query": ACTING}]))
    given = arguments(llama, path, folder / "run", train_iters=2, val_dataset=[str(path)], eval_iters=1)
    secret = f"see https://me:{SECRETS[1]}@host/x with {SECRETS[0]}"
    done = run_program({**given, "system": secret, "enable_channel_loss": True})
    assert done.exit_code == 0, done.output
    return done


def texts(content):
    """Every text in a JSON value, keys too."""
    if isinstance(content, dict):
        return [text for name, value in content.items() for text in [name, *texts(value)]]
    if isinstance(content, list):
        return [text for value in content for text in texts(value)]
    return [content] if isinstance(content, str) else []


def of_file(path):
    """What `cat` prints, and what a program finds in it. A path in args.json is one to open: it acts in JSON alone."""
    content = path.read_text()
    if path.suffix == ".jsonl":
        return [content, *(text for line in content.splitlines() for text in texts(json.loads(line)))]
    return [content, *(texts(json.loads(content)) if path.name == PROGRESS_FILE else ())]


def assert_clean(text):
    assert shown.clean(text, keeps_lines=True) == text
    assert not any(secret in text for secret in SECRETS)


def test_what_it_prints(run):
    assert "train\\x1b[2J\\u202e\\r.jsonl" in run.output
    assert_clean(run.output)


@pytest.mark.parametrize("name", ["args.json", "iter_0000002/args.json", "logging.jsonl", "report.html", PROGRESS_FILE])
def test_what_people_and_programs_read(run, name):
    found = of_file(run.folder / name)
    assert found
    for text in found:
        assert_clean(text)


def test_nothing_else_in_the_folder_is_forgotten(run):
    files = [path for path in run.folder.rglob("*") if path.suffix in (".json", ".jsonl", ".html", ".txt")]
    own = [path for path in files if "data_cache" not in path.parts and path.name != "val_dataset.jsonl"]
    assert len(own) > 6
    for path in own:
        for text in of_file(path):
            assert_clean(text)


def test_names_of_channels_in_metrics(run):
    assert not any(
        secret in text for secret in SECRETS for text in texts(json.loads((run.folder / "args.json").read_text()))
    )
    events = EventAccumulator(str(run.folder / "runs")).Reload()
    names = [*events.Tags()["scalars"], *(key for line in run.log for key in line)]
    assert any("a\\x1b[2J" in name for name in names)
    for name in names:
        assert_clean(name)
