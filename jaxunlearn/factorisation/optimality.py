"""Whether a factorisation is the best there is, and how far from it at most: a convex dual.

    min F(P, Q)  >=  min f(X) + 2 l |D_u^1/2 X D_i^1/2|_*  >=  d(Z)  if |D_u^-1/2 Z D_i^-1/2| <= l

The penalties of P and Q are, at best, a trace norm of X = P Q^T (weighted by D_u = n_u^e and D_i =
n_i^e), so alternating least squares minimises a convex function through a factorisation of bounded
rank. Every Z whose largest singular value is small enough gives a lower bound; Z = G min(1, l / s),
G = -f'(X) / 2, s the largest singular value of its weighted self, is tight at the optimum. f is
quadratic, with curvature w_ui in x_ui, so the gap also bounds the distance to the optimal X*:

    sum_ui w_ui (x_ui - x*_ui)^2  <=  F(P, Q) - d(Z)

That is what a deletion wants to know: if the gap is small, *every* retraining that reaches its
optimum, from whatever start, has these predictions. If s > l there are better factorisations of a
higher rank, and retrainings of this rank may end apart. Biases add -|Z 1|^2 / l_u and its like for
items to d. For the trace norm, Srebro, Rennie and Jaakkola (2004); the weighted one, Srebro and
Salakhutdinov (2010), arXiv:1002.2780. The bound is ours; it is exact arithmetic's, and s comes from
Lanczos iterations where the matrix is large.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from jaxunlearn.factorisation.alternating import ALSState, Rule

_DENSE = 2_000_000  # pairs up to which singular values are computed densely
_MARGIN = 1e-6  # relative, of a squared singular value from Lanczos iterations


class Optimality(NamedTuple):
    """How good a factorisation is; plain numbers."""

    ratio: float  # s / l: at most 1 at a global optimum, larger where a higher rank would do better
    objective: float  # F(P, Q)
    bound: float  # d(Z): no factorisation of any rank has a lower objective
    gap: float  # objective - bound, >= 0
    distance: float  # root mean square, over the observed entries: an upper bound to |x - x*|


def optimality(state: ALSState, rule: Rule) -> Optimality:
    """The gap and the distance of the module, in float64 on the host.

    Args:
      state: any state; the bound holds wherever it is, and is tight at a global optimum only.
      rule: of the learner.

    Raises:
      ValueError: regularisation 0: there is no trace norm and no bound.

    | situation                            | result                                              |
    |--------------------------------------|-----------------------------------------------------|
    | converged, rank above that of X*     | ratio <= 1, gap and distance near 0                 |
    | converged, rank too small            | ratio > 1, gap > 0: other optima are not ruled out  |
    | not converged                        | gap > 0, and true all the same                      |
    | nothing retained                     | all 0                                               |

    Cost: a few dozen products with a sparse matrix of N entries.
    """
    feedback = rule.feedback
    level = feedback.regularisation
    if level == 0:
        raise ValueError("als: without regularisation no bound holds; give a regularisation > 0.")
    users, items = (np.asarray(f, np.float64) for f in (state.user, state.item))
    counts = [np.asarray(n, np.float64) for n in (state.user_count, state.item_count)]
    kept = np.asarray(state.entries.weight)[:-1] > 0
    u, i = np.asarray(state.pair)[:, kept]
    value = np.asarray(state.entries.value, np.float64)[:-1][kept]
    scales = [
        np.where(n > 0, feedback.penalty(n, len(other)), 0) / level
        for n, other in zip(counts, (items, users), strict=True)
    ]
    bias = [np.zeros(len(f)) for f in (users, items)]
    objective = level * (scales[0] @ (users**2).sum(1) + scales[1] @ (items**2).sum(1))
    if feedback.biases:
        bias = [users[:, -1], items[:, -1]]
        users, items = users[:, :-1], items[:, :-1]
    x = np.einsum("nk,nk->n", users[u], items[i]) + bias[0][u] + bias[1][i]
    w, s, c = feedback.terms(value, np.ones(len(u)), np.full(len(u), float(state.mean)))
    everywhere = feedback.unobserved
    everything = float(np.vdot(users.T @ users, items.T @ items))  # sum of x^2 over all pairs
    objective += float((w * x**2 - 2 * s * x + c).sum() + everywhere * everything)

    sparse = scipy.sparse.csr_matrix((s - w * x, (u, i)), shape=(len(users), len(items)))
    roots = [1 / np.sqrt(np.where(d > 0, d, np.inf)) for d in scales]
    largest = _largest(sparse, everywhere, users, items, *roots)
    shrink = min(1.0, level / largest) if largest > 0 else 1.0
    omega = w + everywhere
    dual = float((c - (s - shrink * (s - omega * x)) ** 2 / omega).sum())
    dual -= shrink**2 * everywhere * (everything - float((x**2).sum()))
    if feedback.biases:
        for axis, d in ((1, scales[0]), (0, scales[1])):
            total = shrink * np.asarray(sparse.sum(axis=axis)).ravel()
            dual -= float((total**2 / np.where(d > 0, level * d, np.inf)).sum())
    objective = float(objective)
    gap, mass = max(objective - dual, 0.0), float(omega.sum())
    distance = float(np.sqrt(gap / mass)) if mass > 0 else 0.0
    return Optimality(largest / level, objective, dual, gap, distance)


def _largest(
    sparse: scipy.sparse.csr_matrix,
    everywhere: float,
    users: np.ndarray,
    items: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
) -> float:
    """The largest singular value of diag(left) (sparse - everywhere P Q^T) diag(right)."""
    weighted: Any = scipy.sparse.diags(left) @ sparse @ scipy.sparse.diags(right)
    shape = (len(users), len(items))
    p, q = everywhere * left[:, None] * users, right[:, None] * items
    if shape[0] * shape[1] <= _DENSE:
        return float(np.linalg.norm(weighted.toarray() - p @ q.T, 2))
    if weighted.nnz == 0:
        return 0.0

    def squared(v: np.ndarray) -> np.ndarray:
        image = weighted @ v - p @ (q.T @ v)
        return weighted.T @ image - q @ (p.T @ image)

    count = shape[1]
    tools: Any = scipy.sparse.linalg
    operator = tools.LinearOperator((count, count), matvec=squared, dtype=np.float64)
    start = np.ones(count)
    found = tools.eigsh(operator, k=1, v0=start, tol=_MARGIN, return_eigenvectors=False)
    return float(np.sqrt(found[0] * (1 + _MARGIN)))
