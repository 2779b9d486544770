"""`fit_batch` beside a loop of `fit`, and `curvefit` beside xarray's."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import jaxfit
from jaxfit import Status, losses, models
from jaxfit._batch import parts as _parts

X = np.linspace(0, 5, 40)
MODEL = models.Gaussian() + models.Constant()
SHAPE = (4, 6)
SIGMA = 0.1


def true_maps(shape=SHAPE, seed=0):
    random = np.random.default_rng(seed)
    return {
        "height": random.uniform(2, 4, shape),
        "center": random.uniform(1.8, 3.2, shape),
        "width": random.uniform(0.4, 0.7, shape),
        "c": random.uniform(0, 1, shape),
    }


def spectra(truth, seed=1):
    of = {name: value[..., None] for name, value in truth.items()}
    noise = SIGMA * np.random.default_rng(seed).normal(size=(*of["c"].shape[:-1], 40))
    z = (X - of["center"]) / of["width"]
    return of["height"] * np.exp(-(z**2) / 2) + of["c"] + noise


TRUTH = true_maps()
Y = spectra(TRUTH)


@pytest.fixture(scope="module")
def maps():
    return jaxfit.fit_batch(MODEL, X, Y)


def same_as_fit(batch, index, **settings):
    """One fit of a batch is `fit` of its data, up to what the tolerances leave."""
    one = jaxfit.fit(MODEL, X, Y[index], **settings)
    for name in MODEL.names:
        error = one.errors[name] or 1.0
        assert abs(batch.values[name][index] - one.values[name]) < 1e-5 * error
    for name in one.varied:
        np.testing.assert_allclose(
            batch.errors[name][index], one.errors[name], rtol=1e-4
        )
    for name, quantity in one.derived.items():
        np.testing.assert_allclose(
            batch.derived[name][index], quantity.value, rtol=1e-6
        )
        np.testing.assert_allclose(
            batch.derived_errors[name][index], quantity.stderr, rtol=1e-4
        )
    np.testing.assert_allclose(batch.covariance[index], one.covariance, rtol=1e-3)
    np.testing.assert_allclose(
        batch.reduced_chi_square[index], one.reduced_chi_square, rtol=1e-9
    )


# Beside a loop


def test_every_map_is_what_a_loop_of_fits_gives(maps):
    assert maps.success.all()
    assert maps.shape == maps.status.shape == maps.values["c"].shape == SHAPE
    for index in np.ndindex(2, 3):
        same_as_fit(maps, index)


def test_the_truth_is_within_its_errors(maps):
    for name, truth in TRUTH.items():
        pulls = (maps.values[name] - truth) / maps.errors[name]
        assert np.sqrt(np.mean(pulls**2)) < 1.6
    assert np.all(np.abs(maps.reduced_chi_square / SIGMA**2 - 1) < 1)


def test_a_fit_of_the_batch_can_be_looked_at_whole(maps):
    one = maps.fit((1, 2))
    assert tuple(one.params) == MODEL.names
    np.testing.assert_allclose(one.values["center"], maps["center"][1, 2], rtol=1e-8)
    assert "center" in str(one)


def test_points_that_are_nan_or_have_no_error_are_left_out():
    y = Y.copy()
    y[0, 0, 5:9] = np.nan
    y[1, 1] = np.nan
    sigma = np.full(Y.shape, SIGMA)
    sigma[0, 1, 20] = np.inf
    y[0, 1, 20] = 1e6
    batch = jaxfit.fit_batch(MODEL, X, y, sigma=sigma, absolute_sigma=True)
    assert batch.status[1, 1] == Status.NONFINITE_START
    assert np.isnan(batch.values["height"][1, 1])
    assert np.isnan(batch.errors["fwhm" if "fwhm" in batch.errors else "c"][1, 1])
    assert batch.success.sum() == batch.success.size - 1
    assert (batch.count[0, 0], batch.count[0, 1], batch.count[2, 2]) == (36, 39, 40)
    for index in ((0, 0), (0, 1), (2, 2)):
        one = batch.fit(index)
        np.testing.assert_allclose(
            [batch.errors[n][index] for n in MODEL.names],
            [one.errors[n] for n in MODEL.names],
            rtol=1e-4,
        )
        assert one.ndata == batch.count[index]
    frame = batch.to_dataframe()
    assert np.isnan(frame.loc[(1, 1), "height"])
    assert "23 with success" in str(batch)
    assert "NONFINITE_START" in str(batch)


def test_sigma_is_not_looked_at_where_nothing_counts():
    y, sigma = Y.copy(), np.full(Y.shape, SIGMA)
    y[0, 0, 5:8], sigma[0, 0, 5:8] = np.nan, [np.nan, 0.0, -1.0]
    batch = jaxfit.fit_batch(MODEL, X.tolist(), y, sigma=sigma, absolute_sigma=True)
    assert batch.count[0, 0] == 37
    assert batch.fit((0, 0)).ndata == 37
    with pytest.raises(ValueError, match="sigma has 3 values that are not positive"):
        jaxfit.fit_batch(MODEL, X, Y, sigma=sigma)


def test_what_is_not_determined_is_nan():
    """An empty voxel has no rate, and one point neither rate nor height."""

    def decay(t, s0, rate):
        return s0 * jnp.exp(-rate * t)

    whole = decay(X, 2.0, 0.7)
    one = np.where(np.arange(40) == 3, whole, np.nan)
    height = {"s0": np.array([1.0, 0.0, 1.0, 1.0])}  # at 1e-31 a rate has an error
    Y = np.stack([whole, 0 * X, one, whole])
    batch = jaxfit.fit_batch(decay, X, Y, p0=height)
    assert batch.success.all()
    assert batch.determined["rate"].tolist() == [True, False, False, True]
    np.testing.assert_allclose(batch["rate"], [0.7, np.nan, np.nan, 0.7])
    np.testing.assert_array_equal(batch.values["rate"], batch["rate"])
    assert np.isinf(batch.errors["rate"][1:3]).all()
    assert np.isfinite(batch.numbers.x).all()
    told = str(batch)
    assert "! The data do not determine rate in 2 of 4 fits." in told
    (median,) = (line.split()[1] for line in told.splitlines() if line[:4] == "rate")
    assert median == "0.7"
    np.testing.assert_allclose(batch.predict()[1], 0, atol=1e-9)
    assert batch.fit(2).determined == {"s0": False, "rate": False}
    assert np.isnan(batch.to_xarray()["rate"][1])


def test_ties_priors_fixed_values_and_losses_are_those_of_fit():
    settings = {
        "fixed": {"c": 0.5},
        "tie": {"height": lambda p: 5 * p["width"]},
        "prior": {"width": (0.5, 0.05)},
        "loss": losses.Huber(1.5),
        "sigma": 0.1,
    }
    batch = jaxfit.fit_batch(MODEL, X, Y, **settings)
    np.testing.assert_allclose(batch["height"], 5 * batch["width"], rtol=1e-12)
    assert np.all(batch["c"] == 0.5)
    assert np.all(batch.errors["c"] == 0)
    same_as_fit(batch, (2, 3), **settings)
    again = batch.fit((2, 3))
    assert again.method.loss == losses.Huber(1.5)
    np.testing.assert_allclose(again.errors["center"], batch.errors["center"][2, 3])


def test_starts_and_bounds_may_be_given_by_map():
    start = {**TRUTH, "height": 3.0, "c": np.maximum(TRUTH["c"], 0.35)}
    batch = jaxfit.fit_batch(MODEL, X, Y, p0=start, bounds={"c": (0.3, None)})
    assert np.all(batch["c"] >= 0.3)
    held = batch.at_bound["c"] == -1
    assert 0 < held.sum() < held.size
    assert np.all(batch["c"][held] == 0.3)
    assert np.all(TRUTH["c"][held] < 0.4)


def test_what_is_fitted_in_blocks_is_the_same(maps, monkeypatch):
    monkeypatch.setattr(_parts, "NUMBERS", 10 * X.size)
    blocks = jaxfit.fit_batch(MODEL, X, Y, progress=True)  # in several parts
    for name in MODEL.names:
        np.testing.assert_allclose(blocks[name], maps[name], rtol=1e-9)
    np.testing.assert_array_equal(blocks.status, maps.status)


def test_no_data_set_gives_empty_maps():
    empty = jaxfit.fit_batch(MODEL, X, Y[:0])
    assert empty.values["center"].shape == (0, 6)
    assert empty.status.dtype.kind == "i"
    assert "0 fits" in str(empty)


def test_curves_at_other_points(maps):
    x = np.linspace(0, 5, 7)
    curves = maps.predict(x)
    assert curves.shape == (*SHAPE, 7)
    at = {name: value[1, 2] for name, value in maps.values.items()}
    np.testing.assert_allclose(curves[1, 2], MODEL(x, at), rtol=1e-12)
    assert maps.predict().shape == Y.shape


def test_images_are_fitted_too():
    rows, columns = np.mgrid[0:9, 0:9] * 1.0
    model = models.Gaussian2D() + models.Constant()
    spots = np.stack(
        [
            model((columns, rows), dict(zip(model.names, at, strict=True)))
            for at in [(900, 4.0, 4.2, 1.3, 100), (900, 3.5, 4.7, 1.3, 100)]
        ]
    )
    photons = np.random.default_rng(0).poisson(spots)
    batch = jaxfit.fit_batch(model, (columns, rows), photons)
    assert batch.shape == (2,)
    names = list(model.names)
    np.testing.assert_allclose(batch[names[1]], [4.0, 3.5], atol=0.05)
    np.testing.assert_allclose(batch[names[2]], [4.2, 4.7], atol=0.05)


# xarray


def labelled():
    return xarray.DataArray(
        np.moveaxis(Y, -1, 0),
        dims=("wavelength", "row", "column"),
        coords={
            "wavelength": X,
            "row": [10, 20, 30, 40],
            "scan": ("column", list("abcdef")),
        },
        name="counts",
    )


def test_a_dataarray_keeps_its_names(maps):
    batch = jaxfit.fit_batch(MODEL, "wavelength", labelled())
    found = batch.to_xarray()
    assert found["center"].dims == ("row", "column")
    np.testing.assert_array_equal(found["row"], [10, 20, 30, 40])
    np.testing.assert_array_equal(found["scan"], list("abcdef"))
    np.testing.assert_allclose(found["center"], maps["center"], rtol=1e-12)
    np.testing.assert_allclose(found["fwhm_stderr"], maps.derived_errors["fwhm"])
    assert set(found) >= {"status", "success", "chi_square", "height_stderr"}
    by_array = jaxfit.fit_batch(MODEL, labelled()["wavelength"], labelled())
    np.testing.assert_array_equal(by_array["center"], batch["center"])
    with_errors = jaxfit.fit_batch(
        *(MODEL, "wavelength", labelled()),
        sigma=xarray.full_like(labelled(), 0.1).transpose(
            "column", "wavelength", "row"
        ),
        p0={"c": xarray.DataArray(np.full((6, 4), 0.5), dims=("column", "row"))},
    )
    np.testing.assert_allclose(with_errors["center"], maps["center"], rtol=1e-6)
    plain = maps.to_xarray()
    assert plain["center"].dims == ("dim_0", "dim_1")


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[:-1]}, r"x has the shape \(39,\) and Y \(4, 6, 40\)"),
        ({"x": "time"}, "'time', a name; Y then has to be a DataArray"),
        ({"x": (X.astype("M8[ms]"), X)}, r"datetime64\[ms\]; give numbers in a unit"),
        ({"Y": np.where(Y > 3, np.inf, Y)}, "infinite values"),
        ({"nan_policy": "raise", "Y": np.where(Y > 3, np.nan, Y)}, "are left|have NaN"),
        ({"nan_policy": "skip"}, "give 'raise' or 'omit'"),
        ({"p0": {"center": np.ones(5)}}, r"p0\['center'\] has the shape \(5,\)"),
        ({"p0": {"centre": 1.0}}, "centre"),
        ({"p0": {"width": -np.ones(SHAPE)}}, r"width'\] is -1.0 somewhere, outside"),
        ({"sigma": np.ones(7)}, r"sigma has the shape \(7,\)"),
        ({"sigma": -1.0}, "not positive"),
        ({"x": X + 1j}, "complex128"),
        ({"loss": "huber"}, "huber"),
        ({"covariance": "hessian"}, "hessian"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_fitted_is_told(change, message):
    arguments = {"x": X, "Y": Y, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        jaxfit.fit_batch(MODEL, arguments.pop("x"), arguments.pop("Y"), **arguments)


def test_a_wrong_dimension_is_told():
    sigma = xarray.DataArray(np.ones(40), dims="time")
    with pytest.raises(ValueError, match="sigma has the dimensions time, which are"):
        jaxfit.fit_batch(MODEL, "wavelength", labelled(), sigma=sigma)
    with pytest.raises(ValueError, match="wavelength, row, column"):
        jaxfit.fit_batch(MODEL, "time", labelled())


# curvefit


def decay(t, n0, tau=1.0):
    return n0 * np.exp(-t / tau)


def decay_in_jax(t, n0, tau=1.0):
    return n0 * jnp.exp(-t / tau)


@pytest.fixture(scope="module")
def decays():
    """xarray's own example, with two variables and NaN."""
    time = np.linspace(0, 10, 30)
    site = np.arange(5)
    random = np.random.default_rng(3)
    n0, tau = random.uniform(3, 6, (5, 1)), random.uniform(1, 4, (5, 1))
    y = decay(time, n0, tau) + 0.05 * random.normal(size=(5, 30))
    y[2, 7] = np.nan
    return xarray.Dataset(
        {"y": (("site", "time"), y), "z": (("time", "site"), 2 * y.T)},
        coords={"time": time, "site": site},
        attrs={"source": "made"},
    )


def assert_alike(ours, theirs, rtol=1e-4):
    assert set(ours.data_vars) == set(theirs.data_vars)
    assert ours.attrs == theirs.attrs
    assert set(ours.coords) == set(theirs.coords)
    for name, found in theirs.items():
        assert ours[name].dims == found.dims
        np.testing.assert_allclose(ours[name], found, rtol=rtol, atol=1e-9)


def decay_on_the_host(t, n0, tau=1.0):
    return n0 * np.array([math.exp(-each / tau) for each in t])


@pytest.mark.parametrize("function", [decay_in_jax, decay, decay_on_the_host])
def test_curvefit_gives_what_xarray_gives(decays, function):
    host = {"host": function is decay_on_the_host}
    assert_alike(
        jaxfit.curvefit(decays, "time", function, kwargs=host),
        decays.curvefit("time", decay),
    )


def test_curvefit_takes_a_list_of_coordinates():
    x, y = np.linspace(0, 4, 20), np.linspace(0, 3, 15)

    def plane(coordinates, a, b):
        x, y = coordinates
        return a * x + (b if b > 0 else 0.0) * np.sin(y)

    values = np.add.outer(2 * x, 3 * np.sin(y))
    array = xarray.DataArray(values, dims=("x", "y"), coords={"x": x, "y": y})
    with pytest.warns(jaxfit.HostModelWarning, match="plane"):
        found = jaxfit.curvefit(array, ["x", "y"], plane)
    np.testing.assert_allclose(found["curvefit_coefficients"], [2, 3], rtol=1e-6)


def test_curvefit_names_variable_arguments(decays):
    def model(t, *p):
        return p[0] * np.exp(-t / p[1])

    names, array = ["n0", "tau"], decays["y"]
    assert_alike(
        jaxfit.curvefit(array, "time", model, param_names=names),
        array.curvefit("time", model, param_names=names),
    )


def test_curvefit_passes_keywords_on(decays):
    array, kwargs = decays["y"], {"absolute_sigma": True, "maxfev": 1000}
    assert_alike(
        jaxfit.curvefit(array, array["time"], decay_in_jax, kwargs=kwargs),
        array.curvefit("time", decay, kwargs=kwargs),
    )


def test_curvefit_takes_starts_and_bounds_as_arrays(decays):
    array = decays["y"]
    given = {
        "p0": {"tau": xarray.DataArray([2.0, 1, 3, 2, 1], dims="site")},
        "bounds": {
            "tau": (0.5, xarray.DataArray([9.0, 9, 9, 1.5, 9], dims="site")),
            "n0": (0, np.inf),
        },
    }
    given["p0"]["tau"][3] = 1.2
    ours = jaxfit.curvefit(array, "time", decay_in_jax, **given)
    assert_alike(ours, array.curvefit("time", decay, **given))
    tau = ours["curvefit_coefficients"].sel(site=3, param="tau")
    assert abs(tau - 1.5) < 1e-9  # its own bound


def test_curvefit_over_two_coordinates():
    x, y = np.linspace(0, 3, 12), np.linspace(0, 2, 9)
    random = np.random.default_rng(0)
    image = 3 * np.exp(-x[:, None] / 2) + 0.7 * y + 0.1 * random.normal(size=(4, 12, 9))
    array = xarray.DataArray(
        image, dims=("t", "x", "y"), coords={"x": x, "y": y, "t": np.arange(4)}
    )

    def model(xy, a, b):
        return a * jnp.exp(-xy[0] / 2) + b * xy[1]

    def written(xy, a, b):
        return a * np.exp(-xy[0] / 2) + b * xy[1]

    assert_alike(
        jaxfit.curvefit(array, ["x", "y"], model),
        array.curvefit(["x", "y"], written),
    )
    along = {"reduce_dims": "t"}

    def only(x, a, c):
        return a * jnp.exp(-x / 2) + c

    def only_written(x, a, c):
        return a * np.exp(-x / 2) + c

    assert_alike(
        jaxfit.curvefit(array, "x", only, **along),
        array.curvefit("x", only_written, **along),
    )


def test_curvefit_says_or_marks_what_failed(decays):
    array = decays["y"].copy()
    array[4] = np.nan
    few = {"kwargs": {"maxfev": 2}}
    with pytest.raises(RuntimeError, match=r'4 of 5 fits.*errors="ignore"'):
        jaxfit.curvefit(array, "time", decay_in_jax, **few)
    found = jaxfit.curvefit(array, "time", decay_in_jax, errors="ignore", **few)
    assert np.isnan(found["curvefit_coefficients"]).all()
    whole = jaxfit.curvefit(array, "time", decay_in_jax)
    assert np.isnan(whole["curvefit_coefficients"][4]).all()
    assert np.isfinite(whole["curvefit_coefficients"][:4]).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"coords": "place"}, KeyError, "place"),
        ({"errors": "warn"}, ValueError, "errors must be"),
        ({"func": lambda t, *p: t}, ValueError, "variable length"),
        ({"kwargs": {"sigma": 1.0}}, TypeError, "fit_batch for sigma"),
        ({"skipna": False}, ValueError, "NaN"),
        (
            {"bounds": {"tau": (0.0, 1.0)}, "p0": {"tau": 2.0}},
            ValueError,
            "infeasible",
        ),
        (
            {"p0": {"tau": xarray.DataArray([1.0, 2.0], dims="other")}},
            ValueError,
            "unexpected dimensions",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_curvefit_refuses_what_xarray_refuses(decays, change, error, message):
    given = {"coords": "time", "func": decay_in_jax, **change}
    with pytest.raises(error, match=message):
        jaxfit.curvefit(decays["y"], given.pop("coords"), given.pop("func"), **given)


@pytest.mark.parametrize("dtype", ["M8[s]", "M8[ms]", "M8[us]", "M8[ns]", "m8[s]"])
def test_curvefit_counts_in_the_unit_of_a_time_axis(dtype):
    """As xarray does; NaT is NaN."""
    time = np.arange(0, 24, 2).astype("m8[h]")
    if dtype[0] == "M":
        time = np.datetime64("1970-01-03") + time
    time = time.astype(dtype)
    time[3] = np.array("NaT", dtype)
    y = np.random.default_rng(0).normal(size=(2, 12)).cumsum(axis=1)
    array = xarray.DataArray(y, dims=("site", "time"), coords={"time": time})

    def line(t, a, b):
        return a + b * t * 1e-4

    assert_alike(
        jaxfit.curvefit(array, "time", line),
        array.curvefit("time", line, p0={"a": 0, "b": 0}),
        rtol=1e-5,
    )


def test_curvefit_of_two_time_axes_and_of_none():
    """The finer unit holds for both; other objects are refused."""
    seconds = np.arange(12).astype("M8[s]")
    y = np.random.default_rng(0).normal(size=(2, 12))
    array = xarray.DataArray(y, dims=("site", "time"), coords={"time": seconds})
    array["fine"] = "time", (seconds + np.timedelta64(7, "ms") * np.arange(12) ** 2)
    assert array["fine"].dtype == "datetime64[ms]"

    def plane(t, a, b, c):
        return a + (b * t[0] + c * t[1]) / 1e3

    axes = ["time", "fine"]
    assert_alike(jaxfit.curvefit(array, axes, plane), array.curvefit(axes, plane))
    array["time"] = np.array([complex(i) for i in range(12)], object)
    with pytest.raises(TypeError, match=r"a coordinate is .*an array of real numbers"):
        jaxfit.curvefit(array, "time", decay_in_jax)
