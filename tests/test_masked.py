"""Masked arrays: where points can be left out they do not count; elsewhere a refusal.

What is masked lies far off, so that a fit through a mask is seen.
"""

import re

import numpy as np
import pytest

import jaxfit
from jaxfit import models

NUMBER = 30
X = np.linspace(0, 4, NUMBER)
RNG = np.random.default_rng(0)
Y = 2.5 * X + 1 + 0.1 * RNG.normal(size=NUMBER)
SIGMA = 0.05 + 0.02 * X
MASK = np.isin(np.arange(NUMBER), [4, 17])
KEPT = ~MASK
FAR = np.where(MASK, 1e4, Y)
NAN = np.where(MASK, np.nan, Y)


def masked(values, mask=MASK):
    return np.ma.masked_array(values, mask)


def line(x, slope, intercept):
    return slope * x + intercept


def of_pytree(x, slope, intercept):
    return slope * x["t"] + intercept


# which of x, y and sigma are masked, and what they then are
PLACES = [
    ("y", X, masked(FAR), SIGMA),
    ("x", masked(np.where(MASK, -1e3, X)), Y, SIGMA),
    ("sigma", X, FAR, masked(SIGMA)),
    ("two of them", X, masked(FAR, X == X[4]), masked(SIGMA, X == X[17])),
    ("NaN lies below", X, masked(NAN), SIGMA),
    ("nothing is known below", X, masked(NAN), masked(np.where(MASK, 0, SIGMA))),
    ("infinity beside sigma", X, np.where(MASK, np.inf, Y), masked(SIGMA)),
    ("integers", X, masked(FAR.astype(int)), SIGMA),
]
PLACES = [pytest.param(*row[1:], id=row[0]) for row in PLACES]


@pytest.mark.parametrize(("x", "y", "sigma"), PLACES)
@pytest.mark.parametrize("nan_policy", ["raise", "omit"])
def test_fit(x, y, sigma, nan_policy):
    fit = jaxfit.fit(line, x, y, sigma=sigma, nan_policy=nan_policy)
    kept = Y[KEPT].astype(int) if y.dtype.kind == "i" else Y[KEPT]
    expected = jaxfit.fit(line, X[KEPT], kept, sigma=SIGMA[KEPT])
    np.testing.assert_allclose(fit.numbers.x, expected.numbers.x, rtol=1e-9)
    np.testing.assert_allclose(fit.covariance, expected.covariance, rtol=1e-9)
    assert (fit.ndata, fit.dof) == (NUMBER - 2, NUMBER - 4)
    assert np.isnan(fit.residuals[MASK]).all()


@pytest.mark.parametrize(("x", "y", "sigma"), PLACES)
@pytest.mark.parametrize("nan_policy", [None, "omit"])
def test_curve_fit(x, y, sigma, nan_policy):
    settings = {"nan_policy": nan_policy, "absolute_sigma": True}
    popt, pcov = jaxfit.curve_fit(line, x, y, sigma=sigma, **settings)
    kept = Y[KEPT].astype(int) if y.dtype.kind == "i" else Y[KEPT]
    expected, covariance = jaxfit.curve_fit(
        line, X[KEPT], kept, sigma=SIGMA[KEPT], absolute_sigma=True
    )
    np.testing.assert_allclose(popt, expected, rtol=1e-9)
    np.testing.assert_allclose(pcov, covariance, rtol=1e-9)


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (of_pytree, {"t": masked(np.where(MASK, -1e3, X))}),
        (lambda x, a, b: a * x[0] + b * x[1], [masked(X), masked(np.ones(NUMBER))]),
        (lambda x, a, b: a * x[0] + b * x[1], np.ma.stack([X, masked(X**0)])),
    ],
    ids=["pytree", "list", "two predictors"],
)
def test_curve_fit_of_several_predictors(f, x):
    popt, _ = jaxfit.curve_fit(f, x, FAR)
    expected, _ = jaxfit.curve_fit(line, X[KEPT], Y[KEPT])
    np.testing.assert_allclose(popt, expected, rtol=1e-9)


def test_a_covariance_matrix_is_cut():
    """By its diagonal; what else is masked is refused."""
    matrix = np.diag(SIGMA**2) + 1e-4
    rows = MASK[:, None] | MASK
    popt, _ = jaxfit.curve_fit(line, X, FAR, sigma=masked(matrix, rows))
    expected, _ = jaxfit.curve_fit(
        line, X[KEPT], Y[KEPT], sigma=matrix[np.ix_(KEPT, KEPT)]
    )
    np.testing.assert_allclose(popt, expected, rtol=1e-9)
    rows[1, 2] = True
    with pytest.raises(ValueError, match="`sigma` is a masked array"):
        jaxfit.curve_fit(line, X, FAR, sigma=masked(matrix, rows))


def test_fit_batch():
    """Masks of single curves, of the shared x, and of sigma, beside NaN."""
    other = np.roll(MASK, 3)
    masks, sigma = np.stack([MASK, other]), np.stack([SIGMA, SIGMA])
    far = np.where(masks, 1e4, Y)

    def found(x, y, sigma):
        batch = jaxfit.fit_batch(line, x, y, sigma=sigma)
        return batch, np.stack([batch["slope"], batch.errors["slope"]])

    expected = found(X, np.where(masks, np.nan, Y), sigma)[1]
    for y, errors in [(masked(far, masks), sigma), (far, masked(sigma, masks))]:
        batch, values = found(X, y, errors)
        np.testing.assert_allclose(values, expected)
        assert batch.fit(1).ndata == NUMBER - 2
        np.testing.assert_allclose(batch.fit(1).values["slope"], expected[0, 1])
    shared = found(masked(X), masked(far, masks), sigma)[0]
    assert shared.count.tolist() == [NUMBER - 2, NUMBER - 4]
    np.testing.assert_allclose(shared["slope"][0], expected[0, 0])
    with pytest.raises(ValueError, match="x is a masked array"):
        shared.predict(masked(X))
    nothing = found(X, np.ma.masked_all((2, NUMBER)), sigma)[1]
    assert np.isnan(nothing).all()


def test_fit_of_an_image():
    down, across = np.mgrid[:8, :9].astype(float)
    image = 2 * across + down
    mask = np.random.default_rng(0).random(image.shape) < 0.2

    def plane(x, a, b, c):
        return a * x[0] + b * x[1] + c

    far = masked(np.where(mask, 99, image), mask)
    rows = masked(across[:1], mask[3:4])
    for x, y, count in [
        ((across, down), far, np.sum(~mask)),
        ((rows, down[:, :1]), image, 8 * np.sum(~mask[3])),
    ]:
        fit = jaxfit.fit(plane, x, y)
        np.testing.assert_allclose(fit.numbers.x, [2, 1, 0], atol=1e-9)
        assert fit.ndata == count


def test_nothing_left_is_told():
    with pytest.raises(ValueError, match="are masked"):
        jaxfit.fit(line, X, np.ma.masked_all(NUMBER))
    with pytest.raises(ValueError, match="Every point is nan or masked"):
        jaxfit.curve_fit(line, X, np.ma.masked_all(NUMBER))


def test_nan_beside_a_mask_is_still_refused():
    y = masked(FAR)
    y[9] = np.nan
    with pytest.raises(ValueError, match="1 of 30 points have NaN"):
        jaxfit.fit(line, X, y)
    with pytest.raises(ValueError, match="infs or NaNs"):
        jaxfit.curve_fit(line, X, y)
    with pytest.raises(ValueError, match="does not tell to which points"):
        jaxfit.curve_fit(of_pytree, {"t": X, "u": masked(np.ones(2), [1, 0])}, Y)


def test_a_guess_leaves_them_out():
    model = models.Linear()
    expected = model.guess(X[KEPT], Y[KEPT])
    for x, y in [(X, masked(FAR)), (masked(np.where(MASK, -1e3, X)), Y), (X, NAN)]:
        found = model.guess(x, y)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0.05)


# Where nothing can be left out


def residual(p, data):
    return p[0] * data[0] + p[1] - data[1]


def batch(x0, data, bounds=None, weights=None):
    return jaxfit.solve_batch(
        *(residual, x0, data), in_axes=(None, None), bounds=bounds, weights=weights
    )


def blocks(x0, data, bounds=None, weights=None):
    return jaxfit.solve_blocks(
        *(residual, x0, data), in_axes=(None, 0), bounds=bounds, weights=weights
    )


def stream(x0, data, bounds=None, weights=None):
    block = data if weights is None else jaxfit.Weighted(data, weights)
    return jaxfit.solve_stream(residual, x0, [block], bounds=bounds)


ENTRANCES = {
    "solve": lambda *args, **more: jaxfit.solve(residual, *args, **more),
    "solve_batch": batch,
    "solve_blocks": blocks,
    "solve_stream": stream,
    "warm_start": lambda *args, **more: jaxfit.warm_start(residual, *args, **more),
    "subsample_start": lambda *args, **more: jaxfit.subsample_start(
        residual, *args, sample_rows=2, **more
    ),
}
START = np.ones(2)
REFUSED = [
    ("data[1]", {"data": (X, masked(Y))}),
    ("x0", {"x0": masked(START, [True, False])}),
    ("bounds[1]", {"bounds": (0.0, masked(START, [True, False]))}),
    ("weights", {"weights": masked(SIGMA)}),
]


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize(("name", "change"), REFUSED)
def test_a_solver_refuses(entrance, name, change):
    arguments = {"x0": START, "data": (X, Y), **change}
    words = re.escape(name) + " is a masked array.*, and here nothing can be left out"
    with pytest.raises(ValueError, match=words):
        ENTRANCES[entrance](arguments.pop("x0"), arguments.pop("data"), **arguments)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda v: jaxfit.least_squares(residual, START, args=((X, v),)), "`args`"),
        (
            lambda v: jaxfit.least_squares(
                lambda p, data: residual(p, data), START, kwargs={"data": [X, v]}
            ),
            "`kwargs`",
        ),
        (lambda v: jaxfit.least_squares(lambda p: p, v[4:6]), "`x0`"),
        (lambda v: jaxfit.curve_fit(line, X, Y, p0=v[4:6]), "`p0`"),
        (lambda v: jaxfit.curve_fit(line, X, Y, bounds=(v[4:6], 9)), "lower bound"),
        (lambda v: jaxfit.fit(line, X, Y, p0=v[4:6]), "p0"),
        (lambda v: jaxfit.fit(line, X, Y, fixed={"slope": v[4]}), "fixed"),
        (lambda v: jaxfit.fit(line, X, Y, bounds={"slope": (v[4], 9)}), "bounds"),
        (lambda v: jaxfit.fit(line, X, Y, prior={"slope": (v[4], 9)}), "prior"),
    ],
)
def test_other_arguments_refuse(call, name):
    with pytest.raises(ValueError, match=name):
        call(masked(Y))


@pytest.mark.parametrize("entrance", ["solve", "solve_stream"])
def test_a_mask_over_nothing_is_ordinary(entrance):
    plain = ENTRANCES[entrance](START, (X, Y))
    found = ENTRANCES[entrance](
        masked(START, False), (masked(X, np.zeros(NUMBER, bool)), masked(Y, False))
    )
    np.testing.assert_array_equal(found.x, plain.x)


def test_a_mask_over_nothing_is_ordinary_by_name():
    bare = masked(X, False), masked(Y, False)
    expected = jaxfit.fit(line, X, Y)
    fit = jaxfit.fit(line, *bare)
    np.testing.assert_array_equal(fit.numbers.x, expected.numbers.x)
    assert type(fit.observed.data.y) is np.ndarray
    with pytest.raises(ValueError, match="x is a masked array"):
        fit.confidence_band(masked(X))
    found = jaxfit.least_squares(residual, START, args=(bare,))
    np.testing.assert_allclose(found.x, expected.numbers.x, rtol=1e-6)
    popt, _ = jaxfit.curve_fit(line, *bare)
    np.testing.assert_allclose(popt, expected.numbers.x, rtol=1e-9)
