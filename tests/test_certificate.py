"""A success is a stationary point: of 100,000 fits from wild starts, by NumPy alone.

What the certificate is computed from, norms, gradient and cost, is accurate to its own
claim, in both engines and in float32. Frames, underflow and far bounds are where it
could be wrong.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, decay
from problems import residual as residual_of_decay

import jaxfit
from jaxfit import Status
from jaxfit._rows.linearization import Frame, columns_of
from jaxfit._rows.reduction import reduce_rows
from jaxfit._rows.residuals import Evaluated

ROWS = 64
PIXELS = np.stack(np.divmod(np.arange(ROWS), 8)).astype(float)
TIMES = np.linspace(0, 10, ROWS)
CHANNELS = np.linspace(0, 1e-3, ROWS)

# Four models of five parameters, told apart by a number, so that they share a program.


def spot(x, library):
    u, v = PIXELS.astype(x.dtype)
    square = ((u - x[1]) ** 2 + (v - x[2]) ** 2) / (2 * x[3] ** 2)
    return x[0] * library.exp(-square) + x[4]


def peak(x, library):
    c = CHANNELS.astype(x.dtype)
    return x[0] / (1 + ((c - x[1]) / x[2]) ** 2) + x[3] + x[4] * c


def decays(x, library):
    t = TIMES.astype(x.dtype)
    return x[0] * library.exp(-x[1] * t) + x[2] * library.exp(-x[3] * t) + x[4]


def sine(x, library):
    return x[0] * library.sin(x[1] * TIMES.astype(x.dtype) + x[2]) + x[3]


MODELS = spot, peak, decays, sine


def residual(x, data):
    kind, y = data
    return jnp.select([kind == k for k in range(4)], [m(x, jnp) for m in MODELS]) - y


def jacobian(kind: int, x):
    """Of one model at many points, by hand: (N, 5, rows)."""
    a, b, c, d, _ = x.T[..., None]
    one, none = np.ones((len(x), ROWS)), np.zeros((len(x), ROWS))
    if kind == 0:
        u, v = PIXELS
        e = np.exp(-((u - b) ** 2 + (v - c) ** 2) / (2 * d**2))
        along = (u - b) / d**2, (v - c) / d**2, ((u - b) ** 2 + (v - c) ** 2) / d**3
        columns = e, *(a * e * way for way in along), one
    elif kind == 1:
        z = (CHANNELS - b) / c
        q = 1 / (1 + z**2)
        change = 2 * a * q**2 * z / c
        columns = q, change, change * z, one, CHANNELS * one
    elif kind == 2:
        e, f = np.exp(-b * TIMES), np.exp(-d * TIMES)
        columns = e, -a * TIMES * e, f, -c * TIMES * f, one
    else:
        s, k = np.sin(b * TIMES + c), np.cos(b * TIMES + c)
        columns = s, a * TIMES * k, a * k, one, none
    return np.stack(columns, axis=1)


class Fits(NamedTuple):
    """Many fits from wild starts."""

    x0: np.ndarray
    kind: np.ndarray
    y: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


LOWER = np.array(
    [
        [0.0, -1, -1, 0.2, -100],
        [0, 0, 1e-6, -1000, -1e6],
        [0, 0, 0, 0, -100],
        [0, 0, -4, -100, 0],
    ]
)
UPPER = np.array(
    [
        [5000.0, 8, 8, 8, 500],
        [1e5, 1e-3, 1e-2, 1e4, 1e6],
        [1e4, 100, 1e4, 100, 100],
        [1e4, 40, 4, 100, 0],
    ]
)


def wild_fits(seed: int, number: int, dtype) -> Fits:
    """So many of each model. The truths are tame and the starts are not; some
    amplitudes start at zero."""
    rng = np.random.default_rng(seed)

    def drawn(*ranges):
        """Of each range numbers between its ends, in the logarithm if it says so."""
        columns = [
            np.exp(rng.uniform(np.log(low), np.log(high), number))
            if logarithmic
            else rng.uniform(low, high, number)
            for low, high, logarithmic in ranges
        ]
        return np.stack(columns, axis=1)

    def log(low, high):
        return low, high, True

    def linear(low, high):
        return low, high, False

    none = linear(0, 0)
    truths = (
        drawn(log(20, 1500), *2 * [linear(1, 7)], log(0.4, 2.5), linear(0, 20)),
        drawn(log(20, 3e3), linear(1e-4, 9e-4), log(1e-5, 2e-4), *2 * [linear(0, 99)]),
        drawn(log(1, 99), log(0.05, 1), log(1, 99), log(1, 8), linear(-5, 5)),
        drawn(log(1, 99), log(0.5, 10), linear(-3, 3), linear(-20, 20), none),
    )
    starts = (
        drawn(log(1, 5e3), *2 * [linear(0, 7)], log(0.3, 4), linear(-40, 60)),
        drawn(
            *(log(1, 9e3), linear(0, 1e-3), log(1.1e-6, 4e-4)),
            *(linear(-100, 200), linear(-2e4, 2e4)),
        ),
        drawn(*2 * [log(0.01, 1e3), log(1e-3, 30)], linear(-50, 50)),
        drawn(log(0.01, 1e3), log(0.05, 30), linear(-3, 3), linear(-50, 50), none),
    )
    clean = [np.stack([MODELS[kind](x, np) for x in truths[kind]]) for kind in range(4)]
    y = np.concatenate(clean)
    y = y + np.exp(rng.uniform(-2, 2, (len(y), 1))) * rng.normal(size=y.shape)
    kind = np.repeat(np.arange(4), number)
    x0 = np.concatenate(starts)
    x0[::20, 0] = 0
    bounds = LOWER[kind].astype(dtype), UPPER[kind].astype(dtype)
    x0 = np.clip(x0.astype(dtype), *bounds)
    return Fits(x0, kind, y.astype(dtype), *bounds)


OPTIONS = jaxfit.Options(max_steps=40)


def by_solve_batch(fits: Fits):
    bounds = fits.lower, fits.upper
    return jaxfit.solve_batch(
        *(residual, fits.x0, (fits.kind, fits.y)),
        in_axes=(0, 0, 0),
        bounds=bounds,
        options=OPTIONS,
    )


@jax.jit
@jax.vmap
def by_vmap(fits: Fits):
    data, bounds = (fits.kind, fits.y), (fits.lower, fits.upper)
    return jaxfit.solve(residual, fits.x0, data, bounds=bounds, options=OPTIONS)


def lengths(vectors):
    """Norms along the last axis; no square underflows."""
    largest = np.max(np.abs(vectors), axis=-1, keepdims=True)
    largest = np.where(largest > 0, largest, 1)
    return largest[..., 0] * np.linalg.norm(vectors / largest, axis=-1)


def is_certified(fits: Fits, x):
    """The certificate of `Solution`, from nothing but x and the data."""
    kind = np.finfo(fits.x0.dtype)
    tau = 1e-6 if kind.bits == 64 else 1e-3
    x, y, x0 = (a.astype(float) for a in (x, fits.y, fits.x0))
    r, start, j = np.empty(y.shape), np.empty(len(y)), np.empty((len(y), 5, ROWS))
    for number, model in enumerate(MODELS):
        own = fits.kind == number
        j[own] = jacobian(number, x[own])
        r[own] = np.stack([model(p, np) for p in x[own]]) - y[own]
        first = np.stack([model(p, np) for p in x0[own]]) - y[own]
        start[own] = 0.5 * np.sum(first**2, axis=1)
    j = np.where(np.abs(j) < kind.tiny / kind.eps, 0, j)  # it underflows where it is
    norms = lengths(j)
    divisor = np.where(norms > 0, norms, 1)
    moves = np.einsum("nkr,nr->nk", j / divisor[..., None], r) / divisor
    target = np.clip(x - moves, fits.lower, fits.upper)
    measure = np.max(norms * np.abs(target - x), axis=1)
    limit = tau * lengths(r) + 8 * kind.eps * np.sum(norms * np.abs(x), axis=1)
    cost = 0.5 * np.sum(r**2, axis=1)
    inside = np.all((x >= fits.lower) & (x <= fits.upper), axis=1)
    stationary = (measure <= limit) | (cost <= kind.eps**1.5 * start)
    return stationary & inside & (cost <= start * (1 + 4 * kind.eps * ROWS))


@pytest.mark.parametrize(
    ("engine", "number", "dtype"),
    [
        (by_solve_batch, 40_000, np.float64),
        (by_vmap, 20_000, np.float64),
        (by_solve_batch, 40_000, np.float32),
    ],
)
def test_no_success_is_false(engine, number, dtype):
    """No success is off a stationary point, and no optimality is NaN."""
    fits = wild_fits(7, number // 4, dtype)
    solution = jax.tree.map(np.asarray, engine(fits))
    success = solution.status > 0
    with np.errstate(all="ignore"):
        assert np.sum(success & ~is_certified(fits, solution.x)) == 0
    assert np.all(np.isfinite(solution.optimality))
    assert np.mean(success) > 0.65
    amplitude = solution.x[success, 0]  # on its bound exactly, or far from it
    assert np.mean((amplitude > 0) & (amplitude < 1e-9)) < 0.002


# One fit in many units and within far bounds


def scaled_residual(x, data):
    t, y, unit, scale = data
    return scale * residual_of_decay(x / unit, (t, y))


@jax.jit
def in_units(unit, scale, bounds):
    """The decay with its parameters and its residuals in other units."""
    dtype = unit.dtype
    (t, y), _ = decay()
    data = t.astype(dtype), y.astype(dtype), unit, scale
    start = START.astype(dtype) * unit
    return jaxfit.solve(scaled_residual, start, data, bounds=bounds)


def no_bounds(dtype):
    return np.full(3, -np.inf, dtype), np.full(3, np.inf, dtype)


ONES = np.ones(3)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("decades", [-1.1, -0.98, -0.55, -0.4, 0, 0.4, 0.52, 1.1])
@pytest.mark.parametrize(
    "place", [(0, 1, 0, 0), (1, 1, 1, 0), (0, 0, 0, 1), (-1, -1, -1, 1)]
)
def test_what_leaves_the_range_of_squares_is_refused_or_right(dtype, decades, place):
    """Units of parameters and of residuals of many orders, up to where the square of a
    column or of a residual under- or overflows."""
    kind = np.finfo(dtype)
    size = 10.0 ** (decades * np.log10(float(kind.max)) / 2)
    *unit, scale = (dtype(size**power) for power in place)
    unit = np.array(unit)
    solution = in_units(unit, scale, no_bounds(dtype))
    assert not np.isnan(solution.optimality)
    if abs(decades) < 0.5:
        assert solution.success
    if solution.success:
        expected = in_units(ONES.astype(dtype), dtype(1), no_bounds(dtype)).x
        rtol = 1e-9 if kind.bits == 64 else 1e-3
        np.testing.assert_allclose(solution.x / unit, expected, rtol=rtol)


def test_no_success_from_what_cannot_be_seen():
    """The squares of all columns and residuals underflow: nothing can be claimed."""
    solution = in_units(
        ONES.astype(np.float32), np.float32(1e-23), no_bounds(np.float32)
    )
    assert solution.status == Status.STALLED


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("distance", [0.6, 0.9, 1])
@pytest.mark.parametrize("bounded", [slice(None), slice(1, 2)])
def test_a_bound_far_away_is_none(dtype, distance, bounded):
    """Up to the largest number, which some give where there is no bound."""
    bounds = no_bounds(dtype)
    largest = float(np.finfo(dtype).max) ** distance
    bounds[0][bounded], bounds[1][bounded] = -largest, largest
    free, held = (
        in_units(ONES.astype(dtype), dtype(1), pair)
        for pair in (no_bounds(dtype), bounds)
    )
    assert held.success
    assert held.nfev == free.nfev
    np.testing.assert_array_equal(held.x, free.x)


@pytest.mark.parametrize("lanes", [(), (1,)])
def test_a_frame_that_does_not_fit_is_noticed(lanes):
    """A column longer than where the frame was made by ten orders: those beside it
    come out as rounding, and are not believed."""
    rng = np.random.default_rng(0)
    columns, r = rng.normal(size=(3, 20)), jnp.asarray(rng.normal(size=20))
    no_frame = Frame(np.eye(3), np.eye(3))
    frames = {"none": no_frame}
    for name, sizes in (("own", [1, 1, 1]), ("other", [1e-10, 1, 1])):
        triangle = np.linalg.cholesky(np.cov(columns * np.array(sizes)[:, None])).T
        turned = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ triangle
        frames[name] = Frame(turned, np.linalg.inv(turned).T)

    def columns_in(frame):
        along, residual = jnp.asarray(frame.directions @ columns), r
        frame = jax.tree.map(
            lambda a: jnp.asarray(a[(..., *len(lanes) * [None])]), frame
        )
        if lanes:
            along, residual = along[..., None], r[:, None]
        return columns_of(reduce_rows(Evaluated(residual, along, None), None, frame))

    exact, own, other = (columns_in(frames[name]) for name in ("none", "own", "other"))
    assert exact.resolved
    assert own.resolved
    assert not other.resolved
    np.testing.assert_allclose(own.squared_norms, exact.squared_norms, rtol=1e-12)
    np.testing.assert_allclose(own.gradient, exact.gradient, rtol=1e-11)
