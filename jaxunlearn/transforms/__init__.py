"""Optax transformations of unlearning and continual learning; they compose with `optax.chain`."""

from .anchor import anchor as anchor
from .anchor import proximal_anchor as proximal_anchor
from .gradient_span import project_out_gradients as project_out_gradients
from .hamu_step import Branch as Branch
from .hamu_step import hamu_step as hamu_step
from .masking import mask_updates as mask_updates
from .projection import Subspace as Subspace
from .projection import keep_within as keep_within
from .projection import project_out as project_out
from .projection import span as span
from .shrinkage import soft_threshold as soft_threshold
from .sparsity import add_l1 as add_l1
from .sparsity import proximal_l1 as proximal_l1
from .two_objectives import two_objective_step as two_objective_step
