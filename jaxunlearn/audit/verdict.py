"""The verdict on a method, rule v1: did it forget, by an exact test and in words?

On each part S (forget, retain and its halves adjacent and remote where there are such, test, and
test data of the forgotten kind) every model is a point (`distances`). A method's models and the
oracles (true retrainings) are compared by the largest standardised energy over the parts, in an
exact permutation test (`energy`). In this order:

    nothing to forget                    no forget example
    not informative                      there is nothing to measure with (reasons below): no score
    collapsed                            a model is non-finite, or mean test accuracy is below
                                         half-way from chance to the oracles
    indistinguishable from retraining    p > 0.05; said with the contamination that would show
    within recipe noise                  p <= 0.05, but no part is beyond its recipe floor
    under-forgotten                      on forget data, displaced towards the original
    over-forgotten                       on forget data, displaced away from the original
    elsewhere                            neither: the interval of the displacement holds 0, or
                                         forget data is within its recipe floor and others are not

and, said separately when the test rejects, *damages* each of retain, adjacent, remote and test
whose energy is beyond its recipe floor (`floors`). Gap closed and collateral are in `scores`, what
counts as chance and collapse in `premises`, under and over in `displacement`.

Not informative: too few models for the test to reject at all; the reference models not finite; the
base at chance; forget data never learnt, either because the originals' forget accuracy is at chance
or because the originals cannot be told from the oracles on any part; or a reason the caller gives
(oracle missing, from another split).

A single model is judged by its rank among the oracles (`rank_of_one`).

Departures from the bare rule: "elsewhere" needs a criterion, and takes the two above: a
displacement within its sampling error, or within what another recipe does, has no sign.

Test data of the forgotten kind (a class that is to go, say) is a part of its own: what happens
there is forgetting, not damage, so it counts in the test and in recipe noise but never as
collateral.

Source: this project.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .contamination import Contamination, detectable_contamination
from .displacement import Displacement, displacement
from .energy import permutation_test, rank_of_one
from .floors import Floor, recipe_floor
from .groups import KEPT, NAMES, Groups, Models, as_models, broken_models, present_parts
from .intervals import Interval
from .premises import as_accuracies, at_chance, broken_reference, sunk, too_few
from .scores import scores

RULE_VERSION = "1"


class Verdict(enum.Enum):
    """The words of the verdict; `Verdict(words)` finds one by its words.

    Example:
        >>> Verdict("elsewhere").name
        'ELSEWHERE'
    """

    INDISTINGUISHABLE = "indistinguishable from retraining"
    RECIPE_NOISE = "within recipe noise"
    UNDER_FORGOTTEN = "under-forgotten"
    OVER_FORGOTTEN = "over-forgotten"
    ELSEWHERE = "elsewhere"
    COLLAPSED = "collapsed"
    NOT_INFORMATIVE = "not informative"
    NOTHING_TO_FORGET = "nothing to forget"


class Judgement(NamedTuple):
    """A verdict and the numbers behind it. None = undefined or not computed, never 0."""

    verdict: Verdict
    words: str  # one sentence
    p_value: float | None = None  # of the permutation (or rank) test, in (0, 1]
    largest: str | None = None  # the part on which the method stands out most
    energies: Mapping[str, float] | None = None  # energy(method, oracles) per part
    floors: Mapping[str, Floor] | None = None  # recipe floor per part
    gap_closed: Interval | None = None  # 1 = as near as retraining, 0 = as far as the original
    collateral: Interval | None = None  # recipe floors; None without kept parts
    displacement: Displacement | None = None  # on the forget part
    damages: tuple[str, ...] = ()  # kept parts beyond their recipe floor
    contamination: Contamination | None = None  # what would have shown; only when not rejected
    rule: str = RULE_VERSION


def judge(
    matrices: Mapping[str, ArrayLike | None],
    groups: Groups,
    *,
    accuracies: Mapping[str, ArrayLike | None] | None = None,
    chance: float | None = None,
    finite: Sequence[bool] | np.ndarray | None = None,
    paired: bool = False,
    floors: Mapping[str, Floor] | None = None,
    unavailable: str | None = None,
    level: float = 0.05,
    permutations: int = 999,
    resamples: int = 1000,
    seed: int,
) -> Judgement:
    """Judge the models of a method against retraining by rule v1 (see the module).

    Args:
        matrices: {part: (M, M) distances between all models}, parts among `groups.PARTS`.
            A part that is None (without examples) counts as absent.
        groups: `Groups` of model numbers into those matrices.
        accuracies: {part: (M,) accuracy of every model, numbered like the matrices}; "test" and
            "forget" are used where present. None for regression.
        chance: accuracy of guessing in [0, 1); needed with accuracies.
        finite: for each of the method's models, whether its outputs are finite. None: judged from
            NaN in the matrices.
        paired: method[i] was made from original[i] (see `displacement`).
        floors: result of `recipe_floor` for these matrices; None computes it. Does not depend on
            the method, so compute it once for many methods.
        unavailable: why there is no valid reference; a text makes the verdict "not informative".
        level: level of the tests.
        permutations: relabellings of a test.
        resamples: bootstrap resamples of the intervals.
        seed: seed of everything random here; equal seeds give equal judgements.

    Returns:
        `Judgement`.

    Raises:
        ValueError: unknown parts, groups that overlap, accuracies without chance, wrong sizes,
            floors that lack a part.

    Cost: a few permutation tests and `resamples` reweighted energies, all products of small
    matrices; well under a second for a hundred models.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(1)
        >>> x = np.concatenate([rng.normal(5, 1, 12), rng.normal(0, 1, 48)])
        >>> groups = Groups(range(12), range(12, 36), range(36, 48), [range(48, 60)])
        >>> judge({"forget": abs(x[:, None] - x)}, groups, seed=0).verdict.value
        'indistinguishable from retraining'
    """
    present = present_parts(matrices, "judge")
    if "forget" not in present:
        return _plain(Verdict.NOTHING_TO_FORGET, "there is no forget example")
    size = len(present["forget"])
    models = as_models(groups, size, "judge")
    accuracy = as_accuracies(accuracies, chance, size, "judge")
    broken = broken_models(present, models.method)
    if finite is not None:
        if np.shape(finite) != broken.shape:
            raise ValueError(
                f"judge: finite has shape {np.shape(finite)}, expected one value for each of the "
                f"{broken.size} models of the method."
            )
        broken |= ~np.asarray(finite, dtype=bool)
    reason = (
        unavailable
        or too_few(models, level)
        or broken_reference(present, models)
        or at_chance(accuracy, models, chance)
        or _nothing_learnt(present, models, level, permutations, seed)
    )
    if reason:
        return _plain(Verdict.NOT_INFORMATIVE, reason)
    if broken.any():
        words = f"{broken.sum()} of {broken.size} models gave non-finite outputs"
        return _plain(Verdict.COLLAPSED, words)

    p_value, largest = _test(present, models.method, models.oracle, permutations, seed)
    if floors is None:
        floors = recipe_floor(
            present, models.oracle, models.recipes, permutations=permutations, seed=[seed, 1]
        )
    missing = [part for part in present if part not in floors]
    if missing:
        raise ValueError(f"judge: floors has no {missing}; compute it from these matrices.")
    numbers = scores(present, models, floors, paired=paired, resamples=resamples, seed=[seed, 2])
    moved = displacement(
        present["forget"],
        models.method,
        models.oracle,
        models.original,
        paired=paired,
        resamples=resamples,
        seed=[seed, 3],
    )
    beyond = [part for part in present if numbers.energies[part] > floors[part].value]
    rejected = p_value <= level
    judgement = Judgement(
        Verdict.ELSEWHERE,
        "",
        p_value,
        largest,
        numbers.energies,
        {part: floors[part] for part in present},
        numbers.gap_closed,
        numbers.collateral,
        moved,
        damages=tuple(part for part in beyond if part in KEPT) if rejected else (),
    )
    collapse = sunk(accuracy, models, chance)
    if collapse:
        return _say(judgement, Verdict.COLLAPSED, collapse)
    if not rejected:
        return _passed(judgement, present, models, level, seed)
    if not beyond:
        words = (
            f"not retraining (p = {p_value:.2g}), but no farther from it on any part than "
            "another training recipe"
        )
        return _say(judgement, Verdict.RECIPE_NOISE, words)
    return _direction(judgement, in_forget="forget" in beyond)


def _direction(judgement: Judgement, *, in_forget: bool) -> Judgement:
    """Under, over or elsewhere, by the sign of the displacement on the forget part."""
    p = f"(p = {judgement.p_value:.2g})"
    along = judgement.displacement.along if judgement.displacement else None
    if in_forget and along is not None and along.low > 0:
        words = f"still {along.value:.2g} of the way back to the original on forget data {p}"
        return _say(judgement, Verdict.UNDER_FORGOTTEN, words)
    if in_forget and along is not None and along.high < 0:
        words = f"{-along.value:.2g} of the way past retraining on forget data {p}"
        return _say(judgement, Verdict.OVER_FORGOTTEN, words)
    if in_forget:
        where = "on forget data neither towards the original nor away from it"
    else:
        where = "forget data is within recipe noise"
    words = f"not retraining {p}, most visibly on {NAMES[judgement.largest or 'forget']}; {where}"
    return _say(judgement, Verdict.ELSEWHERE, words)


def _passed(
    judgement: Judgement,
    present: Mapping[str, np.ndarray],
    models: Models,
    level: float,
    seed: int,
) -> Judgement:
    """Indistinguishable, with what these models could have shown."""
    words, size = f"p = {judgement.p_value:.2g}", models.method.size
    if size == 1:
        words += f", one model alone beside {models.oracle.size} oracles"
        return _say(judgement, Verdict.INDISTINGUISHABLE, words)
    found = detectable_contamination(
        present, models.method, models.oracle, models.original, level=level, seed=[seed, 4]
    )
    if found is None:
        words += f", but even originals hidden among the {size} models would not have shown"
    else:
        hidden = "original" if found.count == 1 else "originals"
        words += f"; {found.count} untouched {hidden} among the {size} models would have shown"
    judgement = judgement._replace(contamination=found)
    return _say(judgement, Verdict.INDISTINGUISHABLE, words)


def _nothing_learnt(
    present: Mapping[str, np.ndarray], models: Models, level: float, permutations: int, seed: int
) -> str | None:
    """Whether the originals cannot be told from the oracles, in words."""
    p_value, _ = _test(present, models.original, models.oracle, permutations, seed)
    if p_value <= level:
        return None
    return (
        f"the original cannot be told from retraining on any part (p = {p_value:.2g}), "
        "so there is nothing that forgetting could change"
    )


def _test(
    present: Mapping[str, np.ndarray],
    group: np.ndarray,
    oracle: np.ndarray,
    permutations: int,
    seed: int,
) -> tuple[float, str]:
    """p-value and the part that stands out, for many models or for one."""
    if group.size == 1:
        ranked = rank_of_one(present, int(group[0]), oracle)
        return ranked.p_value, ranked.largest
    test = permutation_test(present, group, oracle, permutations=permutations, seed=[seed, 0])
    return test.p_value, test.largest


def _say(judgement: Judgement, verdict: Verdict, words: str) -> Judgement:
    """Set the verdict and its sentence, damages appended."""
    sentence = f"{verdict.value}: {words}"
    if judgement.damages and judgement.energies and judgement.floors:
        listed = ", ".join(
            f"{NAMES[part]} "
            f"({judgement.energies[part] / judgement.floors[part].value:.1f} recipe floors)"
            for part in judgement.damages
        )
        sentence += f"; damages {listed}"
    return judgement._replace(verdict=verdict, words=sentence)


def _plain(verdict: Verdict, words: str) -> Judgement:
    return Judgement(verdict, f"{verdict.value}: {words}")
