"""What a rating says: three objectives of matrix factorisation as one form.

    share of a rating     w x^2 - 2 s x + c,      x = p.q (+ biases)
    everywhere            a_0 x^2                 penalty of a row  l (n + a_0 m)^e |p|^2

| feedback     | w             | s                | c       | everywhere | default e | n of row  |
|--------------|---------------|------------------|---------|------------|-----------|-----------|
| "explicit"   | 1             | r - mean - bias  | s^2     | 0          | 0         | n         |
| "implicit"   | 1 + a r - a_0 | 1 + a r          | 1 + a r | a_0        | 0         | n + a_0 m |
| "ials"       | 1             | 1                | 1       | a_0        | 1         | n + a_0 m |

"implicit" is the weighting of Hu, Koren and Volinsky (2008): confidence 1 + a r of an observed 1,
a_0 of every other 0. "ials" is that of Rendle et al. (2021), arXiv:2110.14037, where what is
everywhere includes what is observed. n counts a row's ratings, m the rows on the other side.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.naming import did_you_mean

KINDS = ("explicit", "implicit", "ials")


class Feedback(NamedTuple):
    """An objective; static."""

    kind: str
    regularisation: float  # l
    exponent: float  # e
    alpha: float  # a
    unobserved: float  # a_0, 0 for explicit feedback
    biases: bool

    def terms(self, value: Any, weight: Any, offset: Any) -> tuple[Any, Any, Any]:
        """(w, s, c) of ratings, zeros where the weight is 0 whatever the value, NaN included."""
        xp = weight.__array_namespace__()  # NumPy's, outside a program
        known = xp.where(weight > 0, value, 0)
        if self.kind == "explicit":
            rest = known - offset
            return weight, weight * rest, weight * rest**2
        confidence = xp.ones_like(weight)
        if self.kind == "implicit":
            confidence = 1 + self.alpha * known
        curvature = confidence - (self.unobserved if self.kind == "implicit" else 0)
        return weight * curvature, weight * confidence, weight * confidence

    def penalty(self, number: Any, others: int) -> Any:
        """l (n + a_0 m)^e of rows with that many ratings."""
        return self.regularisation * (number + self.unobserved * others) ** self.exponent


def feedback_of(
    kind: str,
    regularisation: float,
    exponent: float | None,
    alpha: float,
    unobserved: float,
    biases: bool,
) -> Feedback:
    """A checked `Feedback`.

    Raises:
      ValueError: an unknown kind, a constant out of range, biases with anything but explicit
        feedback.
    """
    if kind not in KINDS:
        raise ValueError(f"als: no feedback is called {kind!r}. {did_you_mean(kind, KINDS)}")
    exponent = (1.0 if kind == "ials" else 0.0) if exponent is None else exponent
    for name, number in (
        ("regularisation", regularisation),
        ("exponent", exponent),
        ("alpha", alpha),
        ("unobserved", unobserved),
    ):
        if not (np.isfinite(number) and number >= 0):
            raise ValueError(f"als: expected {name} to be a finite number >= 0, got {number}.")
    if kind == "implicit" and unobserved > 1:
        raise ValueError(
            f"als: expected unobserved in [0, 1] for implicit feedback, got {unobserved}: an "
            "unobserved pair would count more than an observed one, and the rows be indefinite."
        )
    if biases and kind != "explicit":
        raise ValueError(f"als: biases belong to explicit feedback, not to {kind!r}.")
    everywhere = 0.0 if kind == "explicit" else float(unobserved)
    return Feedback(kind, float(regularisation), float(exponent), float(alpha), everywhere, biases)
