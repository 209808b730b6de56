"""Gradient-trained methods."""

from .descent import descent as descent
from .finetune import finetune as finetune
from .gradient_ascent import gradient_ascent as gradient_ascent
from .jit_lipschitz import info_theoretic as info_theoretic
from .jit_lipschitz import jit_lipschitz as jit_lipschitz
from .neggrad_plus import neggrad_plus as neggrad_plus
from .random_labels import random_labels as random_labels
