"""Methods whose result equals retraining."""

from .retrain import retrain as retrain
