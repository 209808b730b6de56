"""Four-bit data types that are not evenly spaced: at most sixteen numbers in [-1, 1].

A group of weights is stored as its largest magnitude m and, for every weight, the index of the
level nearest to w / m:

    Q(w) = m L[c(w)],     c(w) = argmin_c |w / m - L[c]|

    nf4   quantiles of the normal distribution: with Phi^-1 at 8 evenly spaced probabilities from
          1/2 to p for the positive half (7 for the negative one), divided by the largest
    fp4   +- 2^e (1 + f/2), one bit f of mantissa, divided by the largest; 0; and one tiny level

p is 1 minus the average of 1/30 and 1/32, the half steps of 15 and of 16 levels. Both tables hold
0, so that sparse weights stay sparse, and both +1 and -1, so that the largest weight of a group is
its own level.

Sources: nf4, T. Dettmers et al. (2023), arXiv:2305.14314, Sec. 3 and Appendix E. fp4 as in
bitsandbytes, the library with which arXiv:2410.16454 was evaluated (fp4 is its default type). It
differs from the E2M1 of the OCP Microscaling specification in its smallest level: 1/192 of the
largest, where E2M1 has 1/12.
"""

import numpy as np
from scipy.special import ndtri


def nf4_levels() -> np.ndarray:
    """(16,) float64, increasing, from -1 to 1.

    Example:
        >>> nf4_levels().round(3).tolist()[-4:]
        [0.441, 0.563, 0.723, 1.0]
    """
    p = 1 - (1 / 30 + 1 / 32) / 2
    above = ndtri(np.linspace(0.5, p, 9)[1:])
    below = -ndtri(np.linspace(0.5, p, 8)[1:])
    return np.sort(np.concatenate([below, [0.0], above])) / ndtri(p)


def fp4_levels() -> np.ndarray:
    """(15,) float64, increasing, from -1 to 1: the two codes of zero are one level.

    Example:
        >>> (12 * fp4_levels())[-7:].tolist()
        [0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]
    """
    magnitudes = [2.0**e * (1 + f / 2) for e in (1, 2, 3) for f in (0, 1)]
    positive = np.array([0.0625, *magnitudes]) / 12
    return np.concatenate([-positive[::-1], [0.0], positive])


CODEBOOKS = {"nf4": nf4_levels(), "fp4": fp4_levels()}
