"""Core gradient spaces: where the inputs of every weight live, from Gram matrices kept in store.

    M = sum_i w_i X_i^T X_i            over a set, X_i (T, d): what example i sends into a weight
    M_r = M - M_f                      of the retained examples, without looking at them
    M_r = U diag(s^2) U^T              s_1 >= s_2 >= ... >= s_d
    core space = span(u_1 ... u_k)     k = #{j : s_j > 0, s_1 + ... + s_j <= rho (s_1 + ... + s_d)}

A step that is orthogonal to the core space of its layer changes nothing that the retained inputs
inside it produce there. Grams of disjoint sets add up, so those of the whole training set, stored
when the model is trained, serve every later request to forget: subtract, and store the difference
in their place.

What k counts is a convention. "singular" adds up singular values s, as the published thresholds
mean it; "squared" adds up s^2, the energy, as gradient projection memory does. For one rho the
second keeps fewer directions, since squares concentrate.

The difference is positive semidefinite up to rounding. It is indefinite if the two Grams are of
different things: augmented data in one and plain data in the other, or other parameters. Then the
eigenvalues mean nothing, and that is said.

Hoang et al. (2024), arXiv:2312.04095; Saha, Garg and Roy (2021), arXiv:2103.09762 (the energy).

Departures: 1. Second moments of the patches that a convolution really reads, with its own strides,
padding and dilation. 2. Sums are made in the parameters' precision, at least float32, where
eigenvalues below d eps of the largest are noise and count as 0 (singular values: 0.003 of the
largest at d = 64). So rho = 1 keeps what retained inputs reach, and not all of space. 3. A weight
with several groups (stacked layers, grouped convolutions) has one space, that of all groups' inputs
together.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxunlearn.curvature import Gram, input_grams
from jaxunlearn.data.columns import is_traced
from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.model import Model, freeze_statistics, split_statistics
from jaxunlearn.transforms.projection import everything, leading
from jaxunlearn.typing import Array, Data, Params, check_between

Grams: TypeAlias = dict[str, Gram]  # path of the leaf -> Gram
ENERGIES = ("singular", "squared")


class Core(NamedTuple):
    """The core gradient spaces of a model."""

    basis: Params  # Subspaces in the structure of the params
    ranks: dict[str, Array]  # path -> [] int32, k
    deficits: dict[str, Array]  # path -> [] float, -smallest / largest eigenvalue; 0 if none is < 0


def grams_of(model: Model, params: Params, data: Data, *, micro_batch: int | None = None) -> Grams:
    """M = sum_i w_i X_i^T X_i of every weight, in evaluation mode.

    Args:
      model: its outputs are followed; with running statistics, at these.
      params: as the model takes them; paths are those of the weights.
      data: in-memory or streaming; labels are not read. At training time the whole training set.
      micro_batch: examples taken at once.

    Returns:
      {path: Gram}. Biases, scales and tables have none; see `curvature.input_grams`.

    Cost: a forward pass, and positions x d^2 multiplications per example and weight; memory d^2.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> model = Model(outputs=lambda p, b: b["x"] @ p["w"], loss=lambda p, b: b["x"][:, 0])
      >>> data = in_memory({"x": jnp.array([[1.0, 2.0], [0.0, 1.0]])})
      >>> print(grams_of(model, {"w": jnp.ones((2, 3))}, data)["['w']"].matrix)
      [[1. 2.]
       [2. 5.]]
    """
    weights, statistics = split_statistics(model, params)
    outputs = freeze_statistics(model, statistics).outputs
    return input_grams(outputs, weights, data, micro_batch=micro_batch)


def without(whole: Grams, part: Grams) -> Grams:
    """M - M_f for every weight of `part`: what to store once `part` is forgotten.

    Raises:
      ValueError: `whole` lacks a weight, or has it in another size; or (where values can be seen)
        a difference is indefinite beyond rounding.
    """
    made = {}
    for path, gone in part.items():
        if path not in whole:
            raise ValueError(
                f"grams: there is none for params{path}, only {sorted(whole)}. Were they computed "
                "for another model?"
            )
        full = whole[path]
        axes = tuple(int(a) for a in full.axes)
        if full.matrix.shape != gone.matrix.shape or axes != gone.axes:
            raise ValueError(
                f"grams: that of params{path} has shape {full.matrix.shape} over axes {axes}, "
                f"expected {gone.matrix.shape} over {gone.axes}. Was it computed for another model?"
            )
        left = full.matrix - gone.matrix.astype(full.matrix.dtype)
        made[path] = Gram(left, gone.axes, full.count - gone.count)
        if is_traced(left):
            continue
        deficit = deficit_of(_spectrum(left)[0])
        if deficit > rounding(left):
            raise ValueError(
                f"grams: without the forgotten examples that of params{path} is indefinite, down "
                f"to -{float(deficit):.2g} of its largest eigenvalue. Compute both in one way: the "
                "same parameters, preprocessing and no augmentation."
            )
    return made


def core_rank(eigenvalues: Array, rho: float | Array, energy: str = "singular") -> Array:
    """k = #{j : s_j > 0, cumsum(s)_j <= rho sum(s)}, s = sqrt(lambda) or lambda.

    Args:
      eigenvalues: (d,) descending; those below d eps times the largest count as 0.
      rho: in [0, 1]; may be traced.
      energy: "singular" or "squared".

    Returns:
      [] int32. rho = 1 keeps whatever the inputs reach, the rank of the Gram up to rounding: all d
      if it is full, 0 for a Gram of zeros. Below 1, the direction that passes rho is not kept.

    Example:
      >>> s = jnp.array([3.0, 2.0, 1.0]) ** 2
      >>> print(core_rank(s, 0.9), core_rank(s, 0.9, "squared"))
      2 1
    """
    noise = eigenvalues.size * jnp.finfo(eigenvalues.dtype).eps * eigenvalues.max()
    positive = jnp.where(eigenvalues > jnp.maximum(noise, 0), eigenvalues, 0)
    sums = jnp.cumsum(jnp.sqrt(positive) if energy == "singular" else positive)
    return jnp.sum((positive > 0) & (sums <= rho * sums[-1])).astype(jnp.int32)


def core_spaces(grams: Grams, params: Params, rho: float | Array, energy: str = "singular") -> Core:
    """The core gradient space of every weight; a leaf without a Gram is kept as a whole.

    Args:
      grams: of the retained data.
      params: the weights, whose structure the basis has.
      rho, energy: as for `core_rank`.

    Returns:
      `Core`; `transforms.project_out(core.basis)` moves nothing but weights, and those only
      outside their core space.

    Raises:
      ValueError: rho outside [0, 1], an unknown energy, or a Gram that does not fit its leaf.

    Cost: an eigendecomposition for each weight, about 9 d^3; memory 2 d^2.
    """
    check_between("core_spaces", "rho", rho, at_least=0, at_most=1)
    if energy not in ENERGIES:
        raise ValueError(f"core_spaces: energy must be among {ENERGIES}, got {energy!r}.")
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    basis, ranks, deficits = [], {}, {}
    for place, leaf in leaves:
        path = jax.tree_util.keystr(place)
        if path not in grams:
            basis.append(everything(jnp.shape(leaf)))
            continue
        axes = tuple(int(a) for a in grams[path].axes)
        values, vectors = _spectrum(grams[path].matrix)
        ranks[path] = core_rank(values, rho, energy)
        deficits[path] = deficit_of(values)
        basis.append(leading(vectors, ranks[path], axes))
    return Core(jax.tree.unflatten(tree, basis), ranks, deficits)


def deficit_of(eigenvalues: Array) -> Array:
    """-smallest / largest eigenvalue, 0 if none is negative; inf if they are not finite."""
    largest = jnp.abs(eigenvalues).max()
    deficit = jnp.maximum(-eigenvalues.min(), 0) / jnp.where(largest > 0, largest, 1)
    return jnp.where(jnp.isfinite(largest), deficit, jnp.inf)


def rounding(matrix: Array) -> float:
    """The deficit that rounding can make: 32 d eps."""
    return 32 * matrix.shape[-1] * float(jnp.finfo(matrix.dtype).eps)


def _spectrum(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues (d,) descending, eigenvectors (d, d); groups (G, d, d) are added up."""
    matrix = matrix if matrix.ndim == 2 else matrix.sum(axis=0)
    values, vectors = one_by_one(_eigh)(matrix)
    return values[::-1], vectors[:, ::-1]


def _eigh(matrix: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors
