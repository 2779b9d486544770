"""Errors in x: published values, ODRPACK, what a fit shows of them and refuses."""

from typing import NamedTuple

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

import jaxfit
from jaxfit import losses, models

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Pearson's data (Phil. Mag. 2, 1901) with the weights of York (Can. J. Phys. 44, 1966).
PEARSON = {
    "x": np.array([0.0, 0.9, 1.8, 2.6, 3.3, 4.4, 5.2, 6.1, 6.5, 7.4]),
    "y": np.array([5.9, 5.4, 4.4, 4.6, 3.5, 3.7, 2.8, 2.8, 2.4, 1.5]),
    "sigma_x": np.array([1000, 1000, 500, 800, 200, 80, 60, 20, 1.8, 1.0]) ** -0.5,
    "sigma": np.array([1, 1.8, 4, 8, 20, 20, 70, 70, 100, 500]) ** -0.5,
}
# The first example of the ODRPACK user guides (Boggs et al., NISTIR 4834, 1992).
GUIDE = {
    "x": np.array([0, 0, 5, 7, 7.5, 10, 16, 26, 30, 34, 34.5, 100]),
    "y": np.array(
        [1265, 1263.6, 1258, 1254, 1253, 1249.8, 1237, 1218, 1220.6, 1213.8, 1215.5]
        + [1212]
    ),
    "sigma_x": np.ones(12),
    "sigma": np.ones(12),
}
RANDOM = np.random.default_rng(0)
M = 40


def guide(x, a, b, c):
    return a + b * (jnp.exp(c * x) - 1) ** 2


def surface(x, a, b, c):
    return a + b * x[0] + jnp.exp(c * x[1])


def simulated(model, exact, sigma, sigma_x, **truth):
    """Data with normal errors in both."""
    y = np.asarray(model(exact, **truth))
    x = exact + sigma_x * RANDOM.normal(size=np.shape(exact))
    y = y + sigma * RANDOM.normal(size=y.shape)
    return {"x": x, "y": y, "sigma": sigma, "sigma_x": sigma_x}


UNEVEN = np.where(np.arange(M) % 5 == 0, 0, RANDOM.uniform(0.02, 0.1, M))  # some exact
DECAY = simulated(
    models.Exponential(),
    np.linspace(0, 4, M),
    RANDOM.uniform(0.02, 0.2, M),
    UNEVEN,
    amplitude=5.0,
    rate=1.2,
)
SURFACE = simulated(
    surface,
    RANDOM.uniform(0, 2, (2, M)),
    np.full(M, 0.1),
    np.array([[0.05], [0.1]]) * np.ones(M),
    a=1.0,
    b=2.0,
    c=0.5,
)

# model, data, p0, and for ODRPACK: function, derivatives by parameters and by x
CASES = {
    "line": (
        models.Linear(),
        PEARSON,
        None,
        lambda x, p: p[0] * x + p[1],
        lambda x, p: np.stack([x, np.ones_like(x)]),
        lambda x, p: p[0] * np.ones_like(x),
    ),
    "guide": (
        guide,
        GUIDE,
        [1500, -50, -0.1],
        lambda x, p: p[0] + p[1] * (np.exp(p[2] * x) - 1) ** 2,
        lambda x, p: np.stack(
            [
                np.ones_like(x),
                (np.exp(p[2] * x) - 1) ** 2,
                2 * p[1] * (np.exp(p[2] * x) - 1) * x * np.exp(p[2] * x),
            ]
        ),
        lambda x, p: 2 * p[1] * p[2] * (np.exp(p[2] * x) - 1) * np.exp(p[2] * x),
    ),
    "decay": (
        models.Exponential(),
        DECAY,
        None,
        lambda x, p: p[0] * np.exp(-p[1] * x),
        lambda x, p: np.stack([np.exp(-p[1] * x), -p[0] * x * np.exp(-p[1] * x)]),
        lambda x, p: -p[0] * p[1] * np.exp(-p[1] * x),
    ),
    "surface": (
        surface,
        SURFACE,
        [1.0, 1.0, 1.0],
        lambda x, p: p[0] + p[1] * x[0] + np.exp(p[2] * x[1]),
        lambda x, p: np.stack([np.ones_like(x[0]), x[0], x[1] * np.exp(p[2] * x[1])]),
        lambda x, p: np.stack([p[1] * np.ones_like(x[0]), p[2] * np.exp(p[2] * x[1])]),
    ),
}


@pytest.fixture(scope="module")
def fits():
    return {
        name: jaxfit.fit(case[0], **case[1], p0=case[2]) for name, case in CASES.items()
    }


# Values


def test_published_values():
    """To the digits that are printed; the errors are those of (JᵀWJ)⁻¹ there too."""
    fit = jaxfit.fit(models.Linear(), **PEARSON, absolute_sigma=True)
    np.testing.assert_allclose(fit["slope"].value, -0.480533407, atol=5e-10)
    np.testing.assert_allclose(fit["intercept"].value, 5.47991022, atol=5e-9)
    np.testing.assert_allclose(fit["slope"].stderr, 0.057985, atol=5e-7)
    np.testing.assert_allclose(fit["intercept"].stderr, 0.294971, atol=5e-7)
    scale = np.sqrt(fit.reduced_chi_square)
    np.testing.assert_allclose(scale, 1.2179, atol=5e-5)
    scaled = jaxfit.fit(models.Linear(), **PEARSON)
    np.testing.assert_allclose(
        [*scaled.errors.values()],
        scale * np.array([*fit.errors.values()]),
        rtol=1e-9,
    )
    assert fit.dof == 8


class Dense(NamedTuple):
    """All residuals, and their derivatives by parameters and scaled corrections."""

    residual: np.ndarray
    jacobian: np.ndarray


def dense(name, p, delta):
    """Residuals along y and along x, by NumPy."""
    _, data, _, function, by_parameters, by_x = CASES[name]
    moved, sigma, errors = data["x"] + delta, data["sigma"], data["sigma_x"]
    ratio = np.where(errors > 0, delta / np.where(errors > 0, errors, 1), 0).ravel()
    slopes = np.reshape(errors * by_x(moved, p), (-1, len(sigma)))
    along_y = [by_parameters(moved, p).T / sigma[:, None]]
    along_y += [np.diag(slope / sigma) for slope in slopes]
    along_x = np.zeros((ratio.size, len(p))), np.eye(ratio.size)
    return Dense(
        residual=np.concatenate([(function(moved, p) - data["y"]) / sigma, ratio]),
        jacobian=np.concatenate(
            [np.concatenate(rows, axis=1) for rows in (along_y, along_x)]
        ),
    )


def polished(name, p, delta):
    """Where steps of Gauss and Newton take a solution, to the last digits."""
    errors = CASES[name][1]["sigma_x"]
    for _ in range(30):
        rows = dense(name, p, delta)
        step = np.linalg.lstsq(rows.jacobian, -rows.residual, rcond=None)[0]
        p = p + step[: len(p)]
        delta = delta + errors * step[len(p) :].reshape(errors.shape)
    return p


def covariance(name, fit):
    """That of the parameters, from the inverse over all corrections too."""
    p = np.array([*fit.values.values()])
    jacobian = dense(name, p, fit.x_corrections).jacobian
    inverse = np.linalg.inv(jacobian.T @ jacobian)[: len(p), : len(p)]
    return inverse * fit.chi_square / fit.dof


@pytest.mark.parametrize("name", CASES)
def test_beside_odrpack(name, fits):
    odrpack = pytest.importorskip("odrpack")
    _, data, p0, function, by_parameters, by_x = CASES[name]
    fit = fits[name]
    errors = data["sigma_x"]
    theirs = odrpack.odr_fit(
        function,
        data["x"],
        data["y"],
        np.array([*fit.values.values()] if p0 is None else p0, float),
        weight_x=1 / np.where(errors > 0, errors, 1) ** 2,
        weight_y=1 / data["sigma"] ** 2,
        fix_x=errors == 0,
        jac_beta=by_parameters,
        jac_x=by_x,
        sstol=1e-15,
        partol=1e-15,
        maxit=5000,
    )
    np.testing.assert_allclose([*fit.values.values()], theirs.beta, rtol=1e-7)
    best = polished(name, theirs.beta, theirs.delta)
    np.testing.assert_allclose([*fit.values.values()], best, rtol=1e-9)
    np.testing.assert_allclose([*fit.errors.values()], theirs.sd_beta, rtol=1e-6)
    np.testing.assert_allclose(fit.covariance, theirs.res_var * theirs.cov_beta, 1e-5)
    np.testing.assert_allclose(fit.chi_square, theirs.sum_square, rtol=1e-12)
    np.testing.assert_allclose(fit.sums_of_squares.x, theirs.sum_square_delta, 1e-6)
    size = np.max(np.abs(theirs.delta))
    np.testing.assert_allclose(fit.x_corrections, theirs.delta, atol=1e-6 * size)
    np.testing.assert_allclose(fit.best_fit, theirs.yest, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_covariance_is_that_of_the_dense_matrix(name, fits):
    fit = fits[name]
    np.testing.assert_allclose(fit.covariance, covariance(name, fit), rtol=1e-6)


def test_no_errors_in_x_are_an_ordinary_fit():
    data = {name: DECAY[name] for name in ("x", "y", "sigma")}
    plain = jaxfit.fit(models.Exponential(), **data)
    zero = jaxfit.fit(models.Exponential(), **data, sigma_x=0.0)
    assert zero.x_corrections is None
    np.testing.assert_array_equal(zero.numbers.x, plain.numbers.x)
    tiny = jaxfit.fit(models.Exponential(), **data, sigma_x=1e-9)
    np.testing.assert_allclose(tiny.numbers.x, plain.numbers.x, rtol=1e-7)
    np.testing.assert_allclose(tiny.covariance, plain.covariance, rtol=1e-6)
    np.testing.assert_allclose(tiny.goodness, plain.goodness, rtol=1e-6)


def test_points_that_are_exact_stay(fits):
    moved = fits["decay"].x_corrections
    assert (moved[UNEVEN == 0] == 0).all()
    assert (moved[UNEVEN > 0] != 0).all()


@pytest.mark.parametrize("noise", [0.0, 1e-10, 1e-6])
def test_points_on_the_curve(noise):
    x = np.linspace(0, 4, M)
    y = 5 * np.exp(-1.2 * x) + noise * RANDOM.normal(size=M)
    fit = jaxfit.fit(models.Exponential(), x, y, sigma=0.1, sigma_x=0.1)
    np.testing.assert_allclose(fit.numbers.x, [5, 1.2], rtol=1e-12 + noise)


def test_a_point_with_a_parameter_of_its_own():
    """Its residuals are rounding, beside others that are not."""

    def model(x, slope, intercept, last):
        return jnp.where(x > 6, last, slope * x + intercept)

    x = np.append(np.linspace(0, 4, M - 1), 7.0)
    y = np.append(2 * x[:-1] + 1 + 0.1 * RANDOM.normal(size=M - 1), 3.0)
    fit = jaxfit.fit(model, x, y, sigma=0.1, sigma_x=0.1)
    np.testing.assert_allclose(fit["last"].value, 3, rtol=1e-12)


# Several coordinates, and the forms in which errors are given


def test_coordinates_as_a_tuple(fits):
    x, errors = SURFACE["x"], SURFACE["sigma_x"]
    settings = {"y": SURFACE["y"], "sigma": 0.1, "p0": [1.0, 1.0, 1.0]}
    fit = jaxfit.fit(surface, tuple(x), sigma_x=(0.05, errors[1]), **settings)
    np.testing.assert_allclose(fit.numbers.x, fits["surface"].numbers.x, rtol=1e-10)
    for ours, theirs in zip(
        fit.x_corrections, fits["surface"].x_corrections, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    exact = [
        jaxfit.fit(surface, tuple(x), sigma_x=(0.05, none), **settings)
        for none in (None, 0.0, np.zeros(M))
    ]
    for one in exact:
        np.testing.assert_array_equal(one.x_corrections[1], 0)
        np.testing.assert_allclose(one.numbers.x, exact[0].numbers.x, rtol=1e-12)


def test_an_image_has_coordinates_that_broadcast():
    x, y = np.linspace(0, 2, 6)[:, None], np.linspace(0, 1, 7)
    z = np.asarray(surface((x, y), 1.0, 2.0, 0.5)) + 0.1 * RANDOM.normal(size=(6, 7))
    settings = {"sigma": 0.1, "sigma_x": (0.05, 0.1), "p0": [1.0, 1.0, 1.0]}
    fit = jaxfit.fit(surface, (x, y), z, **settings)
    flat = [np.broadcast_to(axis, z.shape).ravel() for axis in (x, y)]
    other = jaxfit.fit(surface, tuple(flat), z.ravel(), **settings)
    np.testing.assert_allclose(fit.numbers.x, other.numbers.x, rtol=1e-12)
    assert fit.x_corrections[0].shape == (6, 7)


def test_dates_with_errors_as_spans_of_time():
    days = DECAY["x"] * 10
    dates = np.datetime64("2026-01-01", "s") + (days * 86400).astype("m8[s]")
    data = {"y": DECAY["y"], "sigma": DECAY["sigma"]}
    since = (dates - dates.min()) / np.timedelta64(1, "D")
    numbers = jaxfit.fit(models.Exponential(), since, sigma_x=0.5, **data)
    spans = [np.timedelta64(12, "h"), 0.5, np.full(M, np.timedelta64(43200, "s"))]
    for span in spans:
        fit = jaxfit.fit(models.Exponential(), dates, sigma_x=span, **data)
        np.testing.assert_allclose(fit.numbers.x, numbers.numbers.x, rtol=1e-9)


def test_far_from_zero():
    """Where x counts from does not matter, also where it spoils digits of x."""
    far = {**DECAY, "x": DECAY["x"] + 1e6}
    near = jaxfit.fit(models.Exponential(), **DECAY)
    fit = jaxfit.fit(models.Exponential(), **far)
    np.testing.assert_allclose(fit["rate"].value, near["rate"].value, rtol=1e-7)
    np.testing.assert_allclose(fit["rate"].stderr, near["rate"].stderr, rtol=1e-5)
    np.testing.assert_allclose(fit.chi_square, near.chi_square, rtol=1e-7)


# What is asked of parameters


@pytest.mark.parametrize("absolute", [False, True])
def test_a_prior_is_one_row(absolute):
    """As a further point at x = 0, which is exact, that measures the intercept."""
    settings = {"absolute_sigma": absolute}
    prior = jaxfit.fit(
        models.Linear(), **PEARSON, prior={"intercept": (5.0, 0.1)}, **settings
    )
    further = {"x": 0.0, "y": 5.0, "sigma_x": 0.0, "sigma": 0.1}
    data = {name: np.append(PEARSON[name], further[name]) for name in PEARSON}
    point = jaxfit.fit(models.Linear(), **data, **settings)
    np.testing.assert_allclose(prior.numbers.x, point.numbers.x, rtol=1e-9)
    np.testing.assert_allclose(prior.covariance, point.covariance, rtol=1e-7)
    np.testing.assert_allclose(prior.chi_square, point.chi_square, rtol=1e-10)
    assert (prior.dof, prior.ndata, point.dof, point.ndata) == (9, 10, 9, 11)


def test_fixed_tied_and_bounded():
    free = jaxfit.fit(models.Linear(), **PEARSON)
    slope = free["slope"].value
    fixed = jaxfit.fit(models.Linear(), **PEARSON, fixed={"slope": slope})
    np.testing.assert_allclose(fixed["intercept"].value, free["intercept"].value, 1e-8)
    assert fixed["intercept"].stderr < 0.5 * free["intercept"].stderr
    tied = jaxfit.fit(
        models.Linear(), **PEARSON, tie={"slope": lambda p: slope + 0 * p["intercept"]}
    )
    np.testing.assert_allclose(tied["intercept"].value, free["intercept"].value, 1e-8)
    bounded = jaxfit.fit(models.Linear(), **PEARSON, bounds={"slope": (-0.45, None)})
    assert bounded["slope"].value == -0.45
    assert bounded["slope"].at_bound == -1
    held = jaxfit.fit(models.Linear(), **PEARSON, fixed={"slope": -0.45})
    np.testing.assert_allclose(bounded["intercept"].value, held["intercept"].value)


def test_several_starts():
    best = jaxfit.fit(models.Exponential(), **DECAY, starts=4)
    one = jaxfit.fit(models.Exponential(), **DECAY)
    np.testing.assert_allclose(best.chi_square, one.chi_square, rtol=1e-10)


@pytest.mark.parametrize("lost", ["nan", "masked", "infinite error"])
def test_points_that_do_not_count(lost):
    data = {name: np.array(values) for name, values in DECAY.items()}
    gone = np.isin(np.arange(M), [3, 17])
    kept = {name: values[~gone] for name, values in data.items()}
    policy = {}
    if lost == "nan":
        data["y"][3] = data["x"][17] = np.nan
        policy = {"nan_policy": "omit"}
    elif lost == "masked":
        data["sigma_x"] = np.ma.MaskedArray(data["sigma_x"], gone)
    else:
        data["sigma_x"][3] = data["sigma"][17] = np.inf
    fit = jaxfit.fit(models.Exponential(), **data, **policy)
    other = jaxfit.fit(models.Exponential(), **kept)
    np.testing.assert_allclose(fit.numbers.x, other.numbers.x, rtol=1e-10)
    np.testing.assert_allclose(fit.covariance, other.covariance, rtol=1e-8)
    assert (fit.dof, fit.ndata) == (other.dof, other.ndata) == (36, 38)
    assert np.isnan(fit.x_corrections[gone]).all()
    np.testing.assert_allclose(fit.x_corrections[~gone], other.x_corrections, atol=1e-9)


def test_models_in_numpy():
    def decay(x, amplitude=4.0, rate=1.0):
        return amplitude * np.exp(-rate * x)

    fit = jaxfit.fit(decay, **DECAY)
    other = jaxfit.fit(models.Exponential(), **DECAY)
    np.testing.assert_allclose(fit.numbers.x, other.numbers.x, rtol=1e-9)


# Many data sets


def test_a_batch_is_a_loop_over_fits():
    exact = np.linspace(0, 4, M)
    settings = {"sigma": 0.1, "sigma_x": UNEVEN}
    y = 5 * np.exp(-1.2 * exact) + 0.1 * RANDOM.normal(size=(2, 3, M))
    y[0, 1, 5] = np.nan
    x = exact + UNEVEN * RANDOM.normal(size=M)
    batch = jaxfit.fit_batch(models.Exponential(), x, y, **settings)
    assert batch.success.all()
    for index in np.ndindex(2, 3):
        one = jaxfit.fit(
            models.Exponential(), x, y[index], nan_policy="omit", **settings
        )
        for name in ("amplitude", "rate"):
            value, error = batch.values[name][index], batch.errors[name][index]
            np.testing.assert_allclose(value, one[name].value, rtol=1e-9)
            np.testing.assert_allclose(error, one[name].stderr, rtol=1e-7)
        np.testing.assert_allclose(batch.chi_square[index], one.chi_square, rtol=1e-9)
        assert batch.count[index] - 2 == one.dof
    whole = batch.fit((1, 2))
    np.testing.assert_allclose(whole["rate"].value, batch["rate"][1, 2], rtol=1e-9)
    assert whole.x_corrections.shape == (M,)


# What follows from a fit


def test_residuals_in_both_directions(fits):
    fit, scale = fits["decay"], np.sqrt(fits["decay"].reduced_chi_square)
    along_y = (DECAY["y"] - fit.best_fit) / DECAY["sigma"] / scale
    moved, errors = fit.x_corrections, DECAY["sigma_x"]
    along_x = np.where(errors > 0, moved / np.where(errors > 0, errors, 1), 0) / scale
    np.testing.assert_allclose(fit.standardized_residuals, along_y, atol=1e-12)
    np.testing.assert_allclose(fit.standardized_x_corrections, along_x, atol=1e-12)
    orthogonal = np.sign(along_y) * np.hypot(along_y, along_x)
    np.testing.assert_allclose(fit.orthogonal_residuals, orthogonal, atol=1e-12)
    parts = fit.sums_of_squares
    np.testing.assert_allclose(parts.x + parts.y, fit.chi_square, rtol=1e-10)
    np.testing.assert_allclose(parts.x, scale**2 * (along_x @ along_x), rtol=1e-10)
    assert f"{parts.y:.5g} along y, {parts.x:.5g} along x" in str(fit)
    assert "x has errors" in fit.report()


def test_curves_are_at_x_as_given(fits):
    fit = fits["decay"]
    amplitude, rate = fit.numbers.x
    curve = amplitude * np.exp(-rate * DECAY["x"])
    np.testing.assert_allclose(fit.predict(), curve, rtol=1e-12)
    np.testing.assert_allclose(fit.confidence_band().value, curve, rtol=1e-12)
    moved = amplitude * np.exp(-rate * (DECAY["x"] + fit.x_corrections))
    np.testing.assert_allclose(fit.best_fit, moved, rtol=1e-9)


def test_a_profile_is_made_of_fits_with_errors_in_x():
    fit = jaxfit.fit(models.Linear(), **PEARSON, absolute_sigma=True)
    ends = fit.intervals("profile", 0.68)
    for end in (ends.lower, ends.upper):
        slope = end[ends.names.index("slope")].item()
        held = jaxfit.fit(models.Linear(), **PEARSON, fixed={"slope": slope})
        rise = held.chi_square - fit.chi_square
        np.testing.assert_allclose(rise, 0.994458**2, rtol=1e-4)


def test_the_bootstrap_draws_points():
    fit = jaxfit.fit(models.Exponential(), **DECAY)
    scatter = fit.bootstrap(200, resample="case").stderr
    for name, error in fit.errors.items():
        assert 0.4 * error < scatter[name] < 2.5 * error
    with pytest.raises(ValueError, match="this fit has errors in x too"):
        fit.bootstrap(10)


@pytest.mark.parametrize("name", ["decay", "surface"])
def test_a_file_keeps_it(name, fits, tmp_path):
    fit = fits[name]
    fit.save(tmp_path / "fit.npz")
    model = None if name == "decay" else surface
    again = jaxfit.Fit.load(tmp_path / "fit.npz", model)
    np.testing.assert_array_equal(again.x_corrections, fit.x_corrections)
    assert str(again) == str(fit)
    np.testing.assert_array_equal(again.distances, fit.distances)


def test_the_picture_has_bars_in_both_directions(fits):
    fit = fits["decay"]
    main, lower = fit.plot().axes
    bars = main.containers[0]
    assert bars.has_xerr
    assert bars.has_yerr
    order = np.argsort(DECAY["x"], kind="stable")
    points = lower.containers[0]
    assert not points.has_yerr
    np.testing.assert_allclose(
        points.lines[0].get_ydata(), fit.orthogonal_residuals[order], rtol=1e-12
    )
    assert "orthogonal" in lower.get_ylabel()
    other = fit.plot_residuals().axes[0]
    assert other.get_ylabel() == "orthogonal residual"
    plt.close("all")


# What is refused


def together(x, a=1.0):
    return a * x / jnp.max(x)


def callback(step):
    return None


REFUSED = [
    ({"sigma": None}, "sigma_x is given without sigma"),
    ({"sigma": np.eye(M)}, "sigma is a covariance matrix"),
    ({"y": DECAY["y"] + 1j}, "y is complex"),
    ({"sigma_x": -1.0}, "40 values that are negative or NaN"),
    ({"sigma_x": np.full(M, np.nan)}, "40 values that are negative or NaN"),
    ({"sigma_x": np.ones(3)}, r"sigma_x has the shape \(3,\)"),
    ({"sigma_x": (0.1, 0.1, 0.1)}, r"sigma_x has the shape \(3,\)"),
    ({"loss": losses.Huber(1.0)}, "sigma_x goes with least squares"),
    ({"covariance": "sandwich"}, "covariance='sandwich' is made of single residuals"),
    ({"callback": callback}, "callback and time_limit watch"),
    ({"time_limit": 1.0}, "callback and time_limit watch"),
    ({"model": together}, "does not treat each point by itself"),
    ({"model": lambda x, a=1.0: a * x, "host": True}, "needs a model that can be"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=[w for _, w in REFUSED])
def test_what_is_refused(settings, words):
    arguments = {"model": models.Exponential(), **DECAY, **settings}
    with pytest.raises(ValueError, match=words):
        jaxfit.fit(**arguments)


def test_what_else_is_refused():
    x, y = DECAY["x"], DECAY["y"]
    several = [x, x[:20]], [y, y[:20]]
    with pytest.raises(ValueError, match="there are several"):
        jaxfit.fit(models.Exponential(), *several, sigma=0.1, sigma_x=0.1)
    with pytest.raises(ValueError, match="x has 2 coordinates"):
        jaxfit.fit(surface, (x, x), y, sigma=0.1, sigma_x=(0.1, 0.1, 0.1))
    with pytest.raises(TypeError, match="spans of time"):
        jaxfit.fit(
            models.Exponential(), x, y, sigma=0.1, sigma_x=np.timedelta64(1, "s")
        )
    with pytest.raises(ValueError, match="sigma_x is given without sigma"):
        jaxfit.fit_batch(models.Exponential(), x, y[None], sigma_x=0.1)
    with pytest.raises(ValueError, match="sigma_x goes with least squares"):
        jaxfit.fit_batch(
            models.Exponential(),
            x,
            y[None],
            sigma=0.1,
            sigma_x=0.1,
            loss=losses.Huber(1.0),
        )


def test_curves_that_share_parameters_have_none():
    x = np.linspace(0, 4, 10)
    y = np.stack([2 * x, 3 * x])
    given = {"sigma": 0.1, "sigma_x": 0.1, "shared": "intercept"}
    with pytest.raises(ValueError, match="leave one of the two out"):
        jaxfit.fit_batch(models.Linear(), x, y, **given)
