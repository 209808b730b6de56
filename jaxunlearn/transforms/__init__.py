"""Optax transformations of unlearning and continual learning; they compose with `optax.chain`."""

from .anchor import anchor as anchor
from .anchor import proximal_anchor as proximal_anchor
