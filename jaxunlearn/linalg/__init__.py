"""Small dense tools and iterative solvers; each says how it ended and how well it solved."""

from .conjugate_gradients import conjugate_gradients as conjugate_gradients
from .lissa import lissa as lissa
from .psd import psd_solve as psd_solve
from .solution import Solution as Solution
from .solution import Solved as Solved
from .woodbury import Inverse as Inverse
from .woodbury import rank_change as rank_change
