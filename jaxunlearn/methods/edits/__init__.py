"""One-shot edits of the parameters."""

from .assd import assd as assd
from .features_labels import features_labels as features_labels
from .fisher_forgetting import fisher_forgetting as fisher_forgetting
from .influence import influence as influence
from .lfssd import lfssd as lfssd
from .lfssd import output_moments as output_moments
from .moments import Moments as Moments
from .moments import load_moments as load_moments
from .moments import moments_of as moments_of
from .moments import save_moments as save_moments
from .ssd import ssd as ssd
from .win_u import win_u as win_u
