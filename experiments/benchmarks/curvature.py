"""What a Fisher diagonal costs: time and memory as a multiple of one gradient, and the rivals'.

    python -m experiments.benchmarks.curvature                      half an hour on two cores
    python -m experiments.benchmarks.curvature --quick --network mlp      one ratio, nothing written

    ratio    = seconds of the diagonal / seconds of ONE gradient of the same loss on the same batch
    extra    = (temporary + output bytes of the diagonal) - (those of the gradient)     as XLA says
    speed-up = seconds of a rival / seconds of ours                              in the same process

| fairness            | how                                                                        |
|---------------------|----------------------------------------------------------------------------|
| same job            | the twins in PyTorch have our weights; all squares are compared in the run |
| equal conditions    | programs take turns in one process for each network, on the same threads   |
| rival at its best   | vmap(grad) at once and by rows; rules for what BackPACK lacks              |
| nothing prepared    | no compiled program is read from a cache; compile time is shown apart      |
| honest unit         | the gradient of the same framework and convolution; the fastest too        |
| honest memory       | peaks in a process of their own (`curvature_measure`), beside XLA's count  |

PyTorch and BackPACK are optional (`pip install torch backpack-for-pytorch`); what could not be run
is in the record with its reason. `curvature_networks` has the networks, `curvature_programs` what
is timed, `curvature_measure` how, `curvature_floor` the least work it could be.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import machine
from experiments.benchmarks import curvature_networks as networks
from experiments.benchmarks.curvature_measure import MALLOC
from jaxunlearn import compare

SCHEMA = 1
KIND = "jaxunlearn curvature benchmark"
FISHER = "fisher_diagonal"  # the program of the headline
ALL = ("gradient", "ours", "reference", "plain jax", "lax.conv", "torch")
GROWTH = ("gradient", "ours", "reference", "torch")
ROOT = Path(__file__).resolve().parents[2]
# Asked for: the ratio to one gradient at most, and memory beyond the gradient's in parameters.
RATIO = {
    "mlp": 1.3,
    "small_resnet": 2.0,
    "resnet18": 2.0,
    "vit": 1.5,
    "decoder": 1.5,
    "decoder_tied": 1.5,
}
EXTRA_MEMORY = 3.0
GROWTH_WIDTH_ROWS = 64  # n while the width grows


def run_child(asked: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict:
    """What `curvature_measure` finds in a fresh process.

    Raises:
      RuntimeError: the process failed; its last lines of output are in the message.
    """
    command = [sys.executable, "-m", "experiments.benchmarks.curvature_measure"]
    done = subprocess.run(
        command,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | dict(environment or {}),
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"measuring {asked['network']!r} ({asked['mode']}) ended with status "
            f"{done.returncode}; a negative one is a signal, -9 usually means too little memory. "
            f"Choose smaller --size or leave it out with --network.\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one network, as plain data."""
    size = _own(options, name)
    asked = {"network": name, "sizes": size, "kinds": ALL, **_common(options)}
    found = run_child(asked | {"mode": "time", "floor": True})
    peaks = run_child(asked | {"mode": "once"}, MALLOC)
    for program, more in zip(found["programs"], peaks["programs"], strict=True):
        if program["program"] != more["program"]:
            raise RuntimeError(f"{program['program']!r} met {more['program']!r}: not one run.")
        program |= more
    return {"network": name, "sizes": size, **found}


def growth(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The MLP with more rows, and with more parameters."""
    width = _own(options, "mlp")["width"]
    points = {
        "n": [{"n": n, "width": width} for n in options.growth_n],
        "parameters": [{"n": GROWTH_WIDTH_ROWS, "width": w} for w in options.growth_width],
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for along, each in points.items():
        found[along] = []
        for sizes in each:
            print(f"growth with {along}: {sizes}", file=sys.stderr, flush=True)
            asked = {"network": "mlp", "sizes": sizes, "kinds": GROWTH, **_common(options)}
            made = run_child(asked | {"mode": "time", "turns": min(3, options.turns)})
            found[along].append({"sizes": sizes, **made})
    return found


def _own(options: argparse.Namespace, name: str) -> dict[str, int]:
    """The sizes of a network, those of `--size` that it has among them."""
    changed = {k: v for k, v in options.size.items() if k in networks.SIZES[name]}
    return networks.all_sizes(name, changed)


def _common(options: argparse.Namespace) -> dict[str, Any]:
    names = ("turns", "turn_seconds", "seed", "threads")
    return {name: getattr(options, name) for name in names}


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement as plain data."""
    begin = time.perf_counter()
    found = []
    for name in options.network:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        found.append(measure(name, options))
        print(table(found[-1]), flush=True)
    grown = growth(options)
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "command": _command(options),
        "date": machine.today(),
        "machine": machine.description(),
        "versions": _versions(),
        **_common(options),
        "networks": found,
        "growth": grown,
        "seconds": time.perf_counter() - begin,
    }


def _versions() -> dict[str, str]:
    versions = compare.versions()
    for name in ("torch", "backpack-for-pytorch"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _command(options: argparse.Namespace) -> str:
    words = [f"--{name.replace('_', '-')} {value}" for name, value in _common(options).items()]
    words.append("--network " + " ".join(options.network))
    if options.size:
        words.append("--size " + " ".join(f"{k}={v}" for k, v in options.size.items()))
    for name in ("growth_n", "growth_width"):
        option = f"--{name.replace('_', '-')}"
        words.append(" ".join([option, *map(str, getattr(options, name))]))
    return " ".join(["python -m experiments.benchmarks.curvature", *words])


def program(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The program of a network's record by its name."""
    return next(p for p in record["programs"] if p["program"] == name)


def fastest(record: Mapping[str, Any], of: str) -> Mapping[str, Any] | None:
    """The fastest program of a kind; None if there is none."""
    kind = [p for p in record["programs"] if p["of"] == of]
    return min(kind, key=lambda p: p["seconds"], default=None)


def speed_up(record: Mapping[str, Any], of: str) -> float | None:
    """seconds of the fastest program of a kind / seconds of our diagonal, within turns; or None."""
    rival = fastest(record, of)
    if rival is None:
        return None
    mine = program(record, FISHER)["turns"]
    return statistics.median(a / b for a, b in zip(rival["turns"], mine, strict=True))


def needs(made: Mapping[str, Any]) -> int | None:
    """Bytes beyond params and batch that XLA says a program takes; None for PyTorch."""
    return made["xla"]["temporary"] + made["xla"]["output"] if "xla" in made else None


def extra_memory(record: Mapping[str, Any], key: str = "xla") -> float | None:
    """Memory of our diagonal beyond the gradient's, in multiples of the parameters' own.

    `key`: "xla" as XLA says, or "peak" as the process showed; None where it was not measured.
    """
    mine, unit = program(record, FISHER), program(record, "gradient")
    most, base = (needs(p) if key == "xla" else p.get(key) for p in (mine, unit))
    return None if most is None or base is None else (most - base) / (4 * record["parameters"])


def table(record: Mapping[str, Any]) -> str:
    """One network as text for a terminal."""
    sizes = ", ".join(f"{key} {value}" for key, value in record["sizes"].items())
    lines = [
        f"{record['network']} ({sizes}): {record['parameters']} parameters",
        f"{'program':38}{'compile, s':>11}{'run, ms':>10}{'/ gradient':>22}{'peak, MB':>10}"
        f"{'XLA, MB':>9}{'differs':>9}",
    ]
    for p in record["programs"]:
        r, xla, peak = p["ratio"], needs(p), p.get("peak")
        span = f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        lines.append(
            f"{p['program']:38}"
            + (f"{p['compile']:11.1f}" if "compile" in p else f"{'':11}")
            + f"{1e3 * p['seconds']:10.1f}{span:>22}"
            + (f"{'':10}" if peak is None else f"{peak / 1e6:10.1f}")
            + (f"{'':9}" if xla is None else f"{xla / 1e6:9.1f}")
            + (f"{p['disagreement']:9.0e}" if "disagreement" in p else "")
        )
    ways = ", ".join(f"{count} {how}" for how, count in record["routes"].items())
    lines.append(f"leaves by route: {ways}")
    lines += [f"{leaf}: by examples: {reason}" for leaf, reason in record["fallbacks"].items()]
    lines += [f"{name}: not run: {reason}" for name, reason in record["left_out"].items()]
    return "\n".join(lines)


def _size(word: str) -> tuple[str, int]:
    name, _, value = word.partition("=")
    known = {key for size in networks.SIZES.values() for key in size}
    if name not in known or not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(
            f"expected NAME=NUMBER with a name of {', '.join(sorted(known))}, got {word!r}"
        )
    return name, int(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table of each network, writes `OUT/curvature.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.curvature", allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "experiments" / "results", help="folder")
    add("--network", nargs="+", choices=tuple(networks.SIZES), default=list(networks.SIZES))
    add("--size", nargs="+", type=_size, default=[], help="NAME=NUMBER in networks that have it")
    add("--turns", type=int, default=7, help="how often each program is timed")
    add("--turn-seconds", type=float, default=0.5, help="of calls in a turn")
    add("--seed", type=int, default=0, help="of weights and batches")
    add("--threads", type=int, default=os.cpu_count() or 1, help="of PyTorch")
    add("--growth-n", nargs="*", type=int, default=[32, 64, 128, 256, 512])
    add("--growth-width", nargs="*", type=int, default=[256, 512, 1024, 2048])
    add("--quick", action="store_true", help="gradient and ours alone; writes nothing")
    options = parser.parse_args(arguments)
    options.size = dict(options.size)
    if options.quick:
        return quick(options)
    options.out.mkdir(parents=True, exist_ok=True)
    record = benchmark(options)
    path = options.out / "curvature.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


def quick(options: argparse.Namespace) -> int:
    """Prints the ratio for each network asked for, in a minute or less; three turns."""
    for name in options.network:
        size = _own(options, name)
        asked = {"network": name, "sizes": size, "kinds": ("gradient", "ours"), "mode": "time"}
        found = run_child(asked | _common(options) | {"turns": min(3, options.turns)})
        print(table({"network": name, "sizes": size, **found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
