"""The README: its example runs, its table is the code's, its pictures and links exist."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_in_twenty_lines_and_forgets(capsys):
    (code,) = re.findall(r"<!-- example:.*?-->\n```python\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 20
    exec(compile(code, "README.md", "exec"), {})
    declared, share = capsys.readouterr().out.strip().splitlines()
    assert declared == "['forget', 'key', 'labels', 'retain'] empirical"
    assert float(share) < 0.5


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
