"""U-LiRA: per example, was it unlearned or never learnt? A likelihood ratio of two Gaussians.

For a target x, phi = log p_y / (1 - p_y) = z_y - logsumexp_{c != y} z_c (`margins`) is nearly
Gaussian over models. Two worlds: U, models that were trained with x and then unlearned it, and O,
models that never saw x. For a model with margin phi,

    log LR(phi; x) = log N(phi; mu_U(x), s_U^2) - log N(phi; mu_O(x), s_O^2)

is positive where it is called "unlearned x". The share of right calls, averaged over the two
worlds, is 1/2 if unlearning is retraining, and Phi(d / 2) for N(0, 1) against N(d, 1).

Variances. With fewer than 64 models in a world a variance of its own for each x is too noisy: then
it is pooled over the targets, s^2 = sum_x SS(x) / sum_x (K(x) - 1), with SS the squares around the
mean of that x; U and O keep one each.

Leaving out. Every cell (model k, target x) is scored by Gaussians fitted on the *other* models,
without a loop: with e = phi_k - mu and n models in k's world,

    mu' = mu - e / (n - 1),     SS' = SS - e^2 n / (n - 1)

One model of the other world is left out with it, the partner at the same place in its list. Else
the scored world would be fitted on one model fewer than the other and be called less often: under
the null the share of right calls would be below 1/2. With the pair left out, both have the same fit
and its mean is 1/2 exactly, whatever the sizes of the two worlds.

Sources: J. Hayes et al. (2024), "Inexact Unlearning Needs More Careful Evaluations to Avoid a False
Sense of Privacy", arXiv:2403.01218 (*reconstruction* from the paper's text); N. Carlini et al.
(2022), "Membership Inference Attacks From First Principles", arXiv:2112.03570. Departures: 1. the
pooled variance is the one within targets; over all margins at once it would contain the spread of
the targets' means; 2. leave-a-pair-out in place of fresh models; 3. margins are clipped at +-100
and a deviation is at least 1e-3 nats, so that saturated models have finite ratios.

| input                                         | result                                       |
|-----------------------------------------------|----------------------------------------------|
| all margins of both worlds saturated or equal | log LR 0: accuracy 1/2                       |
| a model with NaN margins                      | NaN scores; the others as if it were absent  |
| a target with too few models of a world       | NaN for that target                          |
| no target with enough                         | TooFew                                       |
| the worlds swapped                            | log LR changes its sign                      |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew

CLIP = 100.0  # nats
SMALLEST_DEVIATION = 1e-3  # nats
MANY = 64  # models of a world from which on each target has a variance of its own
POOLED = ("global", "example")


class _World(NamedTuple):
    """What is known of one world, target by target."""

    count: np.ndarray  # (n,) or (K, n) models
    mean: np.ndarray  # the same shape; 0 where there is no model
    squares: np.ndarray  # sum of squares around the mean


def lira(
    phi_in: ArrayLike, phi_out: ArrayLike, fresh: ArrayLike, *, pooled: str | None = None
) -> np.ndarray:
    """Log likelihood ratio of every fresh model and target.

        log N(phi; mu_in(x), s_in^2) - log N(phi; mu_out(x), s_out^2)

    Args:
        phi_in: (K1, n) margins of K1 >= 2 models of the world "in" (trained on x, or unlearned x).
        phi_out: (K0, n) margins of K0 >= 2 models that never saw x; the same targets.
        fresh: (m, n) margins of models that belong to neither.
        pooled: "global", one variance a world for all targets; "example", one for each target;
            None: "example" from 64 models in both worlds on.

    Returns:
        (m, n) float64 nats, positive = like "in"; NaN for a fresh model with NaN margins.

    Raises:
        TooFew: fewer than two models in a world. ValueError: shapes, NaN in a world.

    Cost: O((K1 + K0 + m) n), a few arrays of the size of the inputs.

    Source: J. Hayes et al. (2024), arXiv:2403.01218; N. Carlini et al. (2022), arXiv:2112.03570.

    Example:
        >>> lira([[1.0], [3.0]], [[-1.0], [-3.0]], [[1.0]]).round(3)     # means 2, -2; variances 2
        array([[2.]])
    """
    worlds = {"phi_in": _as_margins(phi_in, "lira", "phi_in")}
    worlds["phi_out"] = _as_margins(phi_out, "lira", "phi_out")
    new = _as_margins(fresh, "lira", "fresh")
    if len({each.shape[1] for each in (*worlds.values(), new)}) > 1:
        sizes = [each.shape[1] for each in (*worlds.values(), new)]
        raise ValueError(f"lira: expected the same targets in all three, got {sizes}.")
    for name, each in worlds.items():
        if np.isnan(each).any():
            broken = np.flatnonzero(np.isnan(each).any(axis=1)).tolist()
            raise ValueError(f"lira: {name} is NaN for models {broken}. Leave them out.")
        if len(each) < 2:
            raise TooFew(f"lira: {name} holds {len(each)} model(s), needs at least 2.")
    how = _how(pooled, min(map(len, worlds.values())), "lira")
    densities = []
    for each in worlds.values():
        world = _moments(each, np.ones(each.shape, bool))
        squares, freedom = world.squares, world.count - 1
        if how == "global":
            squares, freedom = squares.sum(), freedom.sum()
        variance = np.broadcast_to(squares / np.maximum(freedom, 1), world.mean.shape)
        densities.append(_log_density(new, world.mean[None], variance[None]))
    return densities[0] - densities[1]


def pair_left_out(
    phi: np.ndarray, member: np.ndarray, *, pooled: str | None, who: str
) -> np.ndarray:
    """Log likelihood ratio of every cell by the other models: the core of `shadows`.

    Args:
        phi: (K, n) margins. member: (K, n) bool, True = model k is of the world U of target x.
        pooled: as `lira`. who: the function that asks, for the messages.

    Returns:
        (K, n) float64 nats, positive = like U; NaN for broken models and targets with too few.

    Raises:
        TooFew: no target with three models in both worlds.
    """
    phi = _as_margins(phi, who, "phi")
    how = pooling(phi, member, pooled, who)
    whole = ~np.isnan(phi).any(axis=1)
    smaller = _smaller_world(phi, member)
    judged = smaller >= (2 if how == "global" else 3)
    if smaller.max() < 3:
        raise TooFew(
            f"{who}: expected a target with 3 models or more in both worlds, the most is "
            f"{smaller.max()}: nothing is left of a spread when one is left out. "
            "Train more models."
        )
    scores = np.full(phi.shape, np.nan)
    cells = np.ix_(whole, judged)
    scores[cells] = _left_out(phi[cells], member[cells], how)
    return scores


def pooling(phi: np.ndarray, member: np.ndarray, pooled: str | None, who: str) -> str:
    """ "global" or "example", by the size of the smaller world of a typical target."""
    return _how(pooled, int(np.median(_smaller_world(phi, member))), who)


def _smaller_world(phi: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(n,) models, of those without NaN, in the smaller world of each target."""
    whole = ~np.isnan(phi).any(axis=1)
    return np.minimum(member[whole].sum(axis=0), (~member[whole]).sum(axis=0))


def _left_out(phi: np.ndarray, member: np.ndarray, how: str) -> np.ndarray:
    """(K, n) scores; at least `least` models in both worlds of every target."""
    own = {True: _moments(phi, member), False: _moments(phi, ~member)}
    deviation = phi - np.where(member, own[True].mean, own[False].mean)
    partner = np.take_along_axis(deviation, _partners(member), axis=0)
    densities = []
    for side, world in own.items():
        e = np.where(member == side, deviation, partner)  # of the one who leaves this world
        n = world.count[None]
        mean = world.mean[None] - e / (n - 1)
        lost = e**2 * n / (n - 1)
        squares, freedom = world.squares[None] - lost, n - 2.0
        if how == "global":
            # the scored model leaves every target, its partner this one
            gone = np.where(member == side, lost, 0.0)
            elsewhere = gone.sum(axis=1, keepdims=True) - gone
            seen = (member == side).sum(axis=1, keepdims=True) - (member == side)
            squares = world.squares.sum() - elsewhere - lost
            freedom = (n - 1).sum() - seen - 1
        variance = np.maximum(squares, 0.0) / np.maximum(freedom, 1)
        densities.append(_log_density(phi, mean, variance))
    return densities[0] - densities[1]


def _partners(member: np.ndarray) -> np.ndarray:
    """(K, n) number of the model of the other world at the same place in its list, cyclically."""
    order = np.argsort(member, axis=0, kind="stable")  # the models of O, then those of U
    ones, zeros = member.sum(axis=0)[None], (~member).sum(axis=0)[None]
    place = np.where(member, member.cumsum(axis=0), (~member).cumsum(axis=0)) - 1
    return np.take_along_axis(order, np.where(member, place % zeros, zeros + place % ones), axis=0)


def _moments(phi: np.ndarray, chosen: np.ndarray) -> _World:
    """Count, mean and squares of the chosen models, for every target."""
    count = chosen.sum(axis=0)
    mean = np.where(chosen, phi, 0.0).sum(axis=0) / np.maximum(count, 1)
    return _World(count, mean, np.where(chosen, (phi - mean[None]) ** 2, 0.0).sum(axis=0))


def _log_density(phi: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Gaussian log density up to the constant that both worlds share."""
    variance = np.maximum(variance, SMALLEST_DEVIATION**2)
    return -0.5 * ((phi - mean) ** 2 / variance + np.log(variance))


def _how(pooled: str | None, models: int, who: str) -> str:
    if pooled is None:
        return "example" if models >= MANY else "global"
    if pooled not in POOLED:
        raise ValueError(f"{who}: pooled must be one of {POOLED} or None, got {pooled!r}.")
    return pooled


def _as_margins(phi: ArrayLike, who: str, name: str) -> np.ndarray:
    phi = np.asarray(phi, np.float64)
    if phi.ndim != 2 or phi.shape[1] == 0:
        raise ValueError(
            f"{who}: expected {name} of shape (models, targets) with at least one target, got "
            f"{phi.shape}."
        )
    return np.clip(phi, -CLIP, CLIP)
