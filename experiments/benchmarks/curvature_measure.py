"""How it is timed, and how memory is measured: two processes for each network.

    seconds   programs take turns; a turn is a pause, a call that does not count, and calls for a
              while; its number is their median, and the ratio to a gradient is taken within a turn
    peak      most resident memory of the process during a call less what it had before (Linux:
              VmHWM after a reset of the mark, less VmRSS)

The pause lets the threads of the program before fall asleep: PyTorch's wait busily for a moment.
A call longer than the turn is the only one of its turn, and counts.

Peaks are those of a first call in a process that gives back every block of 64 KiB or more at once
(`MALLOC`), so that none is served from memory that was used before; that makes calls slow, and
nothing is timed there. A PyTorch program makes a call on one row before, which loads its code, and
JAX one product. What XLA says that a program needs (temporary + output) stands beside it.
"""

import gc
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.curvature_floor import floor
from experiments.benchmarks.curvature_networks import count
from experiments.benchmarks.curvature_programs import Program, disagreement, programs
from jaxunlearn.curvature import routes

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
PAUSE = 0.1  # seconds

_STATUS = Path("/proc/self/status")
_MARK = Path("/proc/self/clear_refs")


def turn(run: Callable[[], Any], seconds: float, pause: float = PAUSE) -> float:
    """Median seconds of a call, over calls that take so many seconds together."""
    time.sleep(pause)
    times: list[float] = []
    while not times or sum(times) < seconds:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:] or times)


def timed(each: Sequence[Program], turns: int, seconds: float) -> list[dict[str, Any]]:
    """A record of each program: its seconds in every turn, interleaved, and the ratios."""
    for program in each:
        program.run()  # whatever is done once is done here
    found: list[list[float]] = [[] for _ in each]
    for _ in range(turns):
        for times, program in zip(found, each, strict=True):
            times.append(turn(program.run, seconds))
    by_name = {program.name: times for program, times in zip(each, found, strict=True)}
    gradients = [p.name for p in each if p.of == "gradient" and p.facts]
    fastest = min(gradients, key=lambda name: statistics.median(by_name[name]))
    return [
        {
            "program": program.name,
            "of": program.of,
            "base": program.base,
            "turns": times,
            "seconds": statistics.median(times),
            "ratio": ratio(times, by_name[program.base]),
            "of_fastest": ratio(times, by_name[fastest]),
            **program.facts,
        }
        for program, times in zip(each, found, strict=True)
    ]


def ratio(times: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios within a turn.

    Example:
      >>> ratio([2.0, 6.0, 4.0], [1.0, 2.0, 1.0])
      {'value': 3.0, 'low': 2.0, 'high': 4.0}
    """
    each = [a / b for a, b in zip(times, base, strict=True)]
    return {"value": statistics.median(each), "low": min(each), "high": max(each)}


def peak(run: Callable[[], Any]) -> tuple[Any, int | None]:
    """(result, bytes of resident memory that the call added at most); None where it is not told."""
    gc.collect()
    try:
        _MARK.write_text("5")
        before = _status("VmRSS")
    except OSError:
        return run(), None
    result = run()
    return result, max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def once(each: Sequence[Program], warm: Callable[[], Any]) -> list[dict[str, Any]]:
    """Peak memory of every program, and how far its squares are from those of the reference."""
    warm()
    found, squares = [], {}
    for program in each:
        result, most = peak(program.run)
        found.append({"program": program.name, "peak": most})
        if program.squares:
            squares[program.name] = program.squares(result)
        del result
    reference = next((squares[p.name] for p in each if p.of == "reference"), None)
    for record in found:
        name = record["program"]
        if reference is not None and name in squares:
            record["disagreement"] = disagreement(squares[name], reference)
    return found


def child(asked: dict[str, Any]) -> dict[str, Any]:
    """What one process does: `asked` is plain data, and so is what it finds.

    Args:
      asked: "network", "sizes", "kinds", "seed", "threads", and "mode": "once", or "time" with
        "turns" and "turn_seconds"; "floor" asks for the floor too.

    Returns:
      "programs", and for "time" also "parameters", "routes" (how many leaves `fisher_diagonal`
      deals with in which way), "fallbacks" (leaf -> reason, where it forms every gradient),
      "left_out" (what could not be run -> reason) and "floor" if asked.
    """
    given = {key: asked[key] for key in ("seed", "threads")}
    kinds = tuple(asked["kinds"])
    network, each, left_out = programs(asked["network"], asked["sizes"], kinds=kinds, **given)
    if asked["mode"] == "once":
        sizes = asked["sizes"] | {"n": 1}
        _, small, _ = programs(asked["network"], sizes, kinds=("torch",), **given)

        def warm() -> None:
            many = jnp.ones((512, 512))
            jax.block_until_ready(many @ many)  # the threads of XLA get their stacks
            for program in small:
                program.run()

        return {"programs": once(each, warm)}
    ways = routes(*network)
    record = {
        "parameters": count(network.params),
        "routes": dict(Counter(way.how for way in ways)),
        "fallbacks": {way.leaf: way.reason for way in ways if way.how == "examples"},
        "left_out": left_out,
    }
    if asked.get("floor"):
        record["floor"] = floor(network)
    return record | {"programs": timed(each, asked["turns"], asked["turn_seconds"])}


def main() -> int:
    """Reads what is asked as JSON from standard input, and writes what was found."""
    jax.config.update("jax_enable_compilation_cache", False)  # seconds to compile are shown
    found = child(json.load(sys.stdin))
    json.dump(found, sys.stdout, allow_nan=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
