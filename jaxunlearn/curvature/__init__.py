"""Second-order information about a loss, at about the price of one gradient."""

from .coupling import CoupledError as CoupledError
from .fisher import NonFiniteError as NonFiniteError
from .fisher import SecondMoment as SecondMoment
from .fisher import absolute_moment as absolute_moment
from .fisher import class_means as class_means
from .fisher import fisher_diagonal as fisher_diagonal
from .fisher import ggn_diagonal as ggn_diagonal
from .fisher import second_moment as second_moment
from .grams import Gram as Gram
from .grams import Kronecker as Kronecker
from .grams import input_grams as input_grams
from .grams import kronecker_factors as kronecker_factors
from .moments import Route as Route
from .moments import routes as routes
from .products import dense_ggn as dense_ggn
from .products import dense_hessian as dense_hessian
from .products import ggn_product as ggn_product
from .products import hessian_product as hessian_product
from .tangent_kernel import displaced as displaced
from .tangent_kernel import linearised as linearised
from .tangent_kernel import tangent_kernel as tangent_kernel
