"""mtj checkpoint: what people see of a folder of checkpoints."""

from megatron_operator.cli import main
from megatron_operator.cli.checkpoint import size
from tests.support.checkpoint import checkpoint_files


def run(capsys, *words) -> tuple[int, str]:
    code = main(["checkpoint", *map(str, words)])
    return code, "".join(capsys.readouterr())


def test_checkpoints_are_listed_newest_first_with_what_they_hold(tmp_path, capsys):
    checkpoint_files.write(tmp_path, 5)
    checkpoint_files.write(tmp_path, 10, validation_loss=2.25)
    code, output = run(capsys, tmp_path)
    header, newest, oldest = [line.split() for line in output.strip().splitlines()]
    assert code == 0
    assert header == ["iteration", "state", "size", "saved", "layout", "holds", "loss", "validation"]
    saved = "2025-06-15T15:06:40Z"
    assert newest == ["10", "complete", "60", "B", saved, "tp2", "model", "and", "state", "1.5000", "2.2500"]
    assert oldest == ["5", "complete", "60", "B", saved, "tp2", "model", "and", "state", "1.5000"]


def test_a_missing_file_shows_at_once_and_a_changed_byte_when_everything_is_read(tmp_path, capsys):
    (checkpoint_files.write(tmp_path, 5) / ".metadata").unlink()
    path = checkpoint_files.write(tmp_path, 10)
    (path / "__0_0.distcp").write_bytes(b"Weights")
    code, output = run(capsys, tmp_path)
    assert code == 1
    assert f"iteration 5: {tmp_path / 'iter_0000005' / '.metadata'} is missing" in output
    assert "complete" in output
    code, output = run(capsys, path, "--verify")
    assert code == 1
    assert f"iteration 10: {path / '__0_0.distcp'} has changed since it was saved" in output


def test_verified_checkpoints_say_so(tmp_path, capsys):
    checkpoint_files.write(tmp_path, 5)
    code, output = run(capsys, tmp_path, "--verify")
    assert code == 0
    assert "verified" in output


def test_a_folder_without_checkpoints_is_an_error(tmp_path, capsys):
    assert run(capsys, tmp_path) == (1, f"no checkpoints (iter_ folders) in {tmp_path}\n")
    assert run(capsys, tmp_path / "gone") == (1, f"no such folder: {tmp_path / 'gone'}\n")
    assert run(capsys, tmp_path / "iter_0000001")[0] == 1


def test_sizes_are_for_people():
    assert [size(n) for n in (0, 1023, 1536, 5 * 1024**3, 3 * 1024**5)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "3072.0 TiB",
    ]
