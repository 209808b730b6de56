"""Second-order information about a loss: per-example second moments of its gradient."""

from .fisher import SecondMoment as SecondMoment
from .fisher import class_means as class_means
from .fisher import second_moment as second_moment
