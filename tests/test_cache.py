"""The cache: the right result, made once, or made again; never a wrong, partial or strange one."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn
from jaxunlearn import cache as cache_module
from jaxunlearn import checkpoint, manifest
from jaxunlearn.cache import (
    Cache,
    DamagedEntryWarning,
    UnsavedEntryWarning,
    code_version,
    default_root,
    entry_name,
)

KEY = {
    "data": "9f3c",
    "split": {"forget": "class:3", "seed": 0},
    "recipe": {"epochs": 30, "lr": 0.002, "widths": [64, 128]},
    "keys": [0, 1, 2],
    "code": "77aa",
}
LIKE = {"w": jax.ShapeDtypeStruct((4, 3), np.float32), "n": np.zeros(2, np.int8)}


def tree(value: float = 1.0):
    return {"w": jnp.full((4, 3), value), "n": np.full(2, value, np.int8)}


def never():
    raise AssertionError("made again")


def value_of(cached) -> float:
    (value,) = set(np.asarray(cached.tree["w"]).ravel())
    assert set(cached.tree["n"]) == {int(value)}
    return float(value)


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "root")


def test_the_second_time_is_a_hit_with_the_same_bits(cache):
    made = {"w": jax.random.normal(jax.random.key(0), (4, 3)), "n": np.array([3, -3], np.int8)}
    first = cache.get_or_make(KEY, lambda: made, LIKE, label="oracles")
    second = Cache(cache.root).get_or_make(KEY, never, LIKE, label="oracles")
    assert (first.hit, second.hit) == (False, True)
    assert first.name == second.name and first.name.startswith("oracles-")
    assert first.seconds > 0 and second.seconds > 0
    for leaf in ("w", "n"):
        assert type(second.tree[leaf]) is type(made[leaf])
        assert np.asarray(second.tree[leaf]).tobytes() == np.asarray(made[leaf]).tobytes()


def test_the_order_of_the_key_does_not_matter(cache):
    cache.get_or_make(KEY, tree, LIKE)
    assert cache.get_or_make(dict(reversed(KEY.items())), never, LIKE).hit


@pytest.mark.parametrize(
    "change",
    [
        {"data": "9f3d"},
        {"split": {"forget": "class:3", "seed": 1}},
        {"split": {"forget": "class:4", "seed": 0}},
        {"recipe": {"epochs": 31, "lr": 0.002, "widths": [64, 128]}},
        {"recipe": {"epochs": 30, "lr": 0.0020000000000000005, "widths": [64, 128]}},
        {"recipe": {"epochs": 30, "lr": 0.002, "widths": [128, 64]}},
        {"recipe": {"epochs": 30.0, "lr": 0.002, "widths": [64, 128]}},
        {"recipe": {"epochs": "30", "lr": 0.002, "widths": [64, 128]}},
        {"keys": [0, 1]},
        {"code": "77ab"},
        {"more": None},
    ],
)
def test_another_ingredient_is_a_miss(cache, change):
    cache.get_or_make(KEY, lambda: tree(1.0), LIKE)
    other = cache.get_or_make(KEY | change, lambda: tree(2.0), LIKE)
    assert (other.hit, value_of(other)) == (False, 2.0)
    assert value_of(cache.get_or_make(KEY, never, LIKE)) == 1.0


def test_another_schema_is_a_miss(cache, monkeypatch):
    cache.get_or_make(KEY, tree, LIKE)
    monkeypatch.setattr(manifest, "SCHEMA", manifest.SCHEMA + 1)
    assert not cache.get_or_make(KEY, tree, LIKE).hit


def test_people_can_read_the_key_of_an_entry(cache):
    name = cache.get_or_make(KEY, tree, LIKE).name
    manifest = json.loads((Path(cache.root) / name / "manifest.json").read_text())
    assert manifest["metadata"]["key"] == KEY


# ------------------------------------------------------------------------------ what is damaged


def damages(entry: Path):
    """Every file of an entry, cut short, with a flipped bit, and removed."""
    for file in sorted(file for file in entry.rglob("*") if file.is_file()):
        yield file.relative_to(entry), "removed"
        if file.stat().st_size:
            yield file.relative_to(entry), "truncated"
            yield file.relative_to(entry), "flipped"


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "removed":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 4
        file.write_bytes(content)


def test_damage_to_any_file_is_set_aside_named_and_made_again(cache):
    name = cache.get_or_make(KEY, lambda: tree(1.0), LIKE).name
    entry, quarantine = Path(cache.root) / name, Path(cache.root) / "quarantine"
    cases = list(damages(entry))
    assert len({file for file, _ in cases}) > 5
    sound = shutil.copytree(entry, Path(cache.root).parent / "sound")
    for n, (file, how) in enumerate(cases, start=1):
        shutil.rmtree(entry)
        shutil.copytree(sound, entry)
        damage(entry / file, how)
        with pytest.warns(DamagedEntryWarning, match="made again") as caught:
            again = cache.get_or_make(KEY, lambda: tree(2.0), LIKE)
        assert (again.hit, value_of(again)) == (False, 2.0)
        (warning,) = caught
        assert name in str(warning.message) and file.name in str(warning.message)
        assert f"moved to {quarantine / name}-{n}" in str(warning.message)
        assert warning.filename == __file__
        assert value_of(cache.get_or_make(KEY, never, LIKE)) == 2.0
    assert len(os.listdir(quarantine)) == len(cases)


@pytest.mark.parametrize("what", ["empty directory", "file", "pickle"])
def test_what_is_no_entry_is_set_aside_too(cache, what):
    entry = Path(cache.root) / entry_name(KEY)
    entry.parent.mkdir()
    if what == "empty directory":
        entry.mkdir()
    else:
        entry.write_bytes(b"\x80\x04N." if what == "pickle" else b"text")
    with pytest.warns(DamagedEntryWarning, match="made again"):
        assert value_of(cache.get_or_make(KEY, tree, LIKE)) == 1.0
    assert cache.get_or_make(KEY, never, LIKE).hit


def test_an_entry_that_another_process_set_aside_first_is_just_made(cache, monkeypatch):
    entry = Path(cache.root) / entry_name(KEY)
    entry.mkdir(parents=True)

    def overtaken(path, like, original=checkpoint.load):
        try:
            return original(path, like)
        finally:
            shutil.rmtree(entry, ignore_errors=True)

    monkeypatch.setattr(checkpoint, "load", overtaken)
    assert not cache.get_or_make(KEY, tree, LIKE).hit


def test_a_damaged_entry_that_cannot_be_moved_does_not_stop_the_work(cache, monkeypatch):
    (Path(cache.root) / entry_name(KEY)).mkdir(parents=True)

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = cache.get_or_make(KEY, tree, LIKE)
    assert (made.hit, value_of(made)) == (False, 1.0)
    assert {warning.category for warning in caught} == {DamagedEntryWarning, UnsavedEntryWarning}
    assert "could not be moved away" in str(caught[0].message)


# -------------------------------------------------------------------------------- what is wrong


def test_an_entry_of_another_tree_says_that_the_key_lacks_something(cache):
    cache.get_or_make(KEY, tree, LIKE)
    wider = LIKE | {"w": jax.ShapeDtypeStruct((4, 5), np.float32)}
    with pytest.raises(checkpoint.CheckpointMismatchError, match=r"expected float32\[4,5\]") as e:
        cache.get_or_make(KEY, never, wider)
    assert "add to the key what has changed" in e.value.__notes__[0]
    assert cache.get_or_make(KEY, never, LIKE).hit  # And it is not taken for damage.


def test_make_must_return_what_like_says(cache):
    with pytest.raises(checkpoint.CheckpointMismatchError, match="(?s)nothing was.*missing 'n'"):
        cache.get_or_make(KEY, lambda: {"w": tree()["w"]}, LIKE)
    assert not Path(cache.root).exists()


def test_an_error_while_making_leaves_nothing(cache):
    with pytest.raises(AssertionError, match="made again"):
        cache.get_or_make(KEY, never, LIKE)
    assert not Path(cache.root).exists()


@pytest.mark.parametrize(
    "part, message",
    [
        ({"tx": max}, r"cache key\['tx'\] must be JSON data .* got builtin_function"),
        ({"x": [np.zeros(2)]}, r"cache key\['x'\]\[0\] must be JSON data .* got ndarray"),
        ({"lr": float("inf")}, r"cache key\['lr'\] must be JSON data .* got inf"),
        ({3: 1}, r"cache key must be JSON data .* got the key 3"),
    ],
)
def test_a_key_is_data_only(cache, part, message):
    with pytest.raises(TypeError, match=message):
        cache.get_or_make(KEY | part, never, LIKE)


@pytest.mark.parametrize(
    "label",
    ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "C:\\x", "~", "a\0b", "\n"]
    + ["x" * 5000, "é" * 300, "CON:", "-rf", ".hidden", "%2e%2e%2f", "quarantine"],
)
def test_no_label_leads_out_of_the_root(cache, label):
    outside = {path for path in Path(cache.root).parent.rglob("*")}
    name = cache.get_or_make(KEY, tree, LIKE, label=label).name
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{64}", name) and len(name) < 120
    assert os.listdir(cache.root) == [name]
    assert {p for p in Path(cache.root).parent.rglob("*") if cache.root not in p.parents} == {
        *outside,
        cache.root,
    }
    assert cache.get_or_make(KEY, never, LIKE, label=label).hit


@pytest.mark.parametrize("name", [entry_name(KEY), "quarantine"])
def test_a_link_out_of_the_root_is_not_followed(cache, name):
    elsewhere = Path(cache.root).parent / "elsewhere"
    elsewhere.mkdir()
    Path(cache.root).mkdir()
    (Path(cache.root) / name).symlink_to(elsewhere)
    if name == "quarantine":
        (Path(cache.root) / entry_name(KEY)).mkdir()
    with pytest.raises(ValueError, match="link that may lead out of the cache: remove it"):
        cache.get_or_make(KEY, tree, LIKE)
    assert not os.listdir(elsewhere)


def test_a_result_that_cannot_be_stored_is_not_lost(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UnsavedEntryWarning, match="not stored.*used all the same.*needs 50 bytes"):
        made = Cache(tmp_path / "file").get_or_make(KEY, tree, LIKE)
    assert (made.hit, value_of(made)) == (False, 1.0)


# -------------------------------------------------------------------------------- two at a time


def test_who_comes_second_takes_the_first_ones_result(cache):
    def slow():
        Cache(cache.root).get_or_make(KEY, lambda: tree(1.0), LIKE)
        return tree(2.0)

    made = cache.get_or_make(KEY, slow, LIKE)
    assert (made.hit, value_of(made)) == (False, 1.0)
    assert os.listdir(cache.root) == [made.name]


def test_who_comes_second_after_a_broken_first_stores_his_own(cache):
    def slow():
        first = Cache(cache.root).get_or_make(KEY, lambda: tree(1.0), LIKE)
        (Path(cache.root) / first.name / "manifest.json").unlink()
        return tree(2.0)

    with pytest.warns(DamagedEntryWarning):
        assert value_of(cache.get_or_make(KEY, slow, LIKE)) == 2.0
    assert value_of(cache.get_or_make(KEY, never, LIKE)) == 2.0


RACER = """
import os, sys, time
import numpy as np, orbax.checkpoint
from jaxunlearn.cache import Cache

root, me = sys.argv[1], float(sys.argv[2])
print("ready", flush=True)
start = float(sys.stdin.readline())
like = {"w": np.empty((200, 200))}
for round_ in range(8):
    time.sleep(max(0.0, start + 0.1 * round_ - time.time()))
    made = Cache(root).get_or_make(
        {"round": round_}, lambda: {"w": np.full((200, 200), me)}, like, label=str(round_)
    )
    (value,) = set(made.tree["w"].ravel())
    print(int(made.hit), int(value), flush=True)
"""


def test_two_processes_at_once_end_with_one_result(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(Path(jaxunlearn.__file__).parents[1]),
        "JAX_PLATFORMS": "cpu",
    }
    racers = [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-c", RACER, str(tmp_path), str(me)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for me in (1, 2)
    ]
    for racer in racers:
        assert racer.stdout and racer.stdout.readline() == "ready\n"
    outputs = []
    start = f"{time.time() + 0.2}\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write(start)
        racer.stdin.flush()
    for racer in racers:
        outputs.append(racer.communicate(timeout=60)[0].split("\n")[:-1])
        assert racer.returncode == 0
    both_made = 0
    for first, second in zip(*outputs, strict=True):
        assert first.split()[1] == second.split()[1]  # Both hold the same result,
        both_made += first.split()[0] == second.split()[0] == "0"
    assert both_made  # also where both made one: the race was real.
    assert len(outputs[0]) == 8
    assert len(os.listdir(tmp_path)) == 8  # No temporaries, no quarantine.


# ------------------------------------------------------------------------- versions and places


def module_at(path: Path, source: str) -> types.ModuleType:
    path.write_text(source)
    module = types.ModuleType("trains")
    module.__file__ = str(path)
    return module


def test_the_version_of_the_code_changes_with_its_source(tmp_path):
    module = module_at(tmp_path / "a.py", "x = 1")
    first = code_version(module)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert code_version(module_at(tmp_path / "a.py", "x = 1")) == first
    assert code_version(module_at(tmp_path / "a.py", "x = 1 ")) != first
    assert code_version(module, checkpoint) == code_version(checkpoint, module)
    assert code_version(module, checkpoint) != code_version(module)


def test_the_version_of_a_package_changes_with_every_file_in_it(tmp_path):
    package = module_at(tmp_path / "__init__.py", "")
    package.__path__ = [str(tmp_path)]
    versions = [code_version(package)]
    (tmp_path / "sub").mkdir()
    for name in ("sub/__init__.py", "sub/b.py"):
        (tmp_path / name).write_text("")
        versions.append(code_version(package))
    (tmp_path / "sub/b.py").write_text("y = 2")
    versions.append(code_version(package))
    (tmp_path / "sub/b.py").rename(tmp_path / "b.py")
    versions.append(code_version(package))
    assert len(set(versions)) == len(versions)


@pytest.mark.parametrize(
    "owner, name, value",
    [
        (jax, "__version__", "99.0"),
        (jax, "default_backend", lambda: "tpu"),
        (jax, "devices", lambda: [types.SimpleNamespace(device_kind="another")]),
        (cache_module.importlib.metadata, "version", lambda package: "99.0"),
    ],
)
def test_the_version_of_the_code_changes_with_what_runs_it(monkeypatch, owner, name, value):
    before = code_version(checkpoint)
    monkeypatch.setattr(owner, name, value)
    assert code_version(checkpoint) != before


def test_the_version_of_the_code_changes_with_settings_that_change_numbers():
    versions = [code_version()]
    with jax.enable_x64(True):
        versions.append(code_version())
    with jax.default_matmul_precision("bfloat16"):
        versions.append(code_version())
    with jax.default_prng_impl("rbg"):
        versions.append(code_version())
    with jax.threefry_partitionable(False):
        versions.append(code_version())
    assert len(set(versions)) == 5


def test_a_module_without_source_is_refused():
    with pytest.raises(ValueError, match="module 'sys' has no Python source"):
        code_version(sys)


def test_the_root_is_found_where_the_standards_say(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("JAXUNLEARN_CACHE", "~/chosen")
    assert default_root() == tmp_path / "chosen"
    monkeypatch.setenv("JAXUNLEARN_CACHE", "")
    assert default_root() == Path("/xdg/jaxunlearn")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert default_root() == tmp_path / ".cache" / "jaxunlearn"
