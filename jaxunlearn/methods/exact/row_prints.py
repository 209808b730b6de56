"""Prints of sparse rows: whether a row given is the row that was learnt.

    print(x) = sum over j with x_j != 0 of  mix(bits of x_j, j)   mod 2^32

A learner that keeps sums and not the data must be told what to take out of them, and taking out
another row than was put in leaves a model of neither. A print of 32 bits for each row finds it: a
wrong row passes with probability 2^-32. It is a sum over entries, so an entry changes it by its own
term, in any order. A print is a number about its row and is erased with it.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array


def entry_prints(values: Array, columns: Array) -> Array:
    """The uint32 terms of entries: 0 for a value of 0. `values` count as float32.

    Args:
      values: float, any shape.
      columns: int, of a shape that broadcasts: j.
    """
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    place = (columns.astype(jnp.uint32) + 1) * jnp.uint32(0x9E3779B9)
    mixed = bits ^ place
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finaliser of MurmurHash3
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    mixed = (mixed ^ (mixed >> 16)) * (place | 1)
    return jnp.where(values == 0, jnp.uint32(0), mixed)


def row_prints(rows: Array, keep: Array | None = None) -> Array:
    """(m,) uint32 prints of dense rows (m, items), of the columns `keep` (items,) bool only.

    Example:
      >>> x = jnp.array([[1.0, 0.0, 2.0], [2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
      >>> a, b, c = (int(p) for p in row_prints(x))
      >>> a != b, c
      (True, 0)
    """
    terms = entry_prints(rows, jnp.arange(rows.shape[1])[None])
    kept = terms if keep is None else jnp.where(keep[None], terms, 0)
    return kept.sum(axis=1, dtype=jnp.uint32)


def list_prints(user: Array, item: Array, values: Array, users: int, keep: Array) -> Array:
    """(users,) uint32 prints of rows given as entries (N,), of the columns `keep` (items,) only.

    Example:
      >>> entries = jnp.array([1, 1]), jnp.array([0, 2]), jnp.array([1.0, 2.0])
      >>> a, b = list_prints(*entries, 2, jnp.ones(3, bool))
      >>> int(a), bool(b == row_prints(jnp.array([[1.0, 0.0, 2.0]]))[0])
      (0, True)
    """
    terms = jnp.where(keep[item], entry_prints(values, item), 0)
    return jnp.zeros(users, jnp.uint32).at[user].add(terms)
