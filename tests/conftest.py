"""What every test shares: a strict JAX, eight virtual devices, a private cache, a few fixtures.

Strictness is set here, before anything asks JAX for a device. In a run without path arguments it
holds for the docstring examples of the package too: pytest loads this file before it collects them.

====================================  ============================================================
setting                               what it catches
====================================  ============================================================
``jax_numpy_rank_promotion='raise'``  ``(n,) - (n, 1)`` silently becoming ``(n, n)``
``jax_legacy_prng_key='error'``       ``PRNGKey(0)``: integers that anybody may add to by mistake
``jax_num_cpu_devices=8``             code that works on one device only (costs nothing measurable)
warnings as errors (pyproject.toml)   upstream deprecations, on the day they appear
====================================  ============================================================

Two more checks are fixtures, to be asked for by name. ``no_key_reuse`` raises when a key is drawn
from twice: it cannot be on everywhere, since it also forbids the honest repetition "same key, same
bits". ``no_tracer_leaks`` finds tracers that outlive their trace: on everywhere it makes each small
compilation two and a half times as slow.

XLA's dearer optimisations are off: compiling is most of what the tests do, and without them it
takes little more than half the time. ``JAX_DISABLE_MOST_OPTIMIZATIONS=0`` turns them on, as
``.ci/run`` does for the slow tests.

Compiled programs are kept between runs and shared between workers: in ``JAX_COMPILATION_CACHE_DIR``
where that is set, otherwise beside pytest's own cache.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Before NumPy is loaded: its products are many times slower when the threads of two workers fight
# for the same cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
import pytest

_PROJECT = Path(__file__).resolve().parents[1]

# A person's own cache is neither read nor written: each process of a test run has an empty one.
_PRIVATE_CACHE = tempfile.mkdtemp(prefix="jaxunlearn-tests-")
os.environ["JAXUNLEARN_CACHE"] = _PRIVATE_CACHE

# Pictures are drawn into files, never onto a screen.
os.environ["MPLBACKEND"] = "agg"

if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(_PROJECT / ".pytest_cache" / "jax"))


def pytest_unconfigure() -> None:
    """Remove the private cache of this process."""
    shutil.rmtree(_PRIVATE_CACHE, ignore_errors=True)


_MANY_MAPS = 25_000  # Linux allows a process 65,530; XLA crashes beyond
_TESTS = itertools.count(1)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_dropped() -> Iterator[None]:
    """After each file. Thousands of them in one process exhaust its memory maps, and XLA crashes.

    They come back from the persistent cache where another file needs them.
    """
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def compiled_programs_are_dropped_within_a_file_too() -> Iterator[None]:
    """Where a single file makes too many: the common suite over all methods does."""
    yield
    maps = Path("/proc/self/maps")
    if next(_TESTS) % 16 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Run one test in double precision; the next one is in single precision again.

    Identities are proved in float64, where rounding (1e-16) is far from any wrong factor.
    """
    with jax.enable_x64(True):
        yield


@pytest.fixture
def no_key_reuse() -> Iterator[None]:
    """Drawing twice from one key raises ``KeyReuseError``, inside traced programs and out of them.

    A draw or a ``split`` uses a key up. ``fold_in`` does not, and may follow either.
    """
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture
def no_tracer_leaks() -> Iterator[None]:
    """A traced value that is kept after its trace ends raises, at the end of the trace."""
    with jax.checking_leaks():
        yield


@pytest.fixture
def tolerance() -> Callable[..., dict[str, float]]:
    """``assert_allclose(a, b, **tolerance(a.dtype))``: how close equal things must be in a dtype.

    ``eps**0.75`` relative, and as much absolute times ``scale`` (the size of the numbers that were
    added up): 1.8e-12 in float64, 6.4e-6 in float32, 5.5e-3 in float16, 2.6e-2 in bfloat16. The
    exponent leaves room for a few thousand roundings and none for a wrong factor.
    """

    def of(dtype: object, scale: float = 1.0) -> dict[str, float]:
        eps = float(jax.numpy.finfo(dtype).eps)
        return {"rtol": eps**0.75, "atol": scale * eps**0.75}

    return of


@pytest.fixture
def clusters() -> dict[str, np.ndarray]:
    """Three clouds of points in four dimensions: a linear model separates them in a few steps.

    Columns: ``x`` (96, 4) float32, ``y`` (96,) int32 in {0, 1, 2}, 32 of each, in random order, and
    ``id`` (96,) int32, distinct and not the row number. Made by NumPy, the same in every run.
    """
    rng = np.random.default_rng(7)
    y = rng.permutation(np.repeat(np.arange(3), 32))
    centres = 2.0 * np.eye(3, 4)
    x = centres[y] + 0.5 * rng.standard_normal((96, 4))
    return {
        "x": x.astype(np.float32),
        "y": y.astype(np.int32),
        "id": (1000 + rng.permutation(96)).astype(np.int32),
    }
