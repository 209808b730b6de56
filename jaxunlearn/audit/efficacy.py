"""MIA-efficacy: do the forgotten examples look like training data to the model's own attacker?

The attacker needs no held-out examples of the forgotten kind. On the unlearned model itself it
learns what *retained* examples (members) look like beside test examples (non-members), by one
signal (`signals`), and applies that rule to the forgotten examples:

    efficacy = share of forgotten examples that are called non-members

The published reading is "higher = more forgotten". Here it is one more number to compare with that
of *retrained* models, on either side: forgotten examples that look less like training data than any
test example betray what was done to them.

Its power is that of the rule. Where a model hardly overfits, retained and test examples look alike
and the efficacy is near 1/2 whatever was forgotten; for a forgotten class, the rule answers "is
this class well predicted", not "was it trained on".

Sources: J. Jia et al. (2023), arXiv:2304.04934, and C. Fan et al. (2023), arXiv:2310.12508, in
whose tables it is one of the four columns. Departures: 1. a logistic regression or a threshold on
one signal, where the published code fits a support vector machine with an RBF kernel; 2. the
classes are balanced; 3. signals are those of `signals`, not of the published file, whose modified
entropy overwrites columns (see there).

| input                                   | result                                        |
|-----------------------------------------|-----------------------------------------------|
| one of the three sets is empty          | TooFew                                        |
| all signals equal                       | 1/2: the rule cannot tell                     |
| a model with a NaN signal               | NaN for that model                            |
"""

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew
from .forgetting_rate import membership_threshold
from .membership import balanced_signals, logistic_side
from .roc import as_signals

RULES = ("logistic", "threshold")


def mia_efficacy(
    retained: ArrayLike,
    held_out: ArrayLike,
    forgotten: ArrayLike,
    *,
    rule: str = "logistic",
    rng: np.random.Generator,
) -> np.ndarray:
    """Share of the forgotten examples that the model's own attacker calls non-members.

        mean_{x in F} 1[ rule(signal(x)) = non-member ],   rule learnt on R (members) and T (not)

    Args:
        retained: (M, r) signals of retained training examples, or (r,).
        held_out: (M, t) signals of test examples, or (t,).
        forgotten: (M, f) signals of the forgotten examples, or (f,); all in the same models.
        rule: "logistic", the regression of `attack_accuracy`, on equally many of both kinds; or
            "threshold", the best one of `membership_threshold`, which weighs both kinds equally
            and, unlike the regression, takes only large signals for those of members.
        rng: a NumPy generator that draws the subsample of the larger kind.

    Returns:
        (M,) float64 (or a scalar array) in [0, 1]; larger = looks less like training data. NaN
        where a signal is NaN. On the boundary of the regression: one half.

    Raises:
        TooFew: no example of one of the three. ValueError: an unknown rule, shapes.

    Cost: 50 Newton steps on two unknowns, or a sort, for each model.

    Source: J. Jia et al. (2023), arXiv:2304.04934 (there with a support vector machine).

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> mia_efficacy(np.arange(9.0) + 9, np.arange(9.0), [1.0, 2.0, 3.0, 17.0], rng=rng).item()
        0.75
    """
    if rule not in RULES:
        raise ValueError(f"mia_efficacy: rule must be one of {RULES}, got {rule!r}.")
    members, others = as_signals(retained, held_out, "mia_efficacy")
    targets = np.asarray(forgotten, np.float64)
    if targets.shape[:-1] != members.shape[:-1] or targets.ndim != members.ndim:
        raise ValueError(
            "mia_efficacy: expected forgotten signals of the same models, got "
            f"{targets.shape} beside {members.shape}."
        )
    if targets.shape[-1] == 0:
        raise TooFew("mia_efficacy: there are no forgotten examples.")
    undefined = np.any([np.isnan(each).any(axis=-1) for each in (members, others, targets)], axis=0)
    members, others, targets = (
        np.where(undefined[..., None], 0.0, each) for each in (members, others, targets)
    )
    if rule == "threshold":
        share = (targets < membership_threshold(members, others)[..., None]).mean(axis=-1)
        flat = np.ptp(np.concatenate([members, others], axis=-1), axis=-1) == 0
        share = np.where(flat, 0.5, share)
    else:
        side = logistic_side(*balanced_signals(members, others, rng), targets)
        share = ((1 - side) / 2).mean(axis=-1)
    return np.where(undefined, np.nan, share)
