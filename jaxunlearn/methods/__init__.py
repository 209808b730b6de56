"""The methods, one file per paper, in the family of their mechanism."""

from .descent import descent as descent
from .descent import finetune as finetune
from .descent import gradient_ascent as gradient_ascent
from .descent import info_theoretic as info_theoretic
from .descent import jit_lipschitz as jit_lipschitz
from .descent import neggrad_plus as neggrad_plus
from .descent import random_labels as random_labels
from .edits import assd as assd
from .edits import features_labels as features_labels
from .edits import fisher_forgetting as fisher_forgetting
from .edits import influence as influence
from .edits import lfssd as lfssd
from .edits import ssd as ssd
from .edits import win_u as win_u
from .exact import acu as acu
from .exact import retrain as retrain
