"""The README: its example runs, its table is the code's, its pictures and links exist."""

import importlib.util
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


FIRST, EXACT, CURVATURE = re.findall(
    r"<!-- example:.*?-->\n```python\n(.*?)```", README, flags=re.DOTALL
)


def test_the_recommender_of_the_example_forgets_exactly(capsys):
    names: dict = {}
    exec(compile(EXACT, "README.md", "exec"), names)
    guarantee, distance = capsys.readouterr().out.splitlines()[:2]
    removed = (names["ratings"].user == 7).sum()
    assert guarantee.startswith(f"exact(0.001) {removed} ")
    assert 0 <= float(distance) < 0.05
    assert float(abs(names["state"].user[7]).max()) == 0


def test_the_examples_run_one_after_the_other_and_forget(capsys):
    first, curvature = FIRST, CURVATURE
    assert len([line for line in first.splitlines() if line.strip()]) <= 20
    names: dict = {}
    exec(compile(first, "README.md", "exec"), names)
    declared, share = capsys.readouterr().out.strip().splitlines()
    assert declared == "['forget', 'key', 'labels', 'retain'] empirical"
    assert float(share) < 0.5

    exec(compile(curvature, "README.md", "exec"), names)
    leaves = len(jax.tree.leaves(names["trained"].params))
    assert capsys.readouterr().out.count("Route(") == leaves
    for made in ("fisher", "exact"):
        largest = [float(leaf.max()) for leaf in jax.tree.leaves(names[made])]
        assert len(largest) == leaves and min(largest) > 0


def test_the_table_of_methods_is_what_the_code_says():
    path = ROOT / "experiments" / "readme.py"
    spec = importlib.util.spec_from_file_location("readme", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.with_table(README) == README, "run `python experiments/readme.py`"
    with pytest.raises(ValueError, match="lost the markers"):
        module.with_table("no markers here")


def test_every_file_that_the_readme_points_to_is_there():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
