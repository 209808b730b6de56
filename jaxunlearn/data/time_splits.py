"""Ratings cut in time: what came last is held out.

    train = earlier entries,      test = later entries,      the same users and items

A random split lets a model learn from what somebody did afterwards, and flatters every number.
"""

import numpy as np

from jaxunlearn.data.ratings import Ratings
from jaxunlearn.naming import did_you_mean


def time_split(ratings: Ratings, *, test: float = 0.2, by: str = "user") -> tuple[Ratings, Ratings]:
    """(train, test): the latest entries are held out; shapes and names stay.

    Args:
      ratings: with times.
      test: share that is held out, in [0, 1).
      by: `"user"`: the latest floor(test n_u) of each user's n_u entries, so that nobody is judged
        on their own past. `"time"`: everything after one moment, the latest for which train keeps
        at least a share 1 - test; then nothing at all is learnt from the future, and people who
        came later have no training entries.

    Entries of equal time are ordered by row number within a user, and never separated by a moment.

    Raises:
      ValueError: no times, a share out of range, or an unknown `by`.

    Example:
      >>> from jaxunlearn.data import ratings
      >>> r = ratings([0, 0, 0, 0, 1], [0, 1, 2, 3, 0], time=[40, 30, 20, 10, 50])
      >>> train, test = time_split(r, test=0.5)
      >>> train.time.tolist(), test.time.tolist()
      ([20, 10, 50], [40, 30])
    """
    if ratings.time is None:
        raise ValueError("time_split: these ratings have no times. Pass ratings(..., time=...).")
    if isinstance(test, bool) or not 0 <= test < 1:
        raise ValueError(f"time_split: expected a share test in [0, 1), got {test!r}.")
    if by not in ("user", "time"):
        raise ValueError(f"time_split: by='{by}' is unknown. {did_you_mean(by, ('user', 'time'))}")
    if by == "time":
        kept = int(np.ceil((1 - test) * len(ratings) - 1e-9))
        moment = np.sort(ratings.time)[kept - 1] if kept else 0
        held_out = ratings.time > moment
    else:
        order = np.lexsort((ratings.time, ratings.user))  # stable: ties by row number
        count = np.bincount(ratings.user, minlength=ratings.users)
        rank = np.arange(len(ratings)) - np.repeat(np.cumsum(count) - count, count)
        held = np.floor(test * count + 1e-9).astype(int)
        held_out = np.zeros(len(ratings), bool)
        held_out[order] = rank >= np.repeat(count - held, count)
    return ratings.without(held_out), ratings.take(held_out)
