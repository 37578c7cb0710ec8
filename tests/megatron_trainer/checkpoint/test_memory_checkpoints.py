"""Checkpoints in the memory of the nodes: exact resumes, and every way in which they may be lost."""

import shutil

import pytest

from megatron_trainjob.checkpoint_folder import checkpoints
from megatron_trainjob.exit_codes import ExitCode
from tests.support.matrix import mostly_slow
from tests.support.ranks.memory_runs import train
from tests.support.ranks.pool import RankError
from tests.support.ranks.tiny_run import arguments, write_data
from tests.support.ranks.tiny_run import train as train_without

pytestmark = pytest.mark.dist
STEPS = {"train_iters": 7, "save_interval": 100, "global_batch_size": 2}
LORA = {"train_type": "lora", "lora_rank": 4, "target_modules": ["all-linear"], "lora_dropout": 0.2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "train.jsonl")


def generations(memory):
    """The iterations that lie in memory, by node."""
    found = {node.name: sorted(int(each.name[5:]) for each in node.glob("*/iter_*")) for node in memory.iterdir()}
    return dict(sorted(found.items()))


@pytest.fixture(scope="module")
def undisturbed(llama, data, tmp_path_factory):
    """The losses of a run without memory checkpoints on so many ranks."""
    known = {}

    def losses(ranks, **given):
        key = (ranks, *sorted(given))
        if key not in known:
            folder = tmp_path_factory.mktemp("whole")
            known[key] = train_without(arguments(llama, data, folder / "run", **STEPS | given), ranks=ranks)
        return known[key].column("lm loss")

    return losses


def interrupted(llama, data, folder, **how):
    """The arguments of a run that was cut off in step 6 with nothing on disk, and its memory: iterations 2 and 4."""
    given = arguments(llama, data, folder / "run", **STEPS | how.pop("given", {}))
    logged = 6 // given["log_interval"]
    first = train(given, folder / "memory", stop_at=6, **how)
    assert first.run.exit_code == ExitCode.PREEMPTED
    assert len(first.run.column("lm loss")) >= logged
    assert checkpoints(folder / "run") == ()
    return given, folder / "memory"


@pytest.mark.parametrize(
    ("ranks", "given"),
    mostly_slow([(1, {}), (2, {}), (1, LORA), (2, LORA)], [(1, LORA)]),
    ids=["full, 1", "full, 2", "lora, 1", "lora, 2"],
)
def test_a_run_that_was_cut_off_goes_on_from_memory_bit_by_bit(llama, data, tmp_path, undisturbed, ranks, given):
    arguments_of_run, memory = interrupted(llama, data, tmp_path, ranks=ranks, given=given)
    assert generations(memory) == {"node-0": [2, 4]}
    again = train(arguments_of_run, memory, ranks=ranks, resume="Required", attempt=1)
    assert (again.run.exit_code, again.run.message) == (0, "")
    assert again.said("resuming from memory iteration=4")
    assert again.run.column("lm loss") == undisturbed(ranks, **given)
    assert generations(memory) == {"node-0": []}, "a run that has ended gives the memory back"


def test_a_run_that_goes_on_from_memory_and_has_no_step_left_is_saved_before_its_memory_is_given_back(
    llama, data, tmp_path
):
    given, memory = interrupted(llama, data, tmp_path)
    again = train(given | {"train_iters": 4}, memory, resume="Required", attempt=1)
    assert (again.run.exit_code, again.run.message) == (0, "")
    assert [(each.iteration, each.problem) for each in checkpoints(tmp_path / "run")] == [(4, None)]
    assert generations(memory) == {"node-0": []}


@pytest.mark.slow
def test_steps_that_were_not_logged_yet_count_after_a_resume_from_memory(llama, data, tmp_path, undisturbed):
    """Step 5 logs the mean of steps 2 to 5, although the run goes on after step 4."""
    given, memory = interrupted(llama, data, tmp_path, given={"log_interval": 5})
    again = train(given, memory, resume="Required", attempt=1)
    assert again.said("resuming from memory iteration=4")
    assert again.run.column("lm loss") == undisturbed(1, log_interval=5)


@pytest.mark.parametrize(
    ("ranks", "left", "rename"),
    [
        (1, {"node-0": [2]}, 2),
        *[pytest.param(1, {"node-0": [2]}, rename, marks=pytest.mark.slow) for rename in (1, 3)],
        (2, {"node-0": [2, 4], "node-1": [2]}, 2),
        *[pytest.param(2, {"node-0": [2, 4], "node-1": [2]}, rename, marks=pytest.mark.slow) for rename in (1, 3)],
    ],
)
def test_a_rank_that_is_killed_while_it_publishes_leaves_a_whole_checkpoint(
    llama, data, tmp_path, undisturbed, rename, ranks, left
):
    """Of two nodes the first has published, and holds the copies of what the second has not."""
    given, memory = arguments(llama, data, tmp_path / "run", **STEPS), tmp_path / "memory"
    with pytest.raises(RankError, match=f"rank {ranks - 1}.*exit code -9"):
        train(given, memory, ranks=ranks, nodes=ranks, killed_at=(4, rename))
    assert generations(memory) == left
    again = train(given, memory, ranks=ranks, nodes=ranks, resume="Required", attempt=1)
    assert (again.run.exit_code, again.run.message) == (0, "")
    assert again.said(f"resuming from memory iteration={left['node-0'][-1]}")
    assert again.run.column("lm loss") == undisturbed(ranks)


def own_file(memory, node, rank):
    """The file of a rank in the newest generation that lies on a node."""
    newest = max((memory / f"node-{node}").glob("*/iter_*"))
    (found,) = newest.glob(f"__{rank}_*.distcp")
    return found


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def changed(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def left_by_one(llama, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return interrupted(llama, data, folder)


@pytest.fixture(scope="module")
def left_by_two_nodes(llama, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return interrupted(llama, data, folder, ranks=2, nodes=2)


@pytest.fixture
def again(tmp_path, undisturbed):
    """Continues from what a run left, damaged by `harm`, and gives the save folder back as it was."""
    held = []

    def go_on(left, harm, *, ranks=1, nodes=1, resume="Required", **env):
        given, memory = left
        save, kept = given["save"], tmp_path / "kept"
        shutil.copytree(save, kept)
        held.append((save, kept))
        here = shutil.copytree(memory, tmp_path / "memory")
        harm(here)
        found = train(given, here, ranks=ranks, nodes=nodes, resume=resume, attempt=1, **env)
        return found, here

    yield go_on
    for save, kept in held:
        shutil.rmtree(save)
        shutil.copytree(kept, save)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(truncated, marks=pytest.mark.slow),
        changed,
        pytest.param(lambda path: path.unlink(), marks=pytest.mark.slow),
    ],
    ids=["short", "bit", "gone"],
)
def test_a_damaged_generation_gives_way_to_the_one_before(left_by_one, again, undisturbed, harm):
    found, _ = again(left_by_one, lambda memory: harm(own_file(memory, 0, 0)))
    assert found.said("passing over the memory checkpoint of iteration=4: no node holds __0_0.distcp")
    assert found.said("resuming from memory iteration=2")
    assert found.run.column("lm loss") == undisturbed(1)


def without_any(memory):
    for index in (*memory.glob("*/*/iter_*/.metadata"), *memory.glob("*/*/iter_0000002/manifest.json")):
        index.write_bytes(b"")


def test_memory_without_a_whole_checkpoint_leaves_the_run_to_the_save_folder(left_by_one, again, undisturbed):
    found, _ = again(left_by_one, without_any, resume="Auto")
    assert found.run.exit_code == 0
    assert found.said("no node holds .metadata")
    assert not found.said("resuming from memory")
    assert found.run.column("lm loss") == undisturbed(1)


@pytest.mark.parametrize(
    ("env", "line"),
    [({"job_uid": "another"}, ""), ({"ranks": 2}, "it is of another layout")],
    ids=["another job", "another number of ranks"],
)
def test_memory_of_another_run_is_not_read(left_by_one, again, env, line):
    found, _ = again(left_by_one, lambda _: None, resume="Auto", adopts=True, **env)
    assert found.run.exit_code == 0
    assert not found.said("resuming from memory")
    assert not line or found.said(line)


def lost(node):
    return lambda memory: shutil.rmtree(memory / f"node-{node}")


def both_parts_of_the_first(memory):
    """Its own file on its node is damaged, and the second node has lost its own."""
    truncated(own_file(memory, 0, 0))
    own_file(memory, 1, 1).unlink()


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lost(0), marks=pytest.mark.slow),
        lost(1),
        pytest.param(both_parts_of_the_first, marks=pytest.mark.slow),
    ],
    ids=["first", "second", "parts of both"],
)
def test_what_a_node_has_lost_comes_from_its_neighbor(left_by_two_nodes, again, undisturbed, harm):
    found, memory = again(left_by_two_nodes, harm, ranks=2, nodes=2)
    assert (found.run.exit_code, found.run.message) == (0, "")
    assert found.said("resuming from memory iteration=4")
    assert found.run.column("lm loss") == undisturbed(2)
    assert generations(memory) == {"node-0": [], "node-1": []}


@pytest.mark.slow
def test_a_file_whose_copies_are_both_damaged_leads_to_the_generation_before(left_by_two_nodes, again):
    def both(memory):
        truncated(own_file(memory, 0, 0))
        truncated(own_file(memory, 1, 0))

    found, _ = again(left_by_two_nodes, both, ranks=2, nodes=2)
    assert found.said("resuming from memory iteration=2")


def test_a_newer_checkpoint_in_the_save_folder_goes_first(llama, data, tmp_path, undisturbed):
    given = arguments(llama, data, tmp_path / "run", **{**STEPS, "save_interval": 5})
    train(given, tmp_path / "memory", stop_at=6)
    assert generations(tmp_path / "memory") == {"node-0": [2, 4]}
    again = train(given, tmp_path / "memory", resume="Required", attempt=1)
    assert again.said("the memory checkpoint of iteration=4 is older than that of the save folder")
    assert again.run.column("lm loss") == undisturbed(1)


@pytest.mark.parametrize("kept", [(), pytest.param((2,), marks=pytest.mark.slow)], ids=["all", "the newest"])
def test_damaged_checkpoints_in_the_save_folder_hide_none_in_memory(llama, data, tmp_path, undisturbed, kept):
    given = arguments(llama, data, tmp_path / "run", **{**STEPS, "save_interval": 5 - 3 * len(kept)})
    train(given, tmp_path / "memory", stop_at=6, interval=3)
    for found in checkpoints(tmp_path / "run"):
        if found.iteration not in kept:
            changed(next(found.path.glob("__0_*.distcp")))
    assert generations(tmp_path / "memory") == {"node-0": [3]}
    again = train({**given, "save_interval": 100}, tmp_path / "memory", resume="Required", attempt=1)
    assert again.said("resuming from memory iteration=3")
    assert again.run.column("lm loss") == undisturbed(1)


def test_what_others_keep_beside_the_memory_of_runs_stays(llama, data, tmp_path):
    node = tmp_path / "memory" / "node-0"
    (node / ("0" * 32) / "iter_0000002").mkdir(parents=True)
    for theirs in (node / "photos", node / ("1" * 32)):
        theirs.mkdir()
        (theirs / "cat.png").write_bytes(b"meow")
    (node / "notes.txt").write_text("mine")
    (node / ("2" * 32)).symlink_to(node / "photos")
    given = arguments(llama, data, tmp_path / "run", **STEPS)
    assert train(given, tmp_path / "memory", stop_at=3).run.exit_code == ExitCode.PREEMPTED
    left = {each.name for each in node.iterdir()}
    assert left >= {"photos", "1" * 32, "2" * 32, "notes.txt"}
    assert "0" * 32 not in left, "what an earlier run has left gives its memory back"
    assert (node / "photos" / "cat.png").read_bytes() == b"meow"


def test_memory_that_is_too_small_or_not_there_is_a_warning(llama, data, tmp_path):
    given = arguments(llama, data, tmp_path / "run", **STEPS)
    small = train(given, tmp_path / "memory", memory_limit_bytes=2**20, stop_at=6)
    assert small.run.exit_code == ExitCode.PREEMPTED
    assert not list((tmp_path / "memory").rglob("*.distcp")), "what was written of it takes no memory for the rest"
    assert small.said("no more checkpoints in memory")
    assert small.said("spec.checkpoint.memory.sizeLimit is 0.00 GiB")
    (tmp_path / "file").write_text("")
    given = arguments(llama, data, tmp_path / "again", **STEPS)
    missing = train(given, tmp_path / "file")
    assert missing.run.exit_code == 0
    assert missing.said("no checkpoints in memory in this run")
