"""Every wrong argument of curve_fit and least_squares is an error that says what to do.

The last column says whether SciPy raises the same type for the same call. None: SciPy
accepts it, or fails somewhere inside.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg

import jaxfit

T = np.linspace(0, 4, 6)
Y = 2 * T + 1.0
NAN, INF = np.nan, np.inf


def line(x, a, b):
    return a * x + b


def bad(value, array=T):
    """The array with one value in it."""
    array = array.copy()
    array[2] = value
    return array


def named(*parts):
    """The row of a table under its name."""
    return pytest.param(*parts[1:], id=parts[0])


# name, arguments of curve_fit beside the line and its data, type, match, same as SciPy
FITS = [
    # NaN and infinity
    ("NaN in xdata", {"xdata": bad(NAN)}, ValueError, "xdata.*infs or NaNs", True),
    ("inf in xdata", {"xdata": bad(INF)}, ValueError, "xdata.*infs or NaNs", True),
    ("NaN in a tree", {"xdata": {"t": bad(NAN)}}, ValueError, "infs or NaNs", None),
    ("NaN in ydata", {"ydata": bad(NAN)}, ValueError, "ydata.*infs or NaNs", True),
    ("-inf in ydata", {"ydata": bad(-INF)}, ValueError, "infs or NaNs", True),
    ("NaN in sigma", {"sigma": bad(NAN)}, ValueError, "sigma.*finite", None),
    ("inf in sigma", {"sigma": bad(INF)}, ValueError, "sigma.*finite", None),
    ("NaN in p0", {"p0": [NAN, 1]}, ValueError, "p0.*finite", None),
    ("inf in p0", {"p0": [INF, 1]}, ValueError, "p0.*finite", None),
    ("NaN bound", {"bounds": ([0, NAN], 9)}, ValueError, "lower bound.*inf", True),
    ("NaN, raise", {"ydata": bad(NAN), "nan_policy": "raise"}, ValueError,
     "contains nan", True),
    ("only NaN, omit", {"ydata": NAN * T, "nan_policy": "omit"}, ValueError,
     "Every point", None),
    ("propagate", {"nan_policy": "propagate"}, ValueError, "propagate", True),
    ("nan_policy", {"nan_policy": "hi"}, ValueError, "must be one of", True),
    ("no finite model", {"f": lambda x, a, b: jnp.log(-1 - a * a) * x + b,
      "method": "trf"}, ValueError, "not finite in the initial point", True),
    # lengths and shapes
    ("longer xdata", {"xdata": np.ones(7)}, ValueError, r"\(7,\).*expected", True),
    ("shorter ydata", {"ydata": Y[:5]}, ValueError, "expected", True),
    ("no ydata", {"ydata": []}, ValueError, "empty", True),
    ("no data", {"xdata": [], "ydata": []}, ValueError, "empty", True),
    ("sigma's length", {"sigma": np.ones(5)}, ValueError, "incorrect shape", True),
    ("sigma's square", {"sigma": np.eye(5)}, ValueError, "incorrect shape", True),
    ("bounds' length", {"bounds": ([0, 0, 0], 9)}, ValueError, "lower bound", True),
    ("three bounds", {"bounds": (0, 1, 2)}, ValueError, "2 elements", True),
    ("bounds a number", {"bounds": 3.0}, ValueError, "2 elements", None),
    ("crossed bounds", {"bounds": ([0, 9], [1, 8])}, ValueError, "exceed", True),
    ("p0 outside", {"p0": [2, 0], "bounds": (0, 1)}, ValueError, "parameter 0", True),
    ("p0 a matrix", {"p0": [[1, 1]]}, ValueError, "at most 1 dim", None),
    ("no p0", {"p0": []}, ValueError, "at least one", None),
    ("p0's length", {"p0": [1, 1, 1]}, TypeError, "argument", True),
    ("no parameters", {"f": lambda x: x}, ValueError, "Unable to determine", None),
    ("only *p", {"f": lambda x, *p: x}, ValueError, "Unable to determine", True),
    # sigma
    ("sigma zero", {"sigma": bad(0.0, T + 1)}, ValueError, "positive", None),
    ("sigma negative", {"sigma": bad(-1.0, T + 1)}, ValueError, "positive", None),
    ("sigma indefinite", {"sigma": np.diag(bad(-1.0, T + 1))}, ValueError,
     "positive definite", True),
    ("sigma unsymmetric", {"sigma": np.eye(6) + np.eye(6, k=1)}, ValueError,
     "symmetric", None),
    # names and numbers
    ("method", {"method": "simplex"}, ValueError, "`method`.*trf", True),
    ("lm, bounds", {"method": "lm", "bounds": (0, 9)}, ValueError, "'lm' only", True),
    ("lm, loss", {"method": "lm", "loss": "huber"}, ValueError, "linear", None),
    ("loss", {"loss": "l1", "method": "trf"}, ValueError, "`loss`.*soft_l1", True),
    ("a loss's class", {"loss": jaxfit.losses.Huber}, ValueError, "instance", None),
    ("jac", {"jac": "4-point", "method": "trf"}, ValueError, "`jac`", True),
    ("keyword", {"tolerance": 1, "method": "trf"}, TypeError, "'tolerance'", True),
    ("args", {"args": (1,)}, ValueError, "args.*partial", True),
    ("factor", {"factor": 10}, TypeError, "MINPACK", None),
    ("ftol", {"ftol": -1.0, "method": "trf"}, ValueError, "`ftol`.*negative", None),
    ("no tolerance", {"ftol": None, "xtol": None, "gtol": None, "method": "trf"},
     ValueError, "machine epsilon", True),
    ("ftol a word", {"ftol": "small", "method": "trf"}, TypeError, "`ftol`", True),
    ("f_scale zero", {"f_scale": 0.0, "method": "trf"}, ValueError, "positive", None),
    ("f_scale negative", {"f_scale": -1.0, "loss": "huber", "method": "trf"},
     ValueError, "f_scale.*positive", None),
    ("max_nfev", {"max_nfev": 0, "method": "trf"}, ValueError, "max_nfev", True),
    ("maxfev", {"maxfev": -5, "method": "trf"}, ValueError, "positive", True),
    ("x_scale", {"x_scale": -1.0, "method": "trf"}, ValueError, "x_scale", True),
    ("x_scale's length", {"x_scale": [1, 1, 1], "method": "trf"}, ValueError,
     "x_scale", True),
    ("verbose", {"verbose": 3, "method": "trf"}, ValueError, "verbose", True),
    ("tr_solver", {"tr_solver": "best", "method": "trf"}, ValueError, "tr_sol", True),
    ("sparsity", {"jac_sparsity": np.ones((6, 2)), "method": "trf"}, ValueError,
     "jac_sparsity.*Leave it out", None),
    ("workers", {"workers": 2, "method": "trf"}, ValueError, "workers", None),
    # more parameters than points
    ("n > m", {"xdata": [1.0], "ydata": [1.0, 2.0], "p0": [1, 1, 1],
      "f": lambda x, a, b, c: a + b * x + c * jnp.ones(2)}, TypeError,
     "must not exceed", True),
    ("a point, n > m", {"xdata": [1.0], "ydata": [2.0]}, TypeError, "exceed", True),
    ("n > m, lm", {"xdata": [1.0], "ydata": [1.0, 2.0], "p0": [1, 1, 1],
      "f": lambda x, a, b, c: a + b * x + c * jnp.ones(2), "method": "lm"}, TypeError,
     "must not exceed", True),
    # what the functions are and return
    ("f no function", {"f": 3.0}, TypeError, "f.*expected", None),
    ("f's shape", {"f": lambda x, a, b: line(x, a, b)[:5]}, ValueError,
     r"\(5,\); expected \(6,\)", True),
    ("f's column", {"f": lambda x, a, b: line(x, a, b)[:, None]}, ValueError,
     r"\(6, 1\); expected \(6,\)", None),
    ("f None", {"f": lambda x, a, b: None}, TypeError, "returned None", True),
    ("f complex", {"f": lambda x, a, b: line(x, a, b).astype(complex)}, TypeError,
     "real", None),
    ("f a string", {"f": lambda x, a, b: "y"}, TypeError, "returned 'y'", True),
    ("jac's shape", {"jac": lambda x, a, b: jnp.ones((2, 6))}, ValueError,
     r"expected \(6, 2\)", None),
    ("jac None", {"jac": lambda x, a, b: None}, TypeError, "`jac` returned", None),
    # strings, complex numbers, masks, tracers
    ("x strings", {"xdata": list("abcdef")}, ValueError, "real numbers", None),
    ("x a string", {"xdata": "abcdef"}, TypeError, "expected numbers", None),
    ("y strings", {"ydata": list("abcdef")}, ValueError, "real numbers", True),
    ("sigma strings", {"sigma": list("abcdef")}, ValueError, "real numbers", None),
    ("p0 strings", {"p0": ["a", "b"]}, ValueError, "real numbers", None),
    ("bounds strings", {"bounds": ("low", "high")}, ValueError, "real numbers", True),
    ("y complex", {"ydata": Y + 0j}, ValueError, "`ydata` must be real", None),
    ("p0 complex", {"p0": [1j, 1]}, ValueError, "`p0` must be real", None),
    ("p0 masked", {"p0": np.ma.masked_less([1.0, 3.0], 2)}, ValueError, "masked", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kwargs", "error", "match", "same"), [named(*row) for row in FITS]
)
def test_curve_fit(kwargs, error, match, same):
    arguments = {"f": line, "xdata": T, "ydata": Y, **kwargs}
    with pytest.raises(error, match=match):
        jaxfit.curve_fit(**arguments)
    if same:
        assert_scipy_raises(error, scipy.optimize.curve_fit, arguments)


def valley(x):
    return jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


LEAST = [
    ("fun no function", {"fun": 3.0}, TypeError, "fun.*expected", None),
    ("NaN in x0", {"x0": [NAN, 1]}, ValueError, "x0.*finite", True),
    ("inf in x0", {"x0": [INF, 1]}, ValueError, "x0.*finite", True),
    ("no x0", {"x0": []}, ValueError, "at least one", None),
    ("x0 a matrix", {"x0": [[1.0, 1.0]]}, ValueError, "at most 1 dim", True),
    ("x0 complex", {"x0": [1j, 1]}, ValueError, "`x0` must be real", True),
    ("x0 strings", {"x0": ["a", "b"]}, ValueError, "real numbers", True),
    ("crossed bounds", {"bounds": ([0, 9], [1, 8])}, ValueError, "exceed", True),
    ("NaN bound", {"bounds": (NAN, 9)}, ValueError, "lower bound", True),
    ("bounds' length", {"bounds": ([0, 0, 0], 9)}, ValueError, "lower bound", True),
    ("three bounds", {"bounds": (0, 1, 2)}, ValueError, "2 elements", True),
    ("x0 outside", {"bounds": (0, [3, 0.5])}, ValueError, "parameter 1", True),
    ("method", {"method": "bfgs"}, ValueError, "`method`", True),
    ("lm, bounds", {"method": "lm", "bounds": (0, 9)}, ValueError, "bounds", True),
    ("lm, loss", {"method": "lm", "loss": "huber"}, ValueError, "linear", True),
    ("lm, m < n", {"method": "lm", "fun": lambda x: x[0] - x[1]}, ValueError,
     "less than", True),
    ("jac", {"jac": "exact"}, ValueError, "`jac`", True),
    ("jac None", {"jac": None}, ValueError, "`jac`", True),
    ("loss", {"loss": "l1"}, ValueError, "`loss`", True),
    ("f_scale zero", {"loss": "huber", "f_scale": 0.0}, ValueError, "f_scale", None),
    ("f_scale NaN", {"loss": "huber", "f_scale": NAN}, ValueError, "f_scale", None),
    ("ftol", {"ftol": -1e-8}, ValueError, "ftol.*negative", None),
    ("xtol NaN", {"xtol": NAN}, ValueError, "xtol", None),
    ("gtol a word", {"gtol": "tight"}, TypeError, "gtol", True),
    ("no tolerance", {"ftol": None, "xtol": None, "gtol": None}, ValueError,
     "machine epsilon", True),
    ("lm, a tolerance off", {"method": "lm", "ftol": None}, ValueError, "All", True),
    ("max_nfev", {"max_nfev": 0}, ValueError, "max_nfev", True),
    ("max_nfev a word", {"max_nfev": "all"}, TypeError, "max_nfev", True),
    ("x_scale a word", {"x_scale": "auto"}, ValueError, "x_scale", True),
    ("x_scale zero", {"x_scale": [1, 0]}, ValueError, "x_scale", True),
    ("x_scale's length", {"x_scale": [1, 1, 1]}, ValueError, "x_scale", True),
    ("verbose", {"verbose": 10}, ValueError, "verbose", True),
    ("tr_solver", {"tr_solver": "best"}, ValueError, "tr_solver", True),
    ("sparsity", {"jac_sparsity": np.ones((2, 2))}, ValueError, "jac_sparsity", None),
    ("workers", {"workers": 2}, ValueError, "workers", None),
    ("args", {"args": 3.0}, TypeError, "args.*tuple", None),
    ("kwargs", {"kwargs": [1]}, TypeError, "kwargs.*dictionary", True),
    ("fun's matrix", {"fun": lambda x: jnp.ones((2, 2)) * x}, ValueError,
     "1-d array_like", True),
    ("fun None", {"fun": lambda x: None}, TypeError, "returned None", True),
    ("fun a string", {"fun": lambda x: "r"}, TypeError, "returned 'r'", True),
    ("fun complex", {"fun": lambda x: x.astype(complex)}, TypeError, "real", None),
    ("fun no residuals", {"fun": lambda x: x[:0]}, ValueError, "no residuals", None),
    ("fun NaN", {"fun": lambda x: jnp.log(-1 - x**2)}, ValueError, "not finite", True),
    ("jac's shape", {"jac": lambda x: jnp.ones((3, 2))}, ValueError, "jac", True),
    ("loss's shape", {"loss": lambda z: z}, ValueError, "wrong shape", None),
    ("keyword", {"tolerance": 1}, TypeError, "tolerance", True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kwargs", "error", "match", "same"), [named(*row) for row in LEAST]
)
def test_least_squares(kwargs, error, match, same):
    arguments = {"fun": valley, "x0": [2.0, 2.0], **kwargs}
    with pytest.raises(error, match=match):
        jaxfit.least_squares(**arguments)
    if same:
        assert_scipy_raises(error, scipy.optimize.least_squares, arguments)


def assert_scipy_raises(error, function, arguments):
    """SciPy's error for the same call is of this type."""
    with np.errstate(all="ignore"), pytest.raises(error):
        function(**arguments)


def test_traced_data():
    """Inside jit is `solve`'s place."""
    with pytest.raises(TypeError, match=r"jaxfit\.solve"):
        jax.jit(lambda y: jaxfit.curve_fit(line, T, y))(Y)
    with pytest.raises(TypeError, match=r"jaxfit\.solve"):
        jax.jit(lambda x: jaxfit.least_squares(valley, x).x)(jnp.ones(2))
