"""First answers: what a call compiles, and what the next call then need not.

Programs are counted as JAX compiles them. Padded data have the answer of their own
length, a lean program that of the whole one.
"""

import contextlib
import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, decay, residual

import jaxfit
from jaxfit import models
from jaxfit._programs import compiled as _compile
from jaxfit.fitting import _run
from jaxfit.fitting._padding import padded_length
from jaxfit.models._guess import Tally

RANDOM = np.random.default_rng(22)
MODEL = models.Lorentzian() + models.Linear()
X = np.linspace(0, 10, 60)
TRUTH = {"height": 5, "center": 4, "width": 0.8, "slope": 0.3, "intercept": 1}


def data(points=60, number=None):
    shape = (points,) if number is None else (number, points)
    x = np.linspace(0, 10, points)
    return x, np.asarray(MODEL(x, TRUTH)) + 0.1 * RANDOM.normal(size=shape)


@contextlib.contextmanager
def compilations():
    """The names of what JAX compiles meanwhile, without what takes no time."""
    names: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if "Finished XLA compilation" in message:
                name = message.partition("jit(")[2].partition(")")[0]
                names.append(name)

    logger, listener = logging.getLogger("jax._src.dispatch"), Listener()
    before, propagates = jax.config.jax_log_compiles, logger.propagate
    others = logger.handlers
    jax.config.update("jax_log_compiles", True)
    logger.handlers, logger.propagate = [listener], False
    try:
        yield names
    finally:
        logger.handlers, logger.propagate = others, propagates
        jax.config.update("jax_log_compiles", before)


@pytest.fixture(autouse=True)
def _fresh_cache():
    _compile._programs.clear()
    _compile._incomplete.clear()


def test_one_program_serves_all_that_is_asked_of_a_model():
    first, shorter, shortest = data(), data(points=57), data(points=49)
    many, few = data(number=30), data(points=50, number=3)
    loose = jaxfit.Options(ftol=1e-6, gtol=1e-3, max_steps=50)
    with compilations() as names:
        fit = jaxfit.fit(MODEL, *first)
    assert names.count("fits") == 1
    assert len(names) <= 3
    with compilations() as names:
        fit.intervals("profile")
        fit.profile()
        fit.bootstrap(200)
        fit.bootstrap(50, "case")
        fit.contour("center", "width", points=8)
        jaxfit.fit_batch(MODEL, *many)
        jaxfit.fit(MODEL, *shorter, p0={"center": 4.1})
        jaxfit.fit(MODEL, *shortest, options=loose)
        jaxfit.fit(MODEL, *first, bounds={"slope": (0, 1)})
        jaxfit.fit_batch(MODEL, *few, absolute_sigma=True)
    assert names == []
    with compilations() as names:
        jaxfit.fit(MODEL, *first, starts=8)  # far off some want the whole program
    assert len(names) <= 1


def test_groups_of_other_lengths_compile_once_for_a_few_lengths():
    with compilations() as names:
        for points in range(10, 101, 3):
            jaxfit.fit(models.Exponential(), X[:points] / 10, np.exp(-X[:points] / 10))
    assert names.count("fits") <= 6  # 16, 24, 32, 48, 64, and no more than 60 points


@pytest.mark.parametrize("points", [9, 17, 59])
@pytest.mark.parametrize("sigma", [None, "one", "each"])
def test_padding_changes_nothing_but_rounding(points, sigma, monkeypatch):
    x, y = data(points)
    sigma = {"one": 0.3, "each": RANDOM.uniform(0.1, 0.3, points)}.get(sigma)
    prior = {"prior": {"slope": (0.3, 0.1), "width": (0.8, 0.1)}}
    settings = {"sigma": sigma, "nan_policy": "omit", **prior}
    y[2] = np.nan
    padded = jaxfit.fit(MODEL, x, y, **settings)
    monkeypatch.setattr(
        _run, "padded_length", lambda problem, points, is_for_few: points
    )
    plain = jaxfit.fit(MODEL, x, y, **settings)
    error = np.array(list(plain.errors.values()))
    size = np.where(np.isfinite(error), error, 1)
    np.testing.assert_allclose(
        list(padded.values.values()) / size,
        list(plain.values.values()) / size,
        atol=1e-8,
    )
    np.testing.assert_allclose(list(padded.errors.values()), error, rtol=1e-6)
    assert padded.dof == plain.dof
    np.testing.assert_allclose(padded.chi_square, plain.chi_square, rtol=1e-10)
    assert padded.best_fit.shape == (points,)
    np.testing.assert_allclose(padded.best_fit, plain.best_fit, rtol=1e-6)


def test_images_and_open_grids_are_padded_too():
    spot = models.Gaussian2D() + models.Constant()
    across, down = np.arange(7.0), np.arange(9.0)[:, None]
    truth = {"height": 9, "center_x": 3.2, "center_y": 4.4, "width": 1.2, "c": 1}
    image = np.asarray(spot((across + 0 * down, down + 0 * across), truth))
    image = image + 0.01 * RANDOM.normal(size=image.shape)
    fit = jaxfit.fit(spot, (across, down), image)
    assert fit.best_fit.shape == image.shape
    assert fit.values["center_y"] == pytest.approx(4.4, abs=0.01)
    with compilations() as names:
        other = jaxfit.fit(spot, (across, down[:8]), image[:8])
        stacks = jaxfit.fit_batch(
            spot, (across[:6], down), np.stack(3 * [image[:, :6]])
        )
    assert names == []
    assert other.values["center_x"] == pytest.approx(3.2, abs=0.01)
    np.testing.assert_allclose(stacks["center_x"], 3.2, atol=0.01)


def test_a_function_of_ones_own_is_padded_if_it_says_so():
    def decay_of(x, a, b):
        return a * jnp.exp(-b * x)

    def mean_of(x, a):  # not row by row
        return a * jnp.ones_like(x) * jnp.mean(x)

    x = np.linspace(0, 3, 41)
    y = 2 * np.exp(-1.5 * x)
    fit = jaxfit.fit(decay_of, x, y, rowwise=True)
    assert fit.values["b"] == pytest.approx(1.5)
    with compilations() as names:
        shorter = jaxfit.fit(decay_of, x[:37], y[:37], rowwise=True)
        jaxfit.fit_batch(decay_of, x[:38], np.stack([y[:38], 2 * y[:38]]), rowwise=True)
    assert names == []
    assert shorter.values["a"] == pytest.approx(2)
    whole = jaxfit.fit(mean_of, x, 3 * np.full(41, x.mean()))
    assert whole.values["a"] == pytest.approx(3)
    with pytest.raises(ValueError, match=r"rowwise=True.*no axis of the 41 points"):
        jaxfit.fit(lambda x, a: a * x[0], (x, np.ones(3)), y, rowwise=True)


def test_many_fits_are_padded_little():
    """Those that a faster program does: lengths differ by an eighth at most."""
    x, y = data(61, number=2)
    problem, _ = jaxfit.fitting._arguments.problem_from(MODEL)
    assert padded_length(problem, 61, is_for_few=False) == 64
    assert padded_length(problem, 129, is_for_few=False) == 144
    assert [padded_length(problem, m, False) for m in (1, 7, 16)] == [1, 7, 16]
    many = np.tile(y, (5000, 1))
    fits = jaxfit.fit_batch(MODEL, x, many, p0=TRUTH)
    few = jaxfit.fit_batch(MODEL, x, y, p0=TRUTH)
    np.testing.assert_allclose(fits["center"][:2], few["center"], rtol=1e-9)
    np.testing.assert_allclose(
        fits.errors["width"][-2:], few.errors["width"], rtol=1e-6
    )


def test_what_was_done_without_a_program_is_counted():
    tally = Tally()
    model = models.Gaussian()
    assert tally.holds(model, 60, 100)
    assert not tally.holds(model, 60, 100)
    assert tally.holds(models.Sine(), 60, 100)
    assert tally.holds(models.Gaussian(), 40, 100)  # the same model, made anew


@pytest.mark.parametrize("number", [None, 3])
def test_errors_of_a_solution_are_one_program(number):
    (t, y), _ = decay()
    if number is None:
        one, two = (jaxfit.solve(residual, START, (t, k * y)) for k in (1, 2))
    else:
        many = np.stack(number * [y])
        axes = {"in_axes": (None, (None, 0))}
        one, two = (
            jaxfit.solve_batch(residual, START, (t, k * many), **axes) for k in (1, 2)
        )
    for method in ("covariance", "stderr", "determined", "correlation"):
        with compilations() as names:
            first = getattr(one, method)()
        assert names.count(method) == len(names) == 1
        with compilations() as names:
            getattr(two, method)()
        assert names == []
        traced = jax.jit(lambda solution, method=method: getattr(solution, method)())
        np.testing.assert_allclose(first, traced(one), rtol=1e-8)
    np.testing.assert_allclose(one.stderr(absolute=True), one.stderr(True))
    with pytest.raises(TypeError, match="unexpected keyword argument 'relative'"):
        one.stderr(relative=True)


# Lean programs


def test_a_lean_program_gives_what_the_whole_one_gives():
    t_y, _ = decay()
    lean = jaxfit.solve(residual, START, t_y)
    whole = jax.jit(jaxfit.solve, static_argnums=0)(residual, START, t_y)
    np.testing.assert_allclose(lean.x, whole.x, rtol=1e-12)
    assert int(lean.nfev) == int(whole.nfev)
    assert int(lean.status) == int(whole.status)


def test_what_is_seldom_needed_is_compiled_when_it_is():
    """A Jacobian without its digits, a kink, and neither."""

    def parallel(x, s):
        return jnp.stack([x[0] + x[1] - 2, (1 + s) * x[0] + x[1] - 2 - s, x[0] - 1])

    def bent(x, _):
        return jnp.stack([jnp.abs(x[0] - x[1]) + 1.0, 0.1 * (x[0] + x[1] - 4)])

    with compilations() as names:
        first = jaxfit.solve(parallel, np.array([3.0, 5.0]), 0.5)
    assert names.count("solve") == 1
    np.testing.assert_allclose(first.x, 1, rtol=1e-10)

    def degenerate(x, s):
        return jnp.stack([x[0] + x[1] - 2, x[0] + (1 + s) * x[1] - 2 - s])

    with compilations() as names:
        found = jaxfit.solve(degenerate, np.array([3.0, 5.0]), 1e-9)
        again = jaxfit.solve(degenerate, np.array([4.0, 5.0]), 1e-9)
    assert names.count("solve") == 2
    for one in (found, again):
        assert one.success
        np.testing.assert_allclose(one.x, 1, rtol=1e-5)
    kink = jaxfit.solve(bent, np.array([3.0, 0.0]))
    assert kink.status == jaxfit.Status.KINK
    np.testing.assert_allclose(kink.x, 2, rtol=1e-6)


def test_of_a_batch_only_incomplete_fits_are_done_anew():
    """Some curves of a batch do not determine what others do."""
    two = models.Exponential(prefix="a_") + models.Exponential(prefix="b_")
    x = np.linspace(0, 5, 40)
    truth = {"a_amplitude": 3, "a_rate": 2, "b_amplitude": 1, "b_rate": 0.3}
    clear = np.asarray(two(x, truth))
    single = 4 * np.exp(-x)
    start = {"a_amplitude": 2.5, "a_rate": 1.5, "b_amplitude": 1.2, "b_rate": 0.4}
    y = np.stack([clear, single, clear])
    fits = jaxfit.fit_batch(two, x, y, p0=start)
    alone = jaxfit.fit_batch(two, x, y[:1], p0=start)
    np.testing.assert_array_equal(fits["a_rate"][[0, 2]], alone["a_rate"][0])
    np.testing.assert_allclose(fits["b_rate"][0], 0.3, rtol=1e-8)
    own = jaxfit.solve(
        lambda p, d: p[::2] @ jnp.exp(-p[1::2, None] * d[0]) - d[1],
        np.array(list(start.values())),
        (x, single),
    )
    assert bool(own.success) == bool(fits.success[1])
    determined = [bool(fits.determined[name][1]) for name in start]
    assert determined == list(map(bool, own.determined()))


def test_functions_of_the_user_in_a_report_do_not_see_that_it_is_lean():
    """With `full_output` the report evaluates the model, which has a fit in it."""

    def model(x, a, b):
        def inner(q, _):
            return jnp.stack([q[0] + q[1] - a, q[0] + (1 + 1e-9) * q[1] - a])

        return b * x + jaxfit.solve(inner, jnp.ones(2)).x.sum()

    x = np.linspace(0, 1, 12)
    found, covariance, details, *_ = jaxfit.curve_fit(
        model, x, 3 * x + 2, [1.0, 1.0], full_output=True
    )
    np.testing.assert_allclose(found, [2, 3], rtol=1e-6)
    assert np.isfinite(covariance).all()
    np.testing.assert_allclose(details["fvec"], 0, atol=1e-6)


def test_a_fit_in_a_report_has_a_report_of_its_own():
    """While a batch is traced its `keep` fits, by a program that others use later."""
    t = np.linspace(0, 1, 10)
    y = 2 * t + 0.01 * np.sin(99 * t)

    def twice(t, u=1.0, v=1.0):
        return u * t + v * t

    def straight(p, data):
        return p[0] * data[0] + p[1] - data[1]

    def keep(solution):
        jaxfit.fit(twice, t, y)
        return solution.x

    data = np.stack(4 * [t]), np.stack(4 * [y])
    kept = jaxfit.solve_batch(straight, np.ones((4, 2)), data, keep=keep)
    np.testing.assert_allclose(kept[:, 0], 2, atol=0.02)
    seen = []

    @jax.jit
    def outer(value):
        seen.append(jaxfit.fit(twice, t, y).errors["u"])
        return value

    outer(1.0)
    seen.append(jaxfit.fit(twice, t, y).errors["u"])
    assert seen == [np.inf, np.inf]


def test_settings_of_a_problem_are_no_numbers():
    """What says how a program is made stands in its structure."""
    problem, _ = jaxfit.fitting._arguments.problem_from(MODEL)
    other = dataclasses.replace(problem, rowwise="yes")
    assert jax.tree.structure(problem) != jax.tree.structure(other)
    for flag in (1, 2, np.bool_(True)):
        same, _ = jaxfit.fitting._arguments.problem_from(MODEL, rowwise=flag)
        assert jax.tree.structure(same) == jax.tree.structure(other)
