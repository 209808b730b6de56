"""How many times faster, and whether it was the same job: from the timed programs, as plain data.

A program is {"program", "of", "seconds", "accuracy", "standard_error", "compile" if ours};
`of` is "ours", "plain torch" (as everybody writes it) or "tuned torch" (with fused Adam).
"""

import math
from collections.abc import Sequence
from typing import Any


def ratios(programs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{program of ours: {"plain torch": {against, run, with_compile}, "tuned torch": ...}}.

    Against the fastest of each kind; empty without PyTorch.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in ("plain torch", "tuned torch"):
        rivals = [p for p in programs if p["of"] == kind]
        if not rivals:
            continue
        best = min(rivals, key=lambda p: p["seconds"])
        for p in programs:
            if p["of"] == "ours":
                found.setdefault(p["program"], {})[kind] = {
                    "against": best["program"],
                    "run": best["seconds"] / p["seconds"],
                    "with_compile": best["seconds"] / (p["compile"] + p["seconds"]),
                }
    return found


def same_job(programs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How far ours and PyTorch's held-out accuracies differ; None without PyTorch."""
    first = programs[0]
    rivals = [p for p in programs if p["of"] == "plain torch"]
    if not rivals:
        return None
    difference = first["accuracy"] - rivals[0]["accuracy"]
    error = math.hypot(first["standard_error"], rivals[0]["standard_error"])
    return {
        "difference": difference,
        "standard_error": error,
        "same": abs(difference) <= 3 * error,
    }
