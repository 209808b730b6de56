"""What a writer leaves, whatever stops it: the old checkpoint or the new one, whole."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxunlearn
from jaxunlearn import checkpoint, publishing
from jaxunlearn.checkpoint import (
    CheckpointError,
    load,
    save,
)
from tests.checkpoints import assert_same, files_of, small


@pytest.mark.parametrize("what", ["file", "directory", "other manifest", "damaged"])
def test_only_a_sound_checkpoint_is_overwritten(tmp_path, what):
    path = tmp_path / "c"
    if what == "file":
        path.write_text("mine")
    elif what == "damaged":
        (save(path, small()) / "manifest.json").write_text("{")
    else:
        path.mkdir()
        (path / "precious").write_text("mine")
        if what == "other manifest":
            (path / "manifest.json").write_text('{"format": "web app"}')
    before = {file: file.read_bytes() for file in files_of(tmp_path)}
    with pytest.raises(CheckpointError):
        save(path, small(), overwrite=True)
    assert {file: file.read_bytes() for file in files_of(tmp_path)} == before


def test_overwriting_replaces_and_leaves_nothing_behind(tmp_path):
    path = save(tmp_path / "c", small(1.0), metadata={"step": 1})
    save(path, {"other": np.arange(3)}, metadata={"step": 2}, overwrite=True)
    assert_same(load(path, {"other": np.arange(3)}), {"other": np.arange(3)})
    assert len(os.listdir(path)) == 2 and os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_at_any_step_leaves_the_old_or_the_new(tmp_path, monkeypatch, overwrite):
    """Fails the n-th call that makes something durable or visible, for every n in turn."""
    path, outcomes = tmp_path / "c", []
    for n in range(1, 1000):
        shutil.rmtree(path, ignore_errors=True)
        if overwrite:
            save(path, small(1.0))
        calls = 0

        def counted(original, n=n):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == n:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "replace"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                save(path, small(2.0), overwrite=overwrite)
                outcomes.append("new")
            except CheckpointError as error:
                assert "68 bytes" in str(error) and str(path) in str(error)
                assert "No space left on device" in str(error)
                outcomes.append("old")
        if outcomes[-1] == "new":
            assert_same(load(path, small()), small(2.0))
        elif overwrite:
            assert_same(load(path, small()), small(1.0))
        else:
            assert not path.exists()
        assert [name for name in os.listdir(tmp_path) if name != "c"] == []
        if outcomes[-1] == "new":
            assert len(os.listdir(path)) == 2
        if calls < n:
            break
    assert outcomes.count("old") > 5 and outcomes[-1] == "new"


def test_a_file_system_that_stops_taking_bytes_gives_one_clear_error(tmp_path, capfd):
    """A real limit of the kernel, met by the writer's own threads."""
    tree = {"w": np.random.default_rng(0).standard_normal(500_000)}
    path = save(tmp_path / "c", small(1.0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"needs 4,000,000 bytes; free there: [\d,]+\. "):
            save(path, tree, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_same(load(path, small()), small(1.0))
    assert os.listdir(tmp_path) == ["c"]
    assert "Traceback" not in capfd.readouterr().err
    assert_same(load(save(path, tree, overwrite=True), tree), tree)  # The tree is still usable.


def test_a_read_only_directory_gives_one_clear_error(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):  # Root may write anywhere but here.
        closed = Path("/sys/kernel")
    with pytest.raises(CheckpointError, match="could not save checkpoint .*needs 68 bytes"):
        save(closed / "c", small())


def test_a_parent_that_is_a_file_is_not_taken_for_an_existing_checkpoint(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not save"):
        save(tmp_path / "file" / "c", small())


def test_the_first_of_two_savers_wins(tmp_path, monkeypatch):
    def slow(*args, original=checkpoint._write_arrays):
        original(*args)
        monkeypatch.setattr(checkpoint, "_write_arrays", original)
        save(tmp_path / "c", small(1.0))

    monkeypatch.setattr(checkpoint, "_write_arrays", slow)
    with pytest.raises(FileExistsError, match="appeared meanwhile"):
        save(tmp_path / "c", small(2.0))
    assert_same(load(tmp_path / "c", small()), small(1.0))
    assert os.listdir(tmp_path) == ["c"]


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_sweep_removes_what_the_dead_left_and_nothing_else(tmp_path):
    here, dead = publishing._machine(), dead_process()
    gone = [f".c.tmp-{here}-{dead}-01234567", ".c.tmp-deadbeef-1-01234567"]
    kept = [
        f".c.tmp-{here}-{os.getpid()}-01234567",  # alive
        f".c.tmp-{here}-1-01234567",  # alive, somebody else's
        ".c.tmp-deadbeef-2-01234567",  # another machine's, and fresh
        f"arrays-{here}-{dead}-01234567",  # may be the arrays of a checkpoint
        f".c.tmp-{here}-{dead}-0123456",  # not our pattern
        "c",
        ".git",
    ]
    for name in gone + kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    yesterday = time.time() - 25 * 3600
    os.utime(tmp_path / gone[1], (yesterday, yesterday))
    assert publishing.sweep(tmp_path) == sorted(tmp_path / name for name in gone)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_arrays_orphaned_by_a_kill_go_with_the_next_overwrite(tmp_path):
    path = save(tmp_path / "c", small(1.0))
    orphan = path / f"arrays-{publishing._machine()}-{dead_process()}-01234567"
    orphan.mkdir()
    assert_same(load(path, small()), small(1.0))
    save(path, small(2.0), overwrite=True)
    assert not orphan.exists() and len(os.listdir(path)) == 2


# -------------------------------------------------------------------------------- real kills

WRITER = """
import itertools, os, sys
import numpy as np, orbax.checkpoint
from jaxunlearn import checkpoint

def write(directory):
    acknowledged = os.open(directory + "/acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for k in itertools.count(1):
        tree = {"w": np.full((64, 64), k), "b": [np.full(1000, k)]}
        checkpoint.save(directory + "/latest", tree, overwrite=True)
        os.write(acknowledged, b"latest %d\\n" % k)
        checkpoint.save(directory + f"/step-{k}", tree)
        os.write(acknowledged, b"step-%d %d\\n" % (k, k))

print("ready", flush=True)
for line in sys.stdin:  # Imported once; each writer is a fork that the test kills.
    if (pid := os.fork()) == 0:
        write(line.strip())
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""


def kill_writers(tmp_path: Path, kills: int, seed: int) -> None:
    """Kills a writer at a random moment, again and again, and looks at what it left."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(jaxunlearn.__file__).parents[1]),
        "JAX_PLATFORMS": "cpu",
    }
    like = {"w": np.empty((64, 64), int), "b": [np.empty(1000, int)]}
    moments, interrupted, completed = random.Random(seed), 0, 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "ready\n"
        for number in range(kills):
            directory = tmp_path / str(number)
            directory.mkdir()
            process.stdin.write(f"{directory}\n")
            process.stdin.flush()
            pid = int(process.stdout.readline())
            time.sleep(moments.uniform(0.1, 0.6))
            os.kill(pid, signal.SIGKILL)
            assert process.stdout.readline() == "dead\n"

            acknowledged = {}
            if (directory / "acknowledged").exists():
                lines = (directory / "acknowledged").read_text().splitlines()
                acknowledged = {name: int(k) for name, k in (line.split() for line in lines)}
            visible = {p.name for p in directory.iterdir() if p.name[0] != "."} - {"acknowledged"}
            assert acknowledged.keys() <= visible  # What was reported saved is there,
            for name in visible:  # and what is there is whole, not older, and of one save.
                tree = load(directory / name, like)
                (k,) = set(tree["w"].ravel()) | set(tree["b"][0])
                assert k >= acknowledged.get(name, 1)
                assert name in ("latest", f"step-{k}")
            interrupted += any(p.name[0] == "." for p in directory.iterdir())
            completed += len(acknowledged)
            save(directory / "after", small())
            assert not any(p.name[0] == "." for p in directory.iterdir())
        process.stdin.close()
    assert interrupted and completed  # Control: the moments did hit saves, and not only those.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_killed_savers_leave_whole_checkpoints_or_none(tmp_path):
    kill_writers(tmp_path, kills=10, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_fifty_killed_savers_leave_whole_checkpoints_or_none(tmp_path):
    kill_writers(tmp_path, kills=50, seed=1)
