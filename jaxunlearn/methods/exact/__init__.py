"""Methods whose result equals retraining."""

from .acu import acu as acu
from .als import als as als
from .autoencoder import ease as ease
from .kernel import kernel_ridge as kernel_ridge
from .retrain import retrain as retrain
from .support_vectors import kernel_machine as kernel_machine
