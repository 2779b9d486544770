"""`fit_batch(shared=...)` beside one dense fit of all curves, with all parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import xarray
from jax.flatten_util import ravel_pytree
from test_first import compilations

import jaxfit
from jaxfit import Status, losses, models
from jaxfit.fitting import _joint_programs

T = np.linspace(0, 5, 30)
SHAPE = (2, 3)
MODEL = models.Exponential() + models.Constant()
NAMES = MODEL.names  # amplitude, rate, c
NOISE = 0.05


def curves(seed=0, shape=SHAPE, rate=0.7):
    random = np.random.default_rng(seed)
    amplitude, c = random.uniform(1, 3, shape), random.uniform(0, 1, shape)
    if np.ndim(rate):  # in place of amplitudes
        amplitude = np.full(shape, 2.0)
    y = amplitude[..., None] * np.exp(-np.multiply.outer(rate, T)) + c[..., None]
    return y + NOISE * random.normal(size=y.shape)


Y = curves()
EQUAL = curves(rate=np.linspace(0.5, 0.9, 6).reshape(SHAPE))
OUTLIERS = np.where(np.random.default_rng(5).random(Y.shape) < 0.1, Y + 1, Y)
HOLES = np.where(np.random.default_rng(6).random(Y.shape) < 0.2, np.nan, Y)
SIGMA = NOISE * np.random.default_rng(7).uniform(0.5, 2, Y.shape)


def curve(p, t=T):
    """The same model by a formula, of numbers or of arrays with a last axis of 1."""
    return p["amplitude"] * jnp.exp(-p["rate"] * t) + p["c"]


# All curves as one problem for `solve`


def dense(
    y,
    shared,
    *,
    sigma=1.0,
    loss=None,
    bounds=None,
    prior=None,
    fixed=None,
    tie=None,
    absolute_sigma=False,
    covariance=None,
):
    """Values, errors and degrees of freedom of all, without any structure."""
    y = np.asarray(y).reshape(-1, len(T))
    sigma = np.broadcast_to(sigma, (*SHAPE, len(T))).reshape(y.shape)
    fixed, tie = fixed or {}, tie or {}
    is_local = [n not in shared for n in NAMES]
    number, start = len(y), {"amplitude": 2.0, "rate": 0.8, "c": 0.5} | fixed
    p0 = {
        name: np.full(number, start[name]) if local else np.float64(start[name])
        for name, local in zip(NAMES, is_local, strict=True)
        if name not in fixed and name not in tie
    }

    def whole(p):
        values = {n: jnp.float64(v) for n, v in fixed.items()} | p
        return values | {n: f(values) for n, f in tie.items()}

    def residual(p, _):
        of_points = {n: jnp.reshape(v, (-1, 1)) for n, v in whole(p).items()}
        rows = {"data": (curve(of_points) - jnp.nan_to_num(y)) / sigma}
        for name, (mean, deviation) in (prior or {}).items():
            rows[name] = jnp.ravel((p[name] - mean) / deviation)
        return rows

    limits = None
    if bounds is not None:
        limits = tuple(
            {n: bounds.get(n, (-np.inf, np.inf))[side] for n in p0} for side in (0, 1)
        )
    weights = {"data": np.isfinite(y) * 1.0}
    weights |= dict.fromkeys(prior or {}, 1.0)
    solution = jaxfit.solve(
        residual, p0, None, bounds=limits, weights=weights, loss=loss
    )
    assert solution.success
    matrix = np.asarray(solution.covariance(absolute_sigma))
    if covariance == "sandwich" or (loss is not None and covariance is None):
        matrix = sandwich(residual, solution, weights, loss)
    unravel = ravel_pytree(solution.x)[1]
    jacobian = jax.jacfwd(lambda v: ravel_pytree(whole(unravel(v)))[0])
    slope = jacobian(ravel_pytree(solution.x)[0])
    errors = np.sqrt(np.diagonal(slope @ matrix @ slope.T))
    everything = whole(solution.x)
    back = ravel_pytree(everything)[1]
    return everything, back(jnp.asarray(errors)), solution


def sandwich(residual, solution, weights, loss):
    """Huber's sandwich of the dense problem, with m / (m - n)."""
    x, unravel = ravel_pytree(solution.x)

    def rows(x):
        parts = residual(unravel(x), None)
        return jnp.concatenate(
            [jnp.ravel(jnp.sqrt(weights[k]) * part) for k, part in parts.items()]
        )

    r, slopes = np.asarray(rows(x)), np.asarray(jax.jacfwd(rows)(x))
    loss = losses.Linear() if loss is None else loss
    z = (r / loss.scale) ** 2
    _, slope, curvature = map(np.asarray, loss.evaluate(jnp.asarray(z)))
    bread = np.linalg.inv(slopes.T @ ((slope + 2 * z * curvature)[:, None] * slopes))
    gradients = (slope * r)[:, None] * slopes
    count = int(sum(np.broadcast_to(w, 1).sum() for w in [solution.count]))
    return bread @ gradients.T @ gradients @ bread * count / (count - len(x))


def assert_alike(fits, expected, rtol=1e-7):
    values, errors, solution = expected
    assert fits.success.all()
    for name in NAMES:
        value, error = np.asarray(values[name]), np.asarray(errors[name])
        shape = () if name in fits.single else SHAPE
        assert np.shape(fits[name]) == np.shape(fits.errors[name]) == shape
        value, error = (v.reshape(SHAPE if v.ndim else ()) for v in (value, error))
        atol = 1e-2 * rtol * np.max(error)
        np.testing.assert_allclose(fits[name], value, rtol=rtol, atol=atol)
        np.testing.assert_allclose(fits.errors[name], error, rtol=rtol, atol=0)
    free = sum(np.size(leaf) for leaf in jax.tree.leaves(solution.x))
    assert fits.dof == int(solution.count) - free
    chi_square = 2 * float(solution.cost)
    np.testing.assert_allclose(fits.reduced_chi_square, chi_square / fits.dof)
    assert fits.together.count == int(solution.count)


CASES = {
    "plain": {},
    "two": {"shared": ("c", "rate"), "y": HOLES, "sigma": SIGMA},
    "nonlinear": {"shared": "amplitude", "y": EQUAL, "absolute_sigma": True},
    "bounds": {"bounds": {"rate": (0.75, 9.0), "c": (0.3, 0.8)}},
    "priors": {"prior": {"rate": (0.6, 0.01), "c": (0.5, 0.1)}, "sigma": SIGMA},
    "fixed": {"fixed": {"c": 0.5}},
    "tied": {"tie": {"c": lambda p: p["rate"] ** 2}},
    "sandwich": {"y": HOLES, "covariance": "sandwich"},
    "gram": {"y": OUTLIERS, "loss": losses.Cauchy(0.1), "covariance": "gram"},
    "huber": {"y": OUTLIERS, "loss": losses.Huber(1.5), "sigma": NOISE},
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_dense_fit(case):
    settings = {"shared": "rate", "y": Y, **CASES[case]}
    y, shared = settings.pop("y"), settings.pop("shared")
    fits = jaxfit.fit_batch(MODEL, T, y, shared=shared, **settings)
    names = (shared,) if isinstance(shared, str) else shared
    values, errors, solution = dense(y, names, **settings)
    rtol = 1e-6 if case in ("huber", "gram") else 1e-7
    assert isinstance(fits["c"], float) == (case in ("two", "tied"))
    assert_alike(fits, (values, errors, solution), rtol)


def test_it_is_scipys_fit_of_all_curves():
    def residual(v):
        rate, rest = v[0], v[1:].reshape(2, -1, 1)
        return (rest[0] * np.exp(-rate * T) + rest[1] - Y.reshape(-1, 30)).ravel()

    found = scipy.optimize.least_squares(
        residual, np.full(13, 0.6), jac="3-point", xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    fits = jaxfit.fit_batch(MODEL, T, Y, shared="rate")
    np.testing.assert_allclose(fits["rate"], found.x[0], rtol=1e-7)
    np.testing.assert_allclose(fits["c"].ravel(), found.x[7:], rtol=1e-6)
    scale = 2 * found.cost / (Y.size - 13)
    covariance = scale * np.linalg.inv(found.jac.T @ found.jac)
    np.testing.assert_allclose(fits.errors["rate"], covariance[0, 0] ** 0.5, rtol=1e-6)


# How it is done


@pytest.mark.parametrize(
    ("settings", "is_linear"),
    [
        ({}, True),
        ({"shared": "amplitude"}, False),
        ({"bounds": {"c": (0, None)}}, False),
        ({"loss": losses.Huber(0.1)}, False),
        ({"prior": {"c": (0.5, 0.1)}}, True),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_parameters_that_enter_linearly_are_eliminated(
    settings, is_linear, monkeypatch
):
    asked = []
    before = _joint_programs.JointInputs.is_linear.fget

    def noted(inputs):
        asked.append(before(inputs))
        raise StopIteration  # what follows is compiled elsewhere

    monkeypatch.setattr(_joint_programs.JointInputs, "is_linear", property(noted))

    def decay(x, amplitude, rate, c):  # of its own, which no program is known of
        return amplitude * jnp.exp(-rate * x) + c

    with pytest.raises((StopIteration, RuntimeError)):
        jaxfit.fit_batch(decay, T, Y, **{"shared": "rate", **settings})
    assert set(asked) == {is_linear}


def test_other_data_compile_nothing():
    for start in (None, {"rate": 1.0}):
        jaxfit.fit_batch(MODEL, T, Y, shared="rate", p0=start)
    with compilations() as names:
        jaxfit.fit_batch(MODEL, T, curves(3), shared="rate", p0={"rate": 2.0})
        jaxfit.fit_batch(MODEL, T + 0.1, curves(4), shared="rate")
    assert not names


def test_a_start_that_is_given_is_taken():
    start = {"rate": 30.0}
    fits = jaxfit.fit_batch(MODEL, T, Y, shared="rate", p0=start)
    assert fits.fit((0, 0)).params["rate"].start == 30.0
    near = jaxfit.fit_batch(MODEL, T, Y, shared="rate")
    np.testing.assert_allclose(fits["rate"], near["rate"], rtol=1e-8)


def test_curves_too_short_to_have_a_rate_have_one_together():
    """Three points each, with three parameters: no errors alone."""
    t, y = T[[0, 9, 25]], Y[..., [0, 9, 25]]
    fits = jaxfit.fit_batch(MODEL, t, y, shared="rate")
    assert fits.success.all()
    assert fits.dof == 18 - 13
    assert 0 < fits.errors["rate"] < 0.2
    assert np.isfinite(fits.errors["c"]).all()


# What is lost, and what is not determined


def test_a_curve_without_points_does_not_count():
    y = Y.copy()
    y[0, 0] = np.nan
    fits = jaxfit.fit_batch(MODEL, T, y, shared="rate", prior={"rate": (0.7, 0.1)})
    assert fits.status[0, 0] == Status.NONFINITE_START
    assert fits.success.sum() == 5
    assert np.isnan(fits["c"][0, 0])
    assert np.isnan(fits.errors["c"][0, 0])
    rest = np.delete(y.reshape(6, -1), 0, axis=0)
    few = jaxfit.fit_batch(MODEL, T, rest, shared="rate", prior={"rate": (0.7, 0.1)})
    np.testing.assert_allclose(fits["rate"], few["rate"], rtol=1e-9)
    np.testing.assert_allclose(fits.errors["rate"], few.errors["rate"], rtol=1e-9)
    np.testing.assert_allclose(fits["c"].ravel()[1:], few["c"], rtol=1e-9)
    assert fits.dof == few.dof == 5 * 30 + 1 - 11
    assert np.isnan(fits.to_dataframe().loc[(0, 0), "c"])
    assert "NONFINITE_START" in str(fits)
    with pytest.raises(jaxfit.FitError):
        fits.fit((0, 0))
    nothing = jaxfit.fit_batch(MODEL, T, np.full_like(Y, np.nan), shared="rate")
    assert not nothing.success.any()
    assert np.isnan(nothing["rate"])
    assert "0 degrees" not in str(nothing)


def test_what_is_not_determined_is_nan_and_told():
    dark = Y.copy()
    dark[1, 2] = 0.0  # whose amplitude is 0

    def decay(x, rate, amplitude):
        return amplitude * jnp.exp(-rate * x) + 0 * rate

    fits = jaxfit.fit_batch(decay, T, dark, shared="amplitude")
    assert fits.determined["amplitude"] is True
    assert fits.determined["rate"].all()
    nothing = jaxfit.fit_batch(decay, T, 0 * Y, shared="rate", p0={"amplitude": 0.0})
    assert nothing.determined["rate"] is False
    assert np.isnan(nothing["rate"])
    assert nothing.errors["rate"] == np.inf
    assert "! The data do not determine rate." in str(nothing)


# One curve of them


def test_one_curve_has_the_joint_numbers():
    settings = {"sigma": SIGMA, "shared": "rate"}
    fits = jaxfit.fit_batch(MODEL, T, HOLES, **settings)
    values, errors, solution = dense(HOLES, ("rate",), sigma=SIGMA)
    one = fits.fit((1, 0))
    for name in NAMES:
        value, error = (np.ravel(tree[name]) for tree in (values, errors))
        k = 0 if name == "rate" else 3
        np.testing.assert_allclose(one.values[name], value[k], rtol=1e-7)
        np.testing.assert_allclose(one.errors[name], error[k], rtol=1e-7)
    flat = {name: k for k, name in enumerate(sorted(NAMES))}  # as `ravel` has them
    places = np.array([[3, 12, 9][flat[n]] for n in one.varied])
    assert list(flat) == ["amplitude", "c", "rate"]
    places = np.array([{"amplitude": 3, "c": 9, "rate": 12}[n] for n in one.varied])
    whole = np.asarray(solution.covariance())
    np.testing.assert_allclose(one.covariance, whole[np.ix_(places, places)], rtol=1e-6)
    np.testing.assert_allclose(one.covariance, fits.covariance[1, 0])
    assert one.ndata == np.isfinite(HOLES[1, 0]).sum() == fits.count[1, 0]
    assert one.dof == fits.dof
    assert one.reduced_chi_square == fits.reduced_chi_square
    rows = (one.best_fit - HOLES[1, 0]) / SIGMA[1, 0]
    np.testing.assert_allclose(one.chi_square, np.nansum(rows**2))
    np.testing.assert_allclose(fits.chi_square.sum(), 2 * float(solution.cost))
    np.testing.assert_allclose(one.best_fit, curve(one.values), rtol=1e-12)
    assert one["lifetime"].value == fits["lifetime"] == 1 / fits["rate"]
    interval = one.intervals("wald", 0.95)
    assert "rate" in str(interval)
    band = one.confidence_band(T)
    assert np.all(band.stderr > 0)
    assert "One of 6 data sets that share rate" in str(one)
    assert "nan" in one.report()
    assert one.to_dict()["goodness"]["aic"] is None
    one.plot()
    np.testing.assert_array_equal(fits.fit((-1, 0)).covariance, one.covariance)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda one: one.profile(), "A profile fits data anew"),
        (lambda one: one.intervals("profile"), "A profile fits data anew"),
        (lambda one: one.contour("rate", "c"), "A profile fits data anew"),
        (lambda one: one.bootstrap(10), "A bootstrap fits data anew"),
        (lambda one: one.save("one.npz"), "a file holds one fit alone"),
    ],
)
def test_what_would_fit_one_curve_anew_is_refused(ask, message):
    one = jaxfit.fit_batch(MODEL, T, Y, shared="rate").fit((0, 1))
    with pytest.raises(ValueError, match=message):
        ask(one)


def test_one_curve_takes_no_settings():
    fits = jaxfit.fit_batch(MODEL, T, Y, shared="rate")
    with pytest.raises(TypeError, match="was fitted together with others"):
        fits.fit((0, 1), loss=losses.Huber(1.0))


# For people


def test_the_report_tells_what_is_shared_first():
    fits = jaxfit.fit_batch(MODEL, T, Y, shared="rate")
    told = str(fits).splitlines()
    text = " ".join(told)
    assert "Exponential + Constant: 6 data sets (2, 3) that share rate," in text
    assert "180 points, 167 degrees of freedom" in text
    assert max(map(len, told)) <= 88
    rows = {line.split()[0]: line.split()[1:] for line in told if line.strip()}
    assert float(rows["rate"][0]) == pytest.approx(fits["rate"], rel=1e-2)
    assert float(rows["rate"][1]) == pytest.approx(fits.errors["rate"], rel=0.06)
    assert float(rows["lifetime"][0]) == pytest.approx(1 / fits["rate"], rel=1e-2)
    assert float(rows["c"][0]) == pytest.approx(np.median(fits["c"]), rel=1e-4)
    assert list(rows).index("rate") < list(rows).index("c")
    at_bound = jaxfit.fit_batch(MODEL, T, Y, shared="rate", bounds={"rate": (0.9, 2)})
    assert at_bound.at_bound["rate"] == -1
    assert "at lower bound" in str(at_bound)


def test_tables_have_what_is_shared_among_maps():
    fits = jaxfit.fit_batch(MODEL, T, Y, shared="rate")
    frame, data = fits.to_dataframe(), fits.to_xarray()
    assert (frame["rate"] == fits["rate"]).all()
    assert (frame["rate_stderr"] == fits.errors["rate"]).all()
    assert data["rate"].dims == data["lifetime_stderr"].dims == ()
    assert data["reduced_chi_square"].item() == fits.reduced_chi_square
    assert data["c"].dims == data["chi_square"].dims == ("dim_0", "dim_1")
    assert fits.predict().shape == Y.shape
    figure = fits.plot()
    titles = {axis.get_title() for axis in figure.axes}
    assert {"amplitude", "c"} <= titles
    assert "rate" not in titles
    fits.plot(["rate"], errors=True)
    fits.plot_fits()


def test_a_dataarray_keeps_its_names():
    array = xarray.DataArray(
        np.moveaxis(Y, -1, 0),
        dims=("time", "row", "column"),
        coords={"time": T, "row": [10, 20]},
    )
    fits = jaxfit.fit_batch(MODEL, "time", array, shared="rate")
    plain = jaxfit.fit_batch(MODEL, T, Y, shared="rate")
    data = fits.to_xarray()
    assert data["rate"].item() == plain["rate"]
    assert data["c"].dims == ("row", "column")
    np.testing.assert_array_equal(data["row"], [10, 20])


def test_complex_curves_share_too():
    def ringing(t, a, rate, omega):
        size = a * jnp.exp(-rate * t)
        return jax.lax.complex(size * jnp.cos(omega * t), size * jnp.sin(omega * t))

    random = np.random.default_rng(1)
    a = random.uniform(1, 2, 4)
    noise = random.normal(size=(2, 4, 30))
    y = a[:, None] * np.exp((2j - 0.7) * T) + 0.01 * (noise[0] + 1j * noise[1])
    start = {"a": 1.0, "rate": 0.5, "omega": 1.9}
    fits = jaxfit.fit_batch(ringing, T, y, shared=("rate", "omega"), p0=start)
    assert abs(fits["rate"] - 0.7) < 4 * fits.errors["rate"] < 0.02
    assert fits.dof == 2 * 4 * 30 - 6
    one = fits.fit(2)
    assert np.iscomplexobj(one.best_fit)
    np.testing.assert_allclose(fits["a"], a, rtol=0.02)


def test_dates_and_far_coordinates():
    """Time since 1970, and days: the middle of the data is the solver's origin."""
    near = jaxfit.fit_batch(MODEL, T, Y, shared="rate")
    days = np.datetime64("2024-01-05") + np.arange(30)
    dated = jaxfit.fit_batch(MODEL, days, Y, shared="rate")
    span = (T[1] - T[0]) / 1.0
    np.testing.assert_allclose(dated["rate"], span * near["rate"], rtol=1e-7)
    assert "2024-01-05" in str(dated)
    far = jaxfit.fit_batch(MODEL, T + 100, Y, shared="rate")
    assert far.problem.origin is not None
    np.testing.assert_allclose(far["rate"], near["rate"], rtol=1e-7)
    np.testing.assert_allclose(far.errors["rate"], near.errors["rate"], rtol=1e-6)
    moved = np.exp(100 * far["rate"])
    np.testing.assert_allclose(far["amplitude"] / moved, near["amplitude"], rtol=1e-6)


def test_models_in_numpy_share():
    def decay(t, amplitude, rate, c):
        return amplitude * np.exp(-rate * t) + c

    fits = jaxfit.fit_batch(decay, T, Y, shared="rate")
    plain = jaxfit.fit_batch(MODEL, T, Y, shared="rate")
    np.testing.assert_allclose(fits["rate"], plain["rate"], rtol=1e-8)


# What is refused


def on_the_host(t, a, rate):
    return np.array([float(a) * np.exp(-float(rate) * each) for each in t])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared": "speed"}, "shared names 'speed'; the parameters are amplitude,"),
        ({"shared": 3}, "shared is 3; give names"),
        ({"shared": NAMES}, "shared names all that varies, amplitude, rate and c"),
        ({"fixed": {"rate": 1.0}}, "'rate', which is fixed"),
        ({"tie": {"rate": "c"}}, "'rate', which is tied"),
        ({"p0": {"rate": np.ones(SHAPE)}}, r"has the shape \(2, 3\), and 'rate' is sh"),
        ({"model": on_the_host, "host": True}, "computes on the host"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_shared_is_told(settings, message):
    settings = {"shared": "rate", "model": MODEL, **settings}
    with pytest.raises((ValueError, TypeError), match=message):
        jaxfit.fit_batch(settings.pop("model"), T, Y, **settings)


def test_nothing_shared_is_a_batch_of_fits():
    fits = jaxfit.fit_batch(MODEL, T, Y, shared=())
    assert fits["rate"].shape == SHAPE
    assert fits.together is None
    assert jaxfit.fit_batch(MODEL, T, Y[:0], shared="rate")["rate"].shape == (0, 3)
