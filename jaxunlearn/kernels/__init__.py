"""What kernel machines are made of: kernels, losses, solvers, rows that come and go."""

from .functions import linear as linear
from .functions import rbf as rbf
from .functions import relu_tangent as relu_tangent
from .functions import tangent as tangent
