"""How far a row is from the oracles, in the numbers of the field: one row against all oracles.

What needs two ensembles (KLoM, forgetting quality, likelihood ratios between the two worlds, bounds
on epsilon) is computed here from what was measured of both; what one model has by itself is in
`bench`. `floors_of` gives the same numbers for one half of the oracles against the other: what is
no larger than that is not a difference.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxunlearn import audit
from jaxunlearn.auditing.bench import Bench, Measured

_CONFIDENCE = 0.95


def against_oracles(
    bench: Bench,
    own: Measured,
    oracle: Measured,
    original: Measured | None,
    *,
    resamples: int,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Numbers of one ensemble against the oracles.

    Args:
      bench: what both were measured by.
      own, oracle: of M and N models. With fewer than three of either there is no likelihood ratio,
        with fewer than six oracles no floor of it: absent.
      original: for what is relative to the original; None leaves that out.
      resamples, seed: of the intervals.

    Returns:
      {measure: {"value", "low", "high"} or None}, and the per-example privacy:
      {"forget" | "retain": {"score": (n,), "floor": (n,)}} or None where it is undefined.
    """
    rng = np.random.default_rng([seed, 5])
    found: dict[str, Any] = {}
    mine, theirs = (
        {part: audit.margins(g.logits[part], bench.labels[part]) for part in ("forget", "retain")}
        for g in (own, oracle)
    )
    finite = all(np.isfinite(m).all() for m in (*mine.values(), *theirs.values()))
    if not finite:
        return {}, None
    f_own, f_oracle = mine["forget"], theirs["forget"]
    found["klom"] = _mean(audit.klom(f_oracle, f_own), rng, resamples)
    margins = audit.margin_distance(f_oracle, f_own)
    if margins is not None:
        found["wasserstein"] = _mean(margins.wasserstein, rng, resamples)
        found["margin_energy"] = _mean(margins.energy, rng, resamples)
    tests = audit.ks_tests(f_oracle, f_own, permutations=199, seed=[seed, 6])
    if tests is not None:
        found["ks_rejected"] = _alone(tests.rejected)
    quality = audit.forgetting_quality(f_oracle, f_own)
    if quality is not None:
        found["forgetting_quality"] = _mean(quality.points, rng, resamples)
    examples: dict[str, Any] | None = {}
    for part in ("forget", "retain"):
        rows = _thinned(bench, part, mine[part].shape[1])
        try:
            attack = audit.world_lira(mine[part][:, rows], theirs[part][:, rows], rng=rng)
        except audit.TooFew:
            examples = None
            break
        try:
            floor = audit.world_lira_floor(theirs[part][:, rows], rng=rng).examples
        except audit.TooFew:
            floor = None
        examples[part] = {"score": attack.examples, "floor": floor}
        if part == "retain":
            found["lira_retain"] = attack.accuracy._asdict()
            continue
        found["lira_accuracy"] = attack.accuracy._asdict()
        found["lira_worst"] = _alone(float(np.nanmax(attack.examples)))
        members, others = attack.totals[: len(f_own)], attack.totals[len(f_own) :]
        bound = audit.epsilon_bound(
            members, others, delta=1 / max(2, f_own.shape[1]), confidence=_CONFIDENCE
        )
        found["epsilon"] = _alone(float(bound.epsilon)) | {"high": bound.largest}
    found |= _references(bench, own, oracle, rng, resamples)
    if original is not None and "relearning" in own.curves:
        found |= _relearned(bench, own, oracle, original, resamples, seed)
    return {
        k: v and {n: v[n] for n in ("value", "low", "high")} for k, v in found.items()
    }, examples


def floors_of(
    bench: Bench, oracle: Measured, resamples: int, seed: int, original: Measured | None = None
) -> dict[str, Any]:
    """The same numbers of one half of the oracles against the other half."""
    first, second = (_half(oracle, side) for side in (0, 1))
    return against_oracles(bench, first, second, original, resamples=resamples, seed=seed)[0]


def _half(group: Measured, side: int) -> Measured:
    def part(values: np.ndarray) -> np.ndarray:
        return audit.halves(values)[side]

    return Measured(*({k: part(v) for k, v in field.items()} for field in group))


def _thinned(bench: Bench, part: str, count: int) -> np.ndarray:
    rng = np.random.default_rng([bench.settings.seed, 7, len(part)])
    return np.sort(rng.permutation(count)[: bench.rows])


def _mean(
    values: np.ndarray | None, rng: np.random.Generator, resamples: int
) -> dict[str, Any] | None:
    """Mean with its interval: over models, or over examples where one model has no such number."""
    found = None if values is None else audit.mean_interval(values, rng=rng, resamples=resamples)
    return None if found is None else found._asdict()


def _alone(value: float) -> dict[str, Any]:
    """A number of the whole group, without an interval."""
    return {"value": value, "low": None, "high": None}


def _references(
    bench: Bench, own: Measured, oracle: Measured, rng: np.random.Generator, resamples: int
) -> Mapping[str, Any]:
    """RMIA with the oracles as reference models, and similarity of features to theirs."""
    found: dict[str, Any] = {}
    others = bench.outsiders()
    if others is not None:
        log_p = {
            (g, part): audit.attack_signal(m.logits[part], bench.labels[part], score="loss")
            for g, m in (("own", own), ("oracle", oracle))
            for part in ("forget", others)
        }
        scores = [
            audit.rmia(
                log_p["own", part], log_p["own", others],
                log_p["oracle", part], log_p["oracle", others],
            )
            for part in ("forget", others)
        ]  # fmt: skip
        found["rmia_auc"] = _mean(audit.auc(*scores), rng, resamples)
    for part in ("forget", "test"):
        if part in own.features and own.features[part].shape[1] >= 4:
            stack = np.concatenate([own.features[part], oracle.features[part]])
            similar = audit.mean_cka(
                audit.cka_matrix(stack), range(len(own.features[part]), len(stack))
            )
            mine = similar[: len(own.features[part])]
            found[f"cka_{part}"] = _mean(mine, rng, resamples)
    return found


def _relearned(
    bench: Bench, own: Measured, oracle: Measured, original: Measured, resamples: int, seed: int
) -> dict[str, Any]:
    """Steps to relearn, and those steps in units of the oracles'."""
    steps = bench.axes["relearning"]
    start = original.curves["relearning"][:, 0]
    if not np.isfinite(start).any():
        return {}
    times, reference = (
        audit.relearn_time(g.curves["relearning"], start, steps, quantity="knowledge")
        for g in (own, oracle)
    )
    capped = np.where(np.isfinite(times), times, float(steps[-1]))
    rng = np.random.default_rng([seed, 8])
    found: dict[str, Any] = {"relearn_steps": _mean(capped, rng, resamples)}
    index = audit.anamnesis_index(
        times, reference, cap=float(steps[-1]), resamples=resamples, seed=[seed, 9]
    )
    found["anamnesis"] = None if index.ratio is None else index.ratio._asdict()
    return found
