"""The section of BENCHMARKS.md on the price of a Fisher diagonal, from `curvature.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.curvature import (
    EXTRA_MEMORY,
    FISHER,
    KIND,
    RATIO,
    SCHEMA,
    extra_memory,
    needs,
    program,
    speed_up,
)
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record
from jaxunlearn.reporting.tables import NOT_APPLICABLE, number

RIVALS = {
    "reference": "own vmap",
    "plain jax": "jax.vmap(jax.grad)",
    "torch.func": "torch.func",
    "BackPACK": "BackPACK",
}


def read(path: Path) -> Record:
    """The record in a file; ValueError if it is something else."""
    return read_record(path, KIND, SCHEMA, "experiments.benchmarks.curvature")


def curvature_price(record: Record) -> str:
    """The section: what it costs, against what was asked for, against rivals, and how it grows."""
    blocks = [
        "## The price of a Fisher diagonal",
        f"```sh\n{record['command']}\n```",
        paragraph(
            "`fisher_diagonal(loss_fn, params, data)`, the exact mean of squared per-example "
            "gradients, as a multiple of ONE gradient of the same summed loss on the same batch, "
            f"both compiled. Ratios are medians over {record['turns']} turns in which the programs "
            f"of a network follow each other in one process; PyTorch has {record['threads']} "
            f"threads. Seed {record['seed']}. {origin(record)}"
        ),
        _price(record),
        *_judgement(record),
        _floors(record),
    ]
    for network in record["networks"]:
        blocks += _network(network)
    return "\n\n".join(blocks + _growth(record["growth"]))


def _price(record: Record) -> str:
    heads = ["network", "parameters", "n", "/ gradient", "asked", "memory", "asked"]
    body = []
    for network in record["networks"]:
        r = program(network, FISHER)["ratio"]
        gains = [speed_up(network, of) for of in RIVALS]
        body.append([
            f"`{network['network']}`",
            number(network["parameters"]),
            str(network["sizes"]["n"]),
            f"{number(r['value'])} [{number(r['low'])}, {number(r['high'])}]",
            f"{RATIO[network['network']]:g}",
            _or_dash(extra_memory(network)),
            f"{EXTRA_MEMORY:g}",
            *(_or_dash(gain) for gain in gains),
        ])  # fmt: skip
    note = paragraph(
        "*/ gradient*: median and range over turns. *Memory*: what XLA says the diagonal takes "
        "beyond what the gradient takes, as a multiple of the parameters' own. The other columns: "
        "seconds of the fastest program of that kind over seconds of `fisher_diagonal`."
    )
    return f"{grid([*heads, *RIVALS.values()], body)}\n\n{note}"


def _judgement(record: Record) -> list[str]:
    """Which of the goals were met, by name: the sentences follow from the record."""
    slow, large, behind, missing = [], [], [], []
    for network in record["networks"]:
        name = f"`{network['network']}`"
        if program(network, FISHER)["ratio"]["value"] > RATIO[network["network"]]:
            slow.append(name)
        more = extra_memory(network)
        if more is None or more > EXTRA_MEMORY:
            large.append(name)
        for of, words in RIVALS.items():
            gain = speed_up(network, of)
            if gain is not None and gain <= 1:
                behind.append(f"{words} on {name}")
        missing += [f"{words} on {name} ({why})" for words, why in network["left_out"].items()]
    furthest = max(
        (p["disagreement"], p["program"], network["network"])
        for network in record["networks"]
        for p in network["programs"]
        if "disagreement" in p
    )
    items = [
        f"Slower than asked: {_listed(slow)}.",
        f"More memory than asked: {_listed(large)}.",
        f"Not faster than: {_listed(behind)}.",
        f"Could not be run: {_listed(missing)}.",
        f"All squares agree with the library's `vmap` road; the furthest, `{furthest[1]}` on "
        f"`{furthest[2]}`, differs by {furthest[0]:.1e} of the largest number of a leaf."
        if furthest[0] < 1e-3
        else f"**The squares DISAGREE**: `{furthest[1]}` on `{furthest[2]}` by {furthest[0]:.1e} "
        "of the largest number of a leaf. Either the times are not of one job, or two ways to sum "
        "a convolution put a relu on either side of 0 in float32: compare them in float64.",
    ]
    return ["\n".join(paragraph(f"* {item}", "  ") for item in items)]


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"


def _floors(record: Record) -> str:
    heads = [
        "network", "gradient, GFLOP", "squares, GFLOP", "GFLOP/s", "GB/s",
        "gradient floor, ms", "gradient / floor", "diagonal floor, ms", "diagonal / floor",
    ]  # fmt: skip
    body = []
    for network in record["networks"]:
        floor = network["floor"]
        unit, mine = (program(network, name)["seconds"] for name in ("gradient", FISHER))
        body.append([
            f"`{network['network']}`",
            number(floor["flops"] / 1e9),
            number(floor["square_flops"] / 1e9),
            number(floor["rate"] / 1e9),
            number(floor["bandwidth"] / 1e9),
            number(1e3 * floor["gradient"]),
            number(unit / floor["gradient"]),
            number(1e3 * floor["fisher"]),
            number(mine / floor["fisher"]),
        ])  # fmt: skip
    note = paragraph(
        "The floor is counted: the matrix products of the gradient, and 2 FLOPs for every example "
        "and parameter for the squares, at the best rate of a product measured in the same "
        "process, or the bytes that must move at the rate of a long addition, whichever takes "
        "longer."
    )
    return f"{grid(heads, body)}\n\n{note}"


def _network(network: Record) -> list[str]:
    sizes = ", ".join(f"{key} {value}" for key, value in network["sizes"].items())
    heads = [
        "program", "compile, s", "run, ms", "/ own gradient", "/ fastest gradient", "peak, MB",
        "XLA, MB", "differs by",
    ]  # fmt: skip
    body = []
    for p in network["programs"]:
        xla, peak = needs(p), p.get("peak")
        body.append([
            p["program"],
            _or_dash(p.get("compile")),
            number(1e3 * p["seconds"]),
            number(p["ratio"]["value"]),
            number(p["of_fastest"]["value"]),
            _or_dash(None if peak is None else peak / 1e6),
            _or_dash(None if xla is None else xla / 1e6),
            f"{p['disagreement']:.0e}" if "disagreement" in p else NOT_APPLICABLE,
        ])  # fmt: skip
    words = (
        f"{sizes}; {network['parameters']} parameters. Leaves by route: {_routes(network)}. *Own "
        "gradient*: of the same framework and convolution; *fastest gradient*: the fastest in JAX. "
        "*Peak*: most resident memory during a first call less what there was before, in another "
        "process. *XLA*: temporary and output bytes by its own count."
    )
    return [f"### `{network['network']}`", paragraph(words), grid(heads, body)]


def _routes(network: Record) -> str:
    """How many leaves go which way, and why those that are squared example by example do."""
    ways = ", ".join(f"{count} {how}" for how, count in network["routes"].items())
    reasons = [f"`{leaf}`: {reason}" for leaf, reason in network["fallbacks"].items()]
    return "; ".join([ways, *reasons])


def _growth(growth: Mapping[str, Any]) -> list[str]:
    blocks = []
    for along, points in growth.items():
        if not points:
            continue
        heads = [along, "gradient, ms", "diagonal, ms", "/ gradient", "memory", *RIVALS.values()]
        body = []
        for point in points:
            unit, mine = program(point, "gradient"), program(point, FISHER)
            body.append([
                str(point["sizes"]["n"]) if along == "n" else number(point["parameters"]),
                number(1e3 * unit["seconds"]),
                number(1e3 * mine["seconds"]),
                number(mine["ratio"]["value"]),
                _or_dash(extra_memory(point)),
                *(_or_dash(speed_up(point, of)) for of in RIVALS),
            ])  # fmt: skip
        kept = "width" if along == "n" else "n"
        fixed = f"{kept} {points[0]['sizes'][kept]}"
        blocks += [f"### Growth with {along}: `mlp`, {fixed}", grid(heads, body)]
    if blocks:
        blocks.append("Columns as in the first table of this section.")
    return blocks


def _or_dash(value: float | None) -> str:
    return NOT_APPLICABLE if value is None else number(value)
