"""Which shadow model is trained on what, and unlearns what: twins that share out the targets.

Of the rows F that are to be forgotten some are targets T, the others B are not; R is retained. For
each pair k of models half of the targets is drawn, A_k:

    shadow 2k       trained on R + B + A_k           unlearns B + A_k
    shadow 2k + 1   trained on R + B + (T - A_k)     unlearns B + (T - A_k)

Of any pair exactly one model unlearned a target x, and its twin never saw it: K pairs give K models
of either kind for every x, whichever method unlearns. Forget sets are all of one size, so that the
runs of a method are one program.

Source: N. Carlini et al. (2022), arXiv:2112.03570, for random halves that serve all targets; twins
for unlearning are this project's own.

| input                        | result                                                          |
|------------------------------|-----------------------------------------------------------------|
| an odd number of targets     | one row, drawn by chance, is no target; `words` says so         |
| more pairs                   | the halves of the first ones stay as they are                   |
"""

import zlib
from typing import NamedTuple

import numpy as np

from jaxunlearn.audit.errors import TooFew
from jaxunlearn.auditing.shadow_scores import LEAST_PAIRS
from jaxunlearn.data.tasks import Task


class Design(NamedTuple):
    """Who is trained on what, and unlearns what; row numbers of the training split."""

    targets: np.ndarray  # (n,) int64, sorted, n even
    member: np.ndarray  # (2K, n) bool: model k was trained on the target and unlearns it
    trained: np.ndarray  # (2K, m) int32, each sorted
    forgotten: np.ndarray  # (2K, f) int32, each sorted; a part of `trained`


def design(task: Task, pairs: int, *, targets: int | None = None, seed: int) -> Design:
    """The targets, and which half of them each model is given.

    Args:
      task: what is to be forgotten.
      pairs: K >= 4.
      targets: how many targets at most; None: all forget rows.
      seed: >= 0; growing `pairs` keeps the halves of the first ones.

    Returns:
      `Design`.

    Raises:
      TooFew: fewer than four pairs, or than two rows to forget. ValueError: targets below 2, a
        negative seed.

    Example:
      >>> from jaxunlearn.data import digits, random_task
      >>> made = design(random_task(digits(), 5 / 1200, seed=0), 4, seed=0)
      >>> made.targets.size, made.forgotten.shape, made.member.sum(axis=0).tolist()
      (4, (8, 3), [4, 4, 4, 4])
    """
    forget, retain = task.train_parts["forget"], task.train_parts["retain"]
    if pairs < LEAST_PAIRS:
        raise TooFew(
            f"shadow_lira: expected at least {LEAST_PAIRS} pairs, got {pairs}: where a pair is "
            "left out, three others must tell a spread. 16 are a start, 64 are good."
        )
    if (targets is not None and targets < 2) or seed < 0:
        raise ValueError(
            f"shadow_lira: expected targets >= 2 (or None) and seed >= 0, got {targets} and {seed}."
        )
    if forget.size < 2:
        raise TooFew(
            f"shadow_lira: task '{task.name}' forgets {forget.size} training row(s); twins need "
            "at least 2 to share out."
        )
    n = min(targets or forget.size, forget.size) // 2 * 2
    chosen = np.sort(generator(seed, "targets").permutation(forget)[:n])
    others = np.setdiff1d(forget, chosen)
    member = np.zeros((2 * pairs, n), bool)
    for k in range(pairs):
        member[2 * k, generator(seed, "halves", k).permutation(n)[: n // 2]] = True
    member[1::2] = ~member[::2]
    forgotten = np.stack([np.union1d(others, chosen[mine]) for mine in member])
    trained = np.stack([np.union1d(retain, rows) for rows in forgotten])
    return Design(chosen, member, trained.astype(np.int32), forgotten.astype(np.int32))


def words(task: Task, made: Design) -> str:
    """The design, for people."""
    targets, forget = made.targets.size, task.train_parts["forget"].size
    pairs = len(made.member) // 2
    left = forget - targets
    stay = (
        "" if not left
        else " One row more stays in every forget set, so that halves are equal." if left == 1
        else f" The other {left} stay in every forget set."
    )  # fmt: skip
    return (
        f"{targets} of the {forget} forgotten training examples are attacked.{stay} Twins share "
        "the targets out by chance: what one was trained on and unlearned, the other never saw. "
        f"So each target has {pairs} models that unlearned it and {pairs} that never saw it, the "
        "same trained ones for every method. Each is scored by Gaussians of the other pairs."
    )


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """NumPy's generator for one purpose, which the names say."""
    numbers = [zlib.crc32(each.encode()) if isinstance(each, str) else each for each in names]
    return np.random.default_rng([seed, zlib.crc32(b"shadows"), *numbers])
