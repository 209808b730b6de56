"""jaxunlearn: machine unlearning as composable transforms.

    out = method.unlearn(model, params, Request(forget=..., retain=...), key)

A model is pure functions of its parameters, a method is one value that can be chained, masked,
swept and audited, and every score stands beside the score of true retraining. What this module and
the `__init__` of its sub-packages import is the public surface; nothing else is promised.
"""

from . import constraints as constraints
from . import data as data
from . import distillation as distillation
from . import extrapolation as extrapolation
from . import flatness as flatness
from . import kernels as kernels
from . import losses as losses
from . import objectives as objectives
from . import penalties as penalties
from . import teachers as teachers
from . import transforms as transforms
from . import transport as transport
from .batch_stats import refresh_batch_stats as refresh_batch_stats
from .ensembles import ensemble as ensemble
from .method import AccessError as AccessError
from .method import Method as Method
from .method import Request as Request
from .method import Unlearned as Unlearned
from .method import certified as certified
from .method import chain as chain
from .method import exact as exact
from .method import keep_best as keep_best
from .method import masked as masked
from .methods import acu as acu
from .methods import amnesiac as amnesiac
from .methods import assd as assd
from .methods import bad_teacher as bad_teacher
from .methods import blind_model as blind_model
from .methods import blindspot as blindspot
from .methods import boundary_expand as boundary_expand
from .methods import boundary_shrink as boundary_shrink
from .methods import cf_k as cf_k
from .methods import descent as descent
from .methods import entanglement as entanglement
from .methods import eu_k as eu_k
from .methods import features_labels as features_labels
from .methods import finetune as finetune
from .methods import fisher_forgetting as fisher_forgetting
from .methods import forsaken as forsaken
from .methods import gaussian_amnesiac as gaussian_amnesiac
from .methods import gradient_ascent as gradient_ascent
from .methods import hamu as hamu
from .methods import influence as influence
from .methods import info_theoretic as info_theoretic
from .methods import jit_lipschitz as jit_lipschitz
from .methods import l1_sparse as l1_sparse
from .methods import lfssd as lfssd
from .methods import mox as mox
from .methods import neggrad_plus as neggrad_plus
from .methods import pgu as pgu
from .methods import pseudo_label as pseudo_label
from .methods import random_labels as random_labels
from .methods import retrain as retrain
from .methods import salun as salun
from .methods import scrub as scrub
from .methods import shrink_perturb as shrink_perturb
from .methods import ssd as ssd
from .methods import tmu as tmu
from .methods import unsir as unsir
from .methods import win_u as win_u
from .methods.descent.amnesiac import record_updates as record_updates
from .methods.descent.amnesiac import subtract_updates as subtract_updates
from .methods.descent.last_layers import last_layers as last_layers
from .methods.descent.last_layers import layers as layers
from .methods.descent.salun import saliency_mask as saliency_mask
from .methods.descent.salun import salient as salient
from .methods.edits.win_u import win_u_curvature as win_u_curvature
from .methods.exact.acu import acu_state as acu_state
from .methods.exact.als import als as als
from .methods.exact.analytic import analytic_head as analytic_head
from .methods.exact.autoencoder import ease as ease
from .methods.exact.kernel import kernel_ridge as kernel_ridge
from .methods.exact.nearest_mean import nearest_mean as nearest_mean
from .methods.exact.shard_trainer import Trainer as Trainer
from .methods.exact.shard_trainer import gradient_trainer as gradient_trainer
from .methods.exact.shards import shards as shards
from .methods.exact.support_vectors import kernel_machine as kernel_machine
from .model import Model as Model
from .model import from_linen as from_linen
from .model import from_nnx as from_nnx
from .objectives import Objective as Objective
from .training import Fitted as Fitted
from .training import Status as Status
from .training import fit as fit
from .training import train as train

__version__ = "0.1.0"
