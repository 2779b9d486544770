"""Likelihoods at the edges: empty counts, bounds, bad numbers, hard starts, words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from likelihood_problems import PROBLEMS, T, line
from numpy.testing import assert_allclose

from jaxfit import (
    Options,
    Prediction,
    Shared,
    Status,
    losses,
    solve,
    solve_batch,
    solve_joint,
    solve_stream,
)

POISSON = losses.Poisson()
POSITIVE = (0.0, np.inf)


def straight(x, data):
    """A line of what is counted."""
    t, observed = data
    return Prediction(line(jnp, x, t), observed)


def through_zero(x, data):
    """Proportional to t, which begins at zero: the first mean is always zero."""
    t, observed = data
    return Prediction(x[0] * t + 0.0 * x[1], observed)


def fit_line(observed, x0=(1.0, 1.0), bounds=POSITIVE, loss=POISSON, **arguments):
    data = T, np.asarray(observed, float)
    return solve(straight, np.array(x0), data, bounds=bounds, loss=loss, **arguments)


# Nothing counted


def test_all_zero_counts():
    """The minimum is zero, on both bounds."""
    fit = fit_line(np.zeros(64))
    assert fit.success
    assert_allclose(fit.x, 0, atol=0)
    assert_allclose(fit.active, -1)
    assert fit.cost == 0


def test_exact_data():
    fit = fit_line(2.0 + 0.5 * T, bounds=None)
    assert fit.success
    assert_allclose(fit.x, [2.0, 0.5], rtol=1e-8)
    assert fit.cost < 1e-14


def test_a_mean_that_is_always_zero():
    """A mean of exactly zero is right where nothing was counted."""
    rng = np.random.default_rng(0)
    observed = rng.poisson(3.0 * T).astype(float)
    assert observed[0] == 0
    fit = solve(
        lambda x, data: through_zero(jnp.append(x, 0.0), data),
        np.array([1.0]),
        (T, observed),
        loss=POISSON,
    )
    assert fit.success
    assert_allclose(fit.x, [np.sum(observed) / np.sum(T)], rtol=1e-9)
    assert_allclose(fit.stderr(), [np.sqrt(fit.x[0] / np.sum(T))], rtol=1e-6)


@pytest.mark.parametrize("number", [1e-6, 1e9], ids=["tiny", "huge"])
def test_rates_of_any_size(number):
    """The mean of counts is their average, and its error the root of mean over rows."""
    rng = np.random.default_rng(1)
    observed = rng.poisson(number, 100_000 if number < 1 else 64).astype(float)
    observed[:3] += number < 1  # three in a hundred thousand
    mean = np.mean(observed)

    def constant(x, data):
        return Prediction(jnp.broadcast_to(x, data.shape), data)

    fit = solve(
        constant, np.array(50 * number), observed, bounds=POSITIVE, loss=POISSON
    )
    assert fit.success
    error = np.sqrt(mean / observed.size)
    assert_allclose(fit.x, mean, rtol=1e-8, atol=1e-6 * error)
    assert_allclose(fit.stderr(), error, rtol=1e-6)


@pytest.mark.parametrize("start", [(10.0, 0.5, 3.0), (0.1, 2.0, 0.1), (5.0, 3.0, 0.01)])
@pytest.mark.parametrize(("dtype", "errors"), [("f8", 1e-6), ("f4", 0.02)])
def test_few_events_in_many_bins(start, dtype, errors):
    """Some hundred or thousand events in a hundred thousand bins, from far off.

    The gradient by complex steps says that it is the minimum.
    """
    t = np.linspace(0.0, 5.0, 100_000)
    rng = np.random.default_rng(2)

    def decay(xp, x, t=t):
        return x[0] * xp.exp(-x[1] * t) + x[2]

    def model(x, observed):
        return Prediction(decay(jnp, x, t.astype(x.dtype)), observed)

    for number in (3e-3, 3e-2):
        true = np.array([number, 1.0, 0.1 * number])
        observed = rng.poisson(decay(np, true)).astype(dtype)
        assert 50 < np.sum(observed) < 1500
        x0 = (true * start).astype(dtype)
        fit = solve(model, x0, observed, bounds=POSITIVE, loss=POISSON)
        assert fit.success
        assert fit.nfev <= 30
        for step in 1e-30 * np.diag(true):
            mean = decay(np, np.asarray(fit.x, float) + 1j * step)
            slope = np.sum(mean - observed * np.log(mean)).imag / np.sum(step)
            error = float(fit.stderr()[np.flatnonzero(step)[0]])
            assert_allclose(slope * error, 0, atol=errors)


# What is told


def has_no_start(fit):
    words = "a mean lies outside its range", "Check data and weights"
    told = all(part in fit.message for part in words)
    return fit.status == Status.NONFINITE_START and not fit.success and told


COUNTS = np.random.default_rng(2).poisson(1.0 + T).astype(float)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_bad_counts(bad):
    assert has_no_start(fit_line(np.where(T == T[5], bad, COUNTS)))


@pytest.mark.parametrize("x0", [(-1.0, 1.0), (0.0, 0.0)])
def test_a_mean_that_starts_out_of_range(x0):
    assert has_no_start(fit_line(COUNTS, x0, bounds=None))


@pytest.mark.parametrize(
    ("loss", "observed"),
    [
        (losses.Binomial(5.0), 6.0),
        (losses.Binomial(5.0), -1.0),
        (losses.Gamma(2.0), -1.0),
        (losses.Rician(1.0), -1.0),
        (losses.StudentT(1.0, 3.0), np.nan),
    ],
    ids=str,
)
def test_observed_beyond_the_range(loss, observed):
    assert has_no_start(fit_line(np.full(64, observed), (1.0, 0.1), loss=loss))


def wall(likelihood):
    """Nothing is counted in the second half, where the line would be negative."""
    observed = np.where(T < 3, 6.0 - 2 * T, 0.0)
    return fit_line(observed, (8.0, -1.0), bounds=None, loss=likelihood)


@pytest.mark.parametrize("likelihood", [POISSON, type(PROBLEMS["own"].likelihood)(2.0)])
def test_a_mean_at_its_edge_without_bounds_is_no_success(likelihood):
    fit = wall(likelihood)
    assert fit.status == Status.STALLED
    assert "edge of its range" in fit.message
    assert "bounds=(0, inf)" in fit.message


def test_a_gradient_is_told_in_words_of_likelihoods():
    fit = fit_line(COUNTS, options=Options(gtol=1e-3, ftol=0, xtol=0))
    assert fit.status == Status.GRADIENT
    assert "gradient of the likelihood" in fit.message


# Hard starts


def no_lower_nearby(problem, x, observed):
    """That no step from x lowers the cost by 1e-8 and what rounding of means does."""
    problem = problem._replace(observed=observed)
    lower, upper = problem.box
    gradient, here = problem.gradient(x), np.real(problem.total(x))
    outward = ((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0))
    free = ~outward
    directions = [-gradient * free, *(-np.diag(np.sign(gradient) * free))]
    scale = np.maximum(np.abs(x), 1e-2)
    least = here - 1e-8 - 1e-15 * observed.size * np.max(np.abs(x))
    with np.errstate(all="ignore"):
        for direction in directions:
            size = np.linalg.norm(direction * scale)
            for length in np.geomspace(1e-12, 1e-2, 11):
                move = length * scale * direction * scale / (size or 1)
                there = np.clip(x + move, lower, upper)
                value = np.real(problem.total(there))
                assert not value < least, (x, there, value - here)


HARD = {
    "lifetime": ([0, 0.1, 0], np.inf),
    "doses": ([-2.0, 0.0], [8.0, 20.0]),
    "own": ([0, 0.1, 0], np.inf),
}


@pytest.mark.parametrize("is_bounded", [True, False])
@pytest.mark.parametrize("name", HARD)
def test_no_success_that_is_none(name, is_bounded):
    """Far starts, on bounds too: no step from a success lowers the cost."""
    problem = PROBLEMS[name]
    lower, upper = HARD[name]
    rng = np.random.default_rng(3)
    shape = 100, len(problem.x0)
    x0 = np.clip(problem.x0 * np.exp(1.5 * rng.normal(size=shape)), lower, upper)
    if name == "doses":
        x0[:, 0] = rng.uniform(0, 6, 100)
    if is_bounded:
        x0 = np.where(rng.random(shape) < 0.1, lower, x0)
    else:
        x0 = np.maximum(x0, 1e-3)
    lower, upper = (np.broadcast_to(bound, shape[1:]) for bound in HARD[name])
    bounds = (lower.astype(float), upper.astype(float)) if is_bounded else None
    problem = problem._replace(bounds=bounds)
    fits = solve_batch(
        problem.fn(),
        x0,
        problem.data,
        in_axes=(0, None),
        bounds=bounds,
        loss=problem.likelihood,
    )
    successes = np.flatnonzero(fits.success)
    assert len(successes) > (80 if is_bounded else 30)
    for i in successes:
        no_lower_nearby(problem, np.asarray(fits.x[i]), problem.observed)


# What is refused


def test_a_prediction_asks_for_a_likelihood():
    with pytest.raises(TypeError, match=r"fn returned a Prediction, and loss is None"):
        fit_line(COUNTS, loss=None)
    with pytest.raises(TypeError, match=r"returned a Prediction, and loss is Huber"):
        fit_line(COUNTS, loss=losses.Huber(1.0))


def test_a_likelihood_asks_for_a_prediction():
    with pytest.raises(
        TypeError, match=r"fn returned no Prediction.*jaxfit.Prediction"
    ):
        solve(lambda x, y: x - y, np.ones(64), COUNTS, loss=POISSON)


def test_observed_must_not_depend_on_x():
    def wrong(x, data):
        return Prediction(line(jnp, x, data[0]), data[1] + x[0])

    with pytest.raises(TypeError, match=r"must be data"):
        solve(wrong, np.ones(2), (T, COUNTS), loss=POISSON)

    def also_wrong(x, data):
        mean = line(jnp, x, data[0])
        return Prediction(mean, data[1], losses.StudentT(x[1], 3.0))

    with pytest.raises(TypeError, match=r"numbers of its likelihood.*must be data"):
        solve(also_wrong, np.ones(2), (T, COUNTS), loss=POISSON)


def test_shapes():
    with pytest.raises(ValueError, match=r"mean of the shape \(64,\) and observed.*63"):
        solve(straight, np.ones(2), (T, COUNTS[:63]), loss=POISSON)
    with pytest.raises(ValueError, match=r"numbers of the shape \(63,\).*mean has"):
        fit_line(COUNTS, loss=losses.PoissonGaussian(np.ones(63)))


def test_complex_numbers():
    def turned(x, data):
        t, observed = data
        mean = line(jnp, x, t)
        return Prediction(jax.lax.complex(mean, mean), observed)

    with pytest.raises(TypeError, match=r"mean of a Prediction is complex"):
        solve(turned, np.ones(2), (T, COUNTS), loss=POISSON)
    with pytest.raises(TypeError, match=r"observed of a Prediction is complex"):
        solve(straight, np.ones(2), (T, COUNTS + 1j), loss=POISSON)


def test_streams_take_numbers_with_their_rows():
    """A stream refuses a number for each row, and takes those that come with rows."""
    trials, counts = np.full(64, 9.0), np.minimum(COUNTS, 9.0)
    blocks = [(T[:32], counts[:32], trials[:32]), (T[32:], counts[32:], trials[32:])]

    def proportions(x, data):
        t, observed, trials = data
        mean = trials / (1 + jnp.exp(-line(jnp, x, t)))
        return Prediction(mean, observed, losses.Binomial(trials))

    with pytest.raises(ValueError, match=r"Binomial\(data\[\.\.\.\]\)"):
        solve_stream(proportions, np.zeros(2), blocks, loss=losses.Binomial(trials))
    found = solve_stream(proportions, np.zeros(2), blocks, loss=losses.Binomial(1.0))
    data = T, counts, trials
    expected = solve(proportions, np.zeros(2), data, loss=losses.Binomial(1.0))
    assert found.success
    assert_allclose(found.x, expected.x, rtol=1e-10)
    assert_allclose(found.stderr(), expected.stderr(), rtol=1e-9)


def test_a_joint_fit_of_linear_parameters_is_refused():
    def block(x, u, data):
        t, observed = data
        return Prediction(u[0] * jnp.exp(-t / x[0]), observed)

    with pytest.raises(ValueError, match="linear"):
        solve_joint(
            block,
            np.ones(1),
            np.ones((2, 1)),
            (Shared(T), np.stack([COUNTS, COUNTS])),
            loss=POISSON,
            linear=True,
        )


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_whole_numbers_are_counts(dtype):
    """Counts and trials are whole numbers, as they come from a detector."""
    t = np.linspace(0, 1, 20).astype(dtype)
    k = np.arange(20) // 3

    def fn(p, data):
        trials, observed = data
        mean = 9 * jax.nn.sigmoid(p[0] + p[1] * t)
        return Prediction(mean, observed, losses.Binomial(trials))

    start = jnp.zeros(2, dtype)
    whole = solve(fn, start, (np.full(20, 9), k), loss=losses.Binomial(1))
    floating = solve(
        fn, start, (np.full(20, 9.0, dtype), k.astype(dtype)), loss=losses.Binomial(1)
    )
    assert whole.success
    np.testing.assert_array_equal(whole.x, floating.x)
