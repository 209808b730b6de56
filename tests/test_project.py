"""The rules of the project that no single module can keep: imports, dependencies, commands, paths.

Each rule is a function of source text; a second test feeds it a culprit and sees it caught.
"""

import ast
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxunlearn"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# What a distribution is called when it is imported, where the two differ.
IMPORT_NAMES = {
    "orbax-checkpoint": "orbax.checkpoint",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "tensorflow-datasets": "tensorflow_datasets",
}


# ----------------------------------------------------------------------------------- reading source


def module_name(path: Path) -> str:
    """jaxunlearn/audit/energy.py -> jaxunlearn.audit.energy; a package is its __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, str]:
    """{dotted name: source} of every module of the package."""
    return {module_name(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def is_package(name: str) -> bool:
    return (ROOT / name.replace(".", "/")).is_dir()


def imports(name: str, source: str, package: bool = False) -> set[str]:
    """Everything that a module imports, anywhere in it, as absolute dotted names.

    `from a.b import c` counts as both `a.b` and `a.b.c`, since c may be a module.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".") if package else name.split(".")[:-1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def reaches(imported: set[str], target: str) -> bool:
    """Whether one of the names is `target` or inside it."""
    return any(name == target or name.startswith(target + ".") for name in imported)


# ------------------------------------------------------------------------------ who may import whom


COMPARING = ("auditing", "calibration")  # what stands beside compare, on top of it


def forbidden_imports(name: str, source: str, package: bool = False) -> list[str]:
    """The arrows of docs/design.md that a module breaks, in words."""
    imported = imports(name, source, package)
    places = {
        part: f"jaxunlearn.{part}"
        for part in ("audit", "methods", "compare", "compare_ratings", "cli")
    }
    broken = []

    def forbid(target: str, reason: str) -> None:
        if reaches(imported, target):
            broken.append(f"{name} imports {target}: {reason}")

    top = name.split(".")[1] if "." in name else ""
    if top not in ("cli", "__main__"):
        forbid(places["cli"], "the command line is on top; nothing imports it")
    if top not in (*COMPARING, "cli", "__main__", "compare", "compare_ratings", ""):
        forbid(places["compare"], "compare stands above the library")
    if top not in ("cli", "__main__", "compare_ratings", ""):
        forbid(places["compare_ratings"], "compare stands above the library")
    if top == "audit":
        forbid(places["methods"], "an audit must not know what it judges")
    if top == "methods":
        forbid(places["audit"], "a method must not know how it is judged")
    if top not in ("model", "networks"):
        forbid("flax", "only model.py and networks.py are for Flax")
    for helper in ("chex", "pytest", "hypothesis", "tensorflow", "torch"):
        forbid(helper, "not a dependency of the package")
    if family := re.match(r"jaxunlearn\.methods\.(\w+)\.", name):
        others = set(re.findall(r"jaxunlearn\.methods\.(\w+)\.\w+", " ".join(imported)))
        for other in sorted(others - {family[1]}):
            broken.append(f"{name} imports the family {other}: share a piece below methods instead")
    return broken


@pytest.mark.parametrize("name", modules())
def test_each_module_imports_only_what_lies_below_it(name):
    assert forbidden_imports(name, modules()[name], is_package(name)) == []


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("jaxunlearn.audit.energy", "from jaxunlearn.methods.edits import ssd", "audit must not"),
        ("jaxunlearn.audit.energy", "from ..methods import ssd", "audit must not"),
        ("jaxunlearn.audit.energy", "from .. import methods", "audit must not"),
        ("jaxunlearn.methods.edits.ssd", "import jaxunlearn.audit.klom", "how it is judged"),
        ("jaxunlearn.methods.edits.ssd", "from ..descent.plus import x", "the family descent"),
        ("jaxunlearn.training", "def f():\n    from flax import nnx", "only model.py"),
        ("jaxunlearn.training", "from . import cli", "nothing imports it"),
        ("jaxunlearn.method", "from .compare import compare", "above the library"),
        ("jaxunlearn.compare", "from . import compare_ratings", "above the library"),
        ("jaxunlearn.data.sources", "import tensorflow as tf", "not a dependency"),
    ],
)
def test_a_forbidden_import_is_caught(name, source, words):
    (found,) = forbidden_imports(name, source)
    assert words in found


def test_importing_the_package_is_cheap_and_leaves_jax_alone():
    """Heavy packages are imported where they are used; no device is asked for at import."""
    heavy = ("flax", "grain", "matplotlib", "orbax", "PIL", "sklearn", "tensorflow_datasets")
    script = f"""
import sys, jaxunlearn, jax
print(sorted(name for name in {heavy} if name in sys.modules))
jax.config.update("jax_num_cpu_devices", 3)  # raises once a device has been asked for
assert jax.device_count() == 3
"""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# ----------------------------------------------------------------------------- safe by construction


UNSAFE_MODULES = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")


def unsafe_calls(source: str) -> Iterator[str]:
    """What can run code that came as data: pickles, `eval`, `exec`, `compile`."""
    for name in sorted(imports("_", source)):
        if name.split(".")[0] in UNSAFE_MODULES:
            yield f"import {name}"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile"):
            yield f"{node.func.id}() at line {node.lineno}"
        for keyword in node.keywords:
            allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "allow_pickle" and not allowed:
                yield f"allow_pickle at line {node.lineno}"


@pytest.mark.parametrize("name", modules())
def test_nothing_unpickles_or_evaluates(name):
    assert list(unsafe_calls(modules()[name])) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "def f(x):\n    return eval(x)",
        "exec('1')",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
    ],
)
def test_an_unsafe_call_is_caught(source):
    assert list(unsafe_calls(source))


def test_a_jax_compile_and_a_safe_load_are_not_mistaken_for_unsafe_ones():
    source = "jax.jit(f).lower(x).compile()\nnp.load(path, allow_pickle=False)\nre.compile('x')"
    assert list(unsafe_calls(source)) == []


# --------------------------------------------------------------------------- dependencies, versions


def requirements(extra: str | None = None) -> list[str]:
    """Names of the distributions that pyproject.toml states, without this project's own extras."""
    project = PYPROJECT["project"]
    stated = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    names = [re.split(r"[\s<>=!~;\[]", line)[0] for line in stated]
    return [name for name in names if name != project["name"]]


def imported_under(*folders: Path) -> set[str]:
    files = [path for folder in folders for path in folder.rglob("*.py")]
    return set().union(*(imports("_", path.read_text()) for path in files))


@pytest.mark.parametrize("distribution", requirements() + requirements("compare"))
def test_every_dependency_of_the_main_job_is_imported_by_the_package(distribution):
    assert reaches(imported_under(PACKAGE), IMPORT_NAMES.get(distribution, distribution))


@pytest.mark.parametrize("distribution", requirements("data") + requirements("test"))
def test_every_dependency_of_the_tests_is_used(distribution):
    if distribution == "pytest-xdist":  # a plugin: used by the command, not imported
        assert "-n" in readme_test_command()
    else:
        name = IMPORT_NAMES.get(distribution, distribution)
        assert reaches(imported_under(PACKAGE, ROOT / "tests"), name)


def test_no_dependency_is_capped():
    project = PYPROJECT["project"]
    stated = [project["requires-python"], *project["dependencies"]]
    stated += [line for extra in project["optional-dependencies"].values() for line in extra]
    assert [line for line in stated if re.search(r"<|==|~=", line)] == []


def test_the_version_is_the_same_wherever_it_is_said():
    import jaxunlearn

    stated = PYPROJECT["project"]["version"]
    assert jaxunlearn.__version__ == stated
    if installed := installed_version():
        assert installed == stated


def installed_version() -> str | None:
    try:
        return importlib.metadata.version("jaxunlearn")
    except importlib.metadata.PackageNotFoundError:  # run from the source tree
        return None


# --------------------------------------------------------------------------- commands and documents


def readme() -> str:
    return (ROOT / "README.md").read_text()


def readme_test_command() -> str:
    """The README's second command, after the installation."""
    (found,) = re.findall(r"&& (python -m pytest.*)", readme())
    return found.strip()


def test_ci_runs_the_readmes_test_command():
    (array,) = re.findall(r"^readme_test=\((.*)\)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert shlex.split(array) == shlex.split(readme_test_command())


def test_the_readmes_extras_bring_what_the_commands_need():
    extras = PYPROJECT["project"]["optional-dependencies"]
    (main_job,) = re.findall(r"pip install -e '\.\[(\w+)\]' && jaxunlearn", readme())
    assert {"matplotlib", "scikit-learn"} <= set(requirements(main_job))
    (tests,) = re.findall(r"pip install -e '\.\[(\w+)\]' && python -m pytest", readme())
    assert "jaxunlearn[compare,data]" in extras[tests]


def test_ci_is_a_correct_shell_script_that_may_be_run():
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_the_reference_lists_every_module_once():
    listed = re.findall(r"automodule:: (\S+)", (ROOT / "docs/api.md").read_text())
    public = {name for name in modules() if not is_package(name) and "._" not in name}
    assert {"missing": public - set(listed), "gone": set(listed) - public} == {
        "missing": set(),
        "gone": set(),
    }
    assert len(listed) == len(set(listed))


# ---------------------------------------------------------------------------------- nothing private


# Written so that this file does not contain what it looks for.
PRIVATE = re.compile(
    r"p[y]pi[.]o[r]g|python[h]osted|registry[.]n[p]mjs|deb[.]deb[i]an"
    r"|(?<![\w.~$}-])/(?:wor[k]|far[m]|roo[t]|hom[e]|User[s])/[a-z.]"
    r"|/t[m]p/(?:envs|bash_jobs)"
)


def private_mentions(text: str) -> list[str]:
    """Paths of one person's machine, and hosts that only their network knows."""
    return [match.group() for match in PRIVATE.finditer(text)]


def test_no_file_mentions_a_machine():
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of the project's files")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and (mentions := private_mentions(path.read_text(errors="replace"))):
            found[name] = mentions
    assert found == {}


@pytest.mark.parametrize(
    "parts",
    [("'/ho", "me/ann/data'"), ("see /wo", "rk/main"), ("https://py", "pi.org"), ("/ro", "ot/.x")],
)
def test_a_mention_of_a_machine_is_caught(parts):
    assert private_mentions("".join(parts))


@pytest.mark.parametrize("text", ["frame/home/x", "~/home/x", "$HOME/home/x", "home/main"])
def test_ordinary_paths_are_left_alone(text):
    assert private_mentions(text) == []
