"""`TrustRegionReflective` in `optimistix.least_squares`: the answers of `solve`."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxfit
from jaxfit.interop.optimistix import ImplicitAdjoint, TrustRegionReflective

T = jnp.linspace(0, 4, 40)
Y = 2.5 * jnp.exp(-1.3 * T) + 0.5 + 0.05 * jnp.sin(17 * T)
START = {"a": jnp.array(1.0), "c": jnp.array(0.0), "k": jnp.array(1.0)}
BELOW = {"a": -jnp.inf, "c": 0.0, "k": 0.0}
ABOVE = {"a": 2.0, "c": jnp.inf, "k": jnp.inf}

TRF = TrustRegionReflective()


def residual(p, data):
    t, y = data
    return p["a"] * jnp.exp(-p["k"] * t) + p["c"] - y


def with_aux(p, data):
    value = residual(p, data)
    return value, {"sum": jnp.sum(value), "rate": p["k"]}


def found(solver, fn=residual, y0=START, args=(T, Y), **keywords):
    return optx.least_squares(fn, solver, y0, args, **keywords)


def flat(tree):
    return np.array(jax.tree.leaves(tree), float)


WAYS = {
    "bounds": ({"lower": BELOW, "upper": ABOVE}, {}),
    "fixed": ({"lower": BELOW | {"k": 1.1}, "upper": ABOVE | {"k": 1.1}}, {}),
    "scaled, jacobian": (
        {"lower": 0.0},
        {
            "x_scale": {"a": 1.0, "c": 0.1, "k": 1.0},
            "jac": lambda p, data: jax.jacfwd(residual)(p, data),
        },
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_answer_of_solve(way):
    asked, ours = WAYS[way]
    options = jaxfit.Options(**ours)
    sol = found(TrustRegionReflective(options=options), options=asked)
    bounds = None
    if "lower" in asked or "upper" in asked:
        bounds = asked.get("lower", -jnp.inf), asked.get("upper", jnp.inf)
    reference = jaxfit.solve(residual, START, (T, Y), bounds=bounds, options=options)
    assert_allclose(flat(sol.value), flat(reference.x), rtol=1e-12)
    assert sol.stats["num_steps"] == reference.nfev
    assert sol.result == optx.RESULTS.successful
    solution = sol.stats["solution"]
    assert solution.message == reference.message
    assert_allclose(solution.covariance(), reference.covariance(), rtol=1e-9)
    assert_array_equal(flat(solution.active), flat(reference.active))
    assert_array_equal(sol.state.point.x, flat(sol.value))


def test_its_tolerances_are_those_of_optimistix_too():
    loose, tight = (
        found(TrustRegionReflective(rtol=tol, atol=tol)) for tol in (1e-3, 1e-12)
    )
    best = found(TrustRegionReflective())
    steps = [int(sol.stats["num_steps"]) for sol in (loose, tight, best)]
    assert steps[0] < steps[1] <= steps[2]
    assert_allclose(flat(loose.value), flat(best.value), rtol=1e-3)
    assert bool(loose.stats["solution"].success)
    other = found(optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10))
    assert_allclose(flat(best.value), flat(other.value), rtol=1e-6)


def test_one_bound_and_reverse_mode():
    sol = found(TRF, options={"upper": 2.0, "jac": "bwd"})
    bounded = found(TRF, options={"lower": BELOW, "upper": ABOVE})
    assert_allclose(flat(sol.value), flat(bounded.value), rtol=1e-9)


def test_aux_is_that_of_the_value():
    sol = found(TrustRegionReflective(), with_aux, has_aux=True)
    _, aux = with_aux(sol.value, (T, Y))
    assert_allclose(sol.aux["sum"], aux["sum"], rtol=1e-9, atol=1e-12)
    assert sol.aux["rate"] == sol.value["k"]


def test_float32_stays():
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), START)
    data = T.astype(jnp.float32), Y.astype(jnp.float32)
    sol = found(TrustRegionReflective(), y0=start, args=data)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(sol.value)} == {"float32"}
    assert_allclose(flat(sol.value), flat(found(TRF).value), rtol=1e-4)


def test_args_may_hold_a_function():
    def fn(p, args):
        curve, y = args
        return p[0] * curve(-p[1] * T) + p[2] - y

    start = jnp.array([1.0, 1.0, 0.0])
    sol = found(TrustRegionReflective(), fn, start, (jnp.exp, Y))
    assert_allclose(np.sort(sol.value), np.sort(flat(found(TRF).value)), rtol=1e-10)


NAN = Y.at[3].set(jnp.nan)
CROSSED = {"lower": {"a": 3.0, "c": 0.0, "k": 0.0}, "upper": ABOVE}


ENDS = {
    "limit of optimistix": (
        {"max_steps": 3},
        {},
        "nonlinear_max_steps_reached",
        "MAX_STEPS",
    ),
    "limit of ours": (
        {},
        {"max_steps": 3},
        "nonlinear_max_steps_reached",
        "MAX_STEPS",
    ),
    "nan": ({"args": (T, NAN)}, {}, "nonfinite", "NONFINITE_START"),
    "crossed": ({"options": CROSSED}, {}, "nonlinear_divergence", "INVALID_BOUNDS"),
}


@pytest.mark.parametrize("end", ENDS)
def test_how_it_ends(end):
    keywords, ours, result, status = ENDS[end]
    solver = TrustRegionReflective(options=jaxfit.Options(**ours))
    sol = found(solver, throw=False, **keywords)
    assert sol.result == getattr(optx.RESULTS, result)
    assert sol.stats["solution"].status == jaxfit.Status[status]


def test_it_throws():
    with pytest.raises(Exception, match="onfinite"):
        jax.block_until_ready(found(TRF, args=(T, NAN)).value)


def test_many_at_once():
    ys = Y + 0.1 * jax.random.normal(jax.random.key(0), (5, 40))
    solver = TrustRegionReflective(rtol=1e-13, atol=1e-13)
    sols = jax.jit(jax.vmap(lambda y: found(solver, args=(T, y))))(ys)
    alone = found(solver, args=(T, ys[1]))
    assert sols.stats["num_steps"][1] == alone.stats["num_steps"]
    assert_allclose(sols.value["k"][1], alone.value["k"], rtol=1e-9)
    stderr = sols.stats["solution"].stderr()
    assert_allclose(stderr["k"][1], alone.stats["solution"].stderr()["k"], rtol=1e-6)


def test_step_by_step():
    """As optimistix documents it for a solver driven by hand."""
    tags = frozenset()
    fn, args, y = lambda p, data: (residual(p, data), None), (T, Y), START
    shape = jax.eval_shape(residual, y, args)
    state = TRF.init(fn, y, args, {}, shape, None, tags)
    step = jax.jit(lambda y, state: TRF.step(fn, y, args, {}, state, tags)[:2])
    trips = 0
    while not TRF.terminate(fn, y, args, {}, state, tags)[0]:
        y, state = step(y, state)
        trips += 1
    sol = found(TRF)
    assert trips == sol.stats["num_steps"]
    assert_allclose(flat(y), flat(sol.value), rtol=1e-12)


@pytest.mark.parametrize(
    ("adjoint", "upper"),
    [(optx.ImplicitAdjoint(), 9.0), (ImplicitAdjoint(), 2.0)],
    ids=["optimistix's, inside", "ours, at a bound"],
)
def test_derivatives(adjoint, upper):
    place = jnp.zeros(40).at[3].set(1.0)

    def rate(shift, bound):
        options = {"lower": BELOW, "upper": ABOVE | {"a": bound}}
        sol = found(TRF, args=(T, Y + shift * place), options=options, adjoint=adjoint)
        return sol.value["k"] + sol.value["a"]

    value_and_slopes = jax.jit(jax.value_and_grad(rate, (0, 1)))

    def at(shift, bound):
        return value_and_slopes(jnp.array(shift), jnp.array(bound))

    _, slopes = at(0.0, upper)
    h = 1e-5
    differences = [
        (at(u * h, upper + v * h)[0] - at(-u * h, upper - v * h)[0]) / (2 * h)
        for u, v in ((1, 0), (0, 1))
    ]
    assert_allclose(slopes, differences, rtol=1e-5, atol=1e-7)


WRONG = {
    "options": (
        lambda: found(TRF, options={"lowr": 0.0}),
        "options has 'lowr'; TrustRegionReflective knows 'lower', 'upper', 'jac'",
    ),
    "jac": (lambda: found(TRF, options={"jac": "rev"}), "give 'fwd' or 'bwd'"),
    "rtol": (lambda: TrustRegionReflective(rtol=-1.0), "rtol is -1.0; give a number"),
    "array": (lambda: TrustRegionReflective(atol=jnp.array(1.0)), "of Python's"),
    "bounds": (
        lambda: TrustRegionReflective(options={"lower": 0}),
        "expected jaxfit.Options",
    ),
    "adjoint": (
        lambda: found(optx.LevenbergMarquardt(1e-8, 1e-8), adjoint=ImplicitAdjoint()),
        "this adjoint is for TrustRegionReflective",
    ),
    "shape": (
        lambda: found(TRF, options={"lower": {"a": 0.0}}),
        "the lower bound has structure",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_refusals(case):
    call, words = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=words):
        call()
