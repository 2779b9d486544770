"""What `curve_fit` accepts, how it computes, and what it compiles.

That its answers are SciPy's is the subject of `test_against_scipy`, and bad input that
of `test_bad_input_scipy`.
"""

import functools
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.optimize import Bounds, OptimizeWarning

import jaxfit

T = np.linspace(0, 4, 30)
RNG = np.random.default_rng(2)
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.05 * RNG.normal(size=30)
SIGMA = 0.03 + 0.02 * T


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def in_numpy(x, a, b, c):
    return a * np.exp(-b * x) + c


POPT, PCOV = jaxfit.curve_fit(decay, T, Y)


def assert_found(popt, expected=POPT):
    np.testing.assert_allclose(popt, expected, rtol=1e-7)


class Decay(eqx.Module):
    offset: jax.Array

    def __call__(self, x, a, b, c):
        return decay(x, a, b, c) + self.offset

    def method(self, x, a, b, c):
        return self(x, a, b, c)

    @staticmethod
    def static(x, a, b, c):
        return decay(x, a, b, c)


def with_default(x, a, b, c=0.3):
    return decay(x, a, b, c)


def shifted(shift, x, a, b, c):
    return decay(x, a, b, c) + shift


# Parameters


@pytest.mark.parametrize(
    "f",
    [
        *(Decay(jnp.zeros(())), Decay(jnp.zeros(())).method, Decay.static),
        *(jax.jit(decay), with_default, functools.partial(shifted, 0.0)),
        lambda x, a, b, c: decay(x, a, b, c),
    ],
    ids=["Module", "method", "static", "jit", "default", "partial", "lambda"],
)
def test_parameters_are_counted(f):
    popt, pcov = jaxfit.curve_fit(f, T, Y)
    assert_found(popt)
    np.testing.assert_allclose(pcov, PCOV, rtol=1e-6)


@pytest.mark.parametrize("p0", [[1, 1, 1], (1.0, 1.0, 1.0), np.ones(3, np.float32)])
def test_forms_of_p0(p0):
    assert_found(jaxfit.curve_fit(lambda x, *p: decay(x, *p), T, Y, p0)[0])


def test_scalar_p0():
    popt, _ = jaxfit.curve_fit(lambda x, *p: p[0] * x, T, 2 * T, 0.5)
    np.testing.assert_allclose(popt, [2.0], rtol=1e-9)


def test_bounds_give_the_start():
    """The middle; one away from the only bound; one."""
    starts = []

    def model(x, a, b, c):
        jax.debug.callback(lambda *p: starts.append(p), a, b, c)
        return decay(x, a, b, c)

    bounds = ([2, 0.5, -np.inf], [4, np.inf, 3])
    jaxfit.curve_fit(model, T, Y, bounds=bounds)
    jax.effects_barrier()
    np.testing.assert_allclose(starts[0], [3, 1.5, 2])


@pytest.mark.parametrize(
    "bounds", [(-9, 9), ([-9, -9, -9], 9), Bounds(-9, 9), Bounds([-9.0] * 3, [9.0] * 3)]
)
def test_forms_of_bounds(bounds):
    assert_found(jaxfit.curve_fit(decay, T, Y, bounds=bounds)[0])


def test_equal_bounds_fix_a_parameter():
    popt, pcov = jaxfit.curve_fit(decay, T, Y, bounds=([0, 0, 0.4], [9, 9, 0.4]))
    expected, covariance = scipy.optimize.curve_fit(
        lambda x, a, b: in_numpy(x, a, b, 0.4), T, Y, ftol=1e-14, xtol=1e-14
    )
    assert popt[2] == 0.4
    np.testing.assert_allclose(popt[:2], expected, rtol=1e-6)
    np.testing.assert_allclose(pcov[:2, :2], covariance, rtol=1e-4)
    assert not pcov[2].any()
    assert not pcov[:, 2].any()


# Data


def test_pytree_and_shapes_of_xdata():
    """A pytree; (k, m) as SciPy has it; an image with two-dimensional data."""
    y, x = np.mgrid[:6, :5].astype(float)
    z = 2 * x - y + 0.5 + 0.1 * RNG.normal(size=x.shape)
    expected, covariance = scipy.optimize.curve_fit(
        lambda d, a, b, c: a * d[0] + b * d[1] + c,
        np.stack([x.ravel(), y.ravel()]),
        z.ravel(),
    )
    flat = {"x": x.ravel(), "y": y.ravel()}
    image = {"x": x, "y": y}

    def plane(d, a, b, c):
        return a * d["x"] + b * d["y"] + c

    for data, observed in ((flat, z.ravel()), (image, z), (flat, z)):
        popt, pcov = jaxfit.curve_fit(plane, data, observed, sigma=np.full(30, 2.0))
        np.testing.assert_allclose(popt, expected, rtol=1e-6)
        np.testing.assert_allclose(pcov, covariance, rtol=1e-5, atol=1e-9)


def test_pandas_and_xarray():
    pandas, xarray = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    frame = pandas.DataFrame({"t": T, "y": Y, "sigma": SIGMA}, index=T + 7)
    array = xarray.DataArray(Y, {"t": T}, "t")
    expected = jaxfit.curve_fit(decay, T, Y, sigma=SIGMA)[0]
    found, _ = jaxfit.curve_fit(decay, frame["t"], frame["y"], sigma=frame["sigma"])
    assert_found(found, expected)
    assert_found(jaxfit.curve_fit(decay, array["t"], array)[0])


def test_float32_is_computed_in_float64():
    x, y = T.astype(np.float32), jnp.asarray(Y, jnp.float32)
    expected, _ = jaxfit.curve_fit(decay, np.asarray(x, float), np.asarray(y, float))
    popt, pcov = jaxfit.curve_fit(decay, x, y)
    assert popt.dtype == pcov.dtype == np.float64
    np.testing.assert_allclose(popt, expected, rtol=1e-9)


POLICIES = [
    ({"y": [3, 9]}, None),
    ({"x": [0]}, None),
    ({"x": [4], "y": [3, 9]}, SIGMA),
    ({"x": [4], "y": [3, 9]}, np.diag(SIGMA**2)),
]


@pytest.mark.parametrize(("missing", "sigma"), POLICIES)
@pytest.mark.parametrize("predictors", [1, 2])
def test_omitted_points(missing, sigma, predictors):
    """NaN in x or y leaves out the point, and cuts sigma alike."""
    x, y = np.stack([T, T**2])[:predictors], Y.copy()
    x[-1, missing.get("x", [])] = np.nan
    y[missing.get("y", [])] = np.nan
    x = x if predictors > 1 else x[0]

    def model(x, a, b, c):
        return decay(x if x.ndim == 1 else x[0], a, b, c)

    arguments = {"sigma": sigma, "nan_policy": "omit", "absolute_sigma": True}
    popt, pcov = jaxfit.curve_fit(model, x, y, **arguments)

    def scipys(x, a, b, c):
        return in_numpy(x if x.ndim == 1 else x[0], a, b, c)

    expected, covariance = scipy.optimize.curve_fit(
        scipys, x, y, POPT, ftol=1e-14, xtol=1e-14, **arguments
    )
    np.testing.assert_allclose(popt, expected, rtol=1e-5)
    np.testing.assert_allclose(pcov, covariance, rtol=1e-3)


def test_sigma_is_not_looked_at_where_y_is_nan():
    y, sigma = Y.copy(), SIGMA.copy()
    y[[3, 9, 11]], sigma[[3, 9, 11]] = np.nan, [np.nan, 0.0, -1.0]
    popt, _ = jaxfit.curve_fit(decay, T, y, sigma=sigma, nan_policy="omit")
    kept = np.isfinite(y)
    assert_found(popt, jaxfit.curve_fit(decay, T[kept], Y[kept], sigma=SIGMA[kept])[0])


@pytest.mark.parametrize("noise", [1e-16, 1e-7], ids=["float64", "float32"])
def test_a_covariance_matrix_with_rounding(noise):
    """Rounding asymmetry, as large as the smallest elements."""
    distance = np.abs(np.subtract.outer(np.arange(30), np.arange(30)))
    matrix = np.outer(SIGMA, SIGMA) * np.exp(-2.0 * distance)
    size = noise * np.outer(SIGMA, SIGMA)
    rounded = matrix + size * np.random.default_rng(0).normal(size=(30, 30))
    found, _ = jaxfit.curve_fit(decay, T, Y, sigma=rounded)
    exact = {"sigma": rounded, "ftol": 1e-14, "xtol": 1e-14}
    assert_found(found, scipy.optimize.curve_fit(in_numpy, T, Y, **exact)[0])
    with pytest.raises(ValueError, match="not symmetric"):
        jaxfit.curve_fit(decay, T, Y, sigma=np.linalg.cholesky(matrix))


@pytest.mark.parametrize("dtype", ["M8[s]", "M8[ns]", "m8[ms]"])
def test_dates_count_in_their_own_unit(dtype):
    """As SciPy has them; NaT is NaN."""
    t = np.arange(30).astype("m8[s]")
    t = (t + np.datetime64("1970-01-01", "s") if dtype[0] == "M" else t).astype(dtype)

    def line(t, a, b):
        return a + b * t * 1e-3

    found, _ = jaxfit.curve_fit(line, t, Y)
    expected, _ = scipy.optimize.curve_fit(line, t, Y)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    t[4] = np.array("NaT", dtype)
    with pytest.raises(ValueError, match="infs or NaNs"):
        jaxfit.curve_fit(line, t, Y)


def test_one_observation_may_stand_for_all_values_of_the_model():
    found, _ = jaxfit.curve_fit(lambda x, a, b: a + b * x, T, 2.0)
    np.testing.assert_allclose(found, [2, 0], atol=1e-9)


def test_arrays_in_another_byte_order():
    found, _ = jaxfit.curve_fit(
        lambda x, a, b, c: decay(x["i"].astype(float) * x["step"], a, b, c),
        {"i": np.arange(30, dtype=">i4"), "step": np.array(T[1], ">f8")},
        Y.astype(">f8"),
    )
    assert_found(found)


def test_unchecked_nan_is_an_error_of_the_start():
    y = Y.copy()
    y[3] = np.nan
    with pytest.raises(ValueError, match="not finite in the initial point"):
        jaxfit.curve_fit(decay, T, y, check_finite=False)


# Derivatives, methods, limits


def jacobian(x, a, b, c):
    e = jnp.exp(-b * x)
    return jnp.stack([e, -a * x * e, jnp.ones_like(x)], axis=1)


@pytest.mark.parametrize("jac", [None, jacobian, "2-point", "3-point", "cs"])
@pytest.mark.parametrize("method", [None, "trf", "dogbox", "lm"])
def test_jac_and_method(jac, method):
    assert_found(jaxfit.curve_fit(decay, T, Y, jac=jac, method=method)[0])


def test_jac_that_says_each_column_by_itself_is_used():
    """Half the slope of `a` is no derivative of the model: no success is claimed."""

    def wrong(x, a, b, c):
        return jacobian(x, a, b, c) * jnp.array([1.0, 1.0, -1.0])

    with pytest.raises(RuntimeError, match="jac, if given, is its derivative"):
        jaxfit.curve_fit(decay, T, Y, jac=wrong)


@pytest.mark.parametrize("name", ["maxfev", "max_nfev"])
def test_failure_says_where_and_what_to_try(name):
    with pytest.raises(RuntimeError) as caught:
        jaxfit.curve_fit(decay, T, Y, [100.0, 30.0, -50.0], **{name: 2})
    message = str(caught.value)
    for part in (
        *("Optimal parameters not found", "(max_nfev) is exceeded", "2 evaluations"),
        *("stood at p = [", "half sum of squares", "Give a start p0"),
    ):
        assert part in message


def test_unknown_covariance():
    with pytest.warns(OptimizeWarning, match="could not be estimated"):
        _, pcov = jaxfit.curve_fit(lambda x, a, b: (a + b) * x, T, Y)
    assert np.isinf(pcov).all()


def test_full_output():
    found = jaxfit.curve_fit(decay, T, Y, sigma=SIGMA, full_output=True)
    expected = scipy.optimize.curve_fit(
        in_numpy, T, Y, POPT, sigma=SIGMA, full_output=True, xtol=1e-14, ftol=1e-14
    )
    info, theirs = found[2], expected[2]
    assert set(info) == set(theirs)
    np.testing.assert_allclose(info["fvec"], theirs["fvec"], rtol=1e-5, atol=1e-7)
    assert info["fjac"].shape == theirs["fjac"].shape
    r, q = np.triu(info["fjac"].T[:3]), info["qtf"]
    order = info["ipvt"] - 1
    slope = jacobian(T, *found[0]) / SIGMA[:, None]
    np.testing.assert_allclose(r.T @ r, (slope.T @ slope)[order][:, order], rtol=1e-9)
    np.testing.assert_allclose(r.T @ q, (slope.T @ info["fvec"])[order], atol=1e-7)
    assert isinstance(found[3], str)
    assert found[4] in (1, 2, 3, 4)


def test_keywords_of_least_squares(capsys):
    """They arrive; `diag` is SciPy's inverse scale."""
    seen = []
    popt, _ = jaxfit.curve_fit(
        *(decay, T, Y),
        **{"ftol": 1e-12, "x_scale": [1.0, 0.5, 2.0], "loss": "soft_l1"},
        **{"f_scale": 10.0, "verbose": 2, "callback": lambda x: seen.append(x)},
        **{"tr_solver": "exact", "tr_options": {}, "diff_step": 1e-3},
    )
    np.testing.assert_allclose(popt, POPT, rtol=1e-3)
    assert len(seen) > 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == (
        "Iteration Total nfev Cost Cost reduction Step norm Optimality".split()
    )
    assert lines[-1].startswith("Function evaluations")
    assert_found(jaxfit.curve_fit(decay, T, Y, diag=[1.0, 2.0, 0.5])[0])


# What is compiled


TRACES = []  # a global that a model writes to does not make it another model


def counted():
    """The model as a function made anew, which says when it is traced."""

    def model(x, a, b, c):
        TRACES.append(len(x))
        return decay(x, a, b, c)

    return model


def test_a_function_made_anew_is_not_traced_again():
    TRACES.clear()
    for scale in (1.0, 2.0, 3.0):
        popt, _ = jaxfit.curve_fit(counted(), T, scale * Y)
        np.testing.assert_allclose(popt, POPT * [scale, 1, scale], rtol=1e-6)
    assert len(TRACES) == 1


@pytest.mark.parametrize("sigma", [None, SIGMA, np.diag(SIGMA**2)])
def test_rowwise_compiles_once_for_many_lengths(sigma):
    """And only then: without it nothing is padded."""
    TRACES.clear()
    for m in (30, 29, 27, 26):
        cut = sigma if sigma is None else sigma[(slice(m),) * sigma.ndim]
        arguments = {"sigma": cut, "absolute_sigma": sigma is not None}
        popt, pcov = jaxfit.curve_fit(
            counted(), T[:m], Y[:m], rowwise=True, **arguments
        )
        if m == 26:
            expected, covariance = jaxfit.curve_fit(decay, T[:m], Y[:m], **arguments)
            np.testing.assert_allclose(popt, expected, rtol=1e-7)
            np.testing.assert_allclose(pcov, covariance, rtol=1e-6)
    assert len(TRACES) == 1
    assert TRACES[0] >= 30
    jaxfit.curve_fit(counted(), T[:26], Y[:26], **arguments)
    assert TRACES[1:] == [26]


def test_rowwise_pads_the_axis_of_the_points_only():
    x = np.stack([T, T**2, np.ones(30)], axis=0)

    def model(x, a, b, c):
        assert x.shape[0] == 3
        return a * x[0] + b * x[1] + c * x[2]

    expected, _ = jaxfit.curve_fit(model, x, Y)
    found, _, info, *_ = jaxfit.curve_fit(model, x, Y, rowwise=True, full_output=True)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert info["fvec"].shape == (30,)


def test_a_model_written_with_numpy():
    found, _ = jaxfit.curve_fit(in_numpy, T, Y)
    expected, _ = jaxfit.curve_fit(decay, T, Y)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


SETTINGS = """
import sys
import jax, jax.numpy as jnp, numpy as np

before = dict(jax.config.values)
mine = jnp.arange(3.0)
import jaxfit

heavy = "scipy.optimize", "scipy.stats", "matplotlib", "optax", "pandas", "xarray"
assert not [name for name in heavy if name in sys.modules]
x = np.linspace(0, 4, 30)
y = 2.5 * np.exp(-1.3 * x) + 0.5
popt, pcov = jaxfit.curve_fit(lambda x, a, b, c: a * jnp.exp(-b * x) + c, x, y)
assert popt.dtype == pcov.dtype == np.float64
assert np.max(np.abs(popt - [2.5, 1.3, 0.5])) < 1e-10, popt
popt, pcov = jaxfit.curve_fit(lambda x, a, b, c: a * np.exp(-b * x) + c, x, y)
assert np.max(np.abs(popt - [2.5, 1.3, 0.5])) < 1e-10, popt
assert "scipy.special" not in sys.modules
found = jaxfit.least_squares(lambda x: jnp.stack([x[0] - 1, x[1] - x[0]]), [0.0, 0.0])
assert found.x.dtype == found.jac.dtype == np.float64
assert dict(jax.config.values) == before
assert mine.dtype == jnp.arange(3.0).dtype == (mine * jnp.ones(3)).dtype == jnp.float32
assert jax.jit(lambda x: x * 2.0)(mine).dtype == jnp.float32
"""


def test_a_program_in_float32_keeps_its_settings():
    """float64 inside, nothing changed outside; nothing heavy is imported."""
    run = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:jaxfit", "-c", SETTINGS],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
