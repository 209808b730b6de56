"""The methods, one file per paper, in the family of their mechanism."""

from .descent import descent as descent
from .descent import finetune as finetune
from .descent import gradient_ascent as gradient_ascent
from .descent import neggrad_plus as neggrad_plus
from .descent import random_labels as random_labels
from .edits import ssd as ssd
from .exact import retrain as retrain
