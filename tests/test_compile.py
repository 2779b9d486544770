"""What is compiled once, and which functions are never taken for one another."""

import functools
import logging
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, decay, residual

import jaxfit
from jaxfit import Options, losses
from jaxfit._programs import compiled as _compile
from jaxfit._programs.backend import _no_trace

DATA, _ = decay()


@pytest.fixture(autouse=True)
def _fresh_cache():
    _compile._programs.clear()


def counted():
    """A residual function and the list that counts its traces."""
    traces = []

    def fn(x, data):
        traces.append(1)
        return residual(x, data)

    return fn, traces


def test_stands_in_the_program_once():
    fn, traces = counted()
    jaxfit.solve(fn, START, DATA)
    assert len(traces) == 1
    jaxfit.solve(fn, START, DATA, bounds=(0.0, 9.0), loss=losses.Huber(0.1))
    assert len(traces) == 2


def test_new_numbers_compile_nothing():
    """Data, start, bounds, weights, loss scale and every option are traced."""
    fn, traces = counted()
    for k in range(4):
        t, y = DATA
        jaxfit.solve(
            fn,
            START + 0.1 * k,
            (t, y + k),
            bounds=(-1.0 - k, np.full(3, 10.0 + k)),
            weights=np.full(40, 1.0 + k),
            loss=losses.SoftL1(0.1 + k),
            options=Options(
                ftol=1e-8 * (k + 1),
                xtol=1e-8 * (k + 1),
                gtol=1e-8 * (k + 1),
                max_steps=50 + k,
                x_scale=1.0 + k,
            ),
        )
    assert len(traces) == 1


def test_a_thousand_new_functions_compile_once():
    traces = []

    def make(power):
        def fn(x, data):
            traces.append(power)
            return residual(x, data) ** power

        return fn

    for _ in range(1000):
        jaxfit.solve(make(1), START, DATA)
    assert traces == [1]
    for _ in range(3):
        jaxfit.solve(lambda x, data: make(1)(x, data), START, DATA)
    assert traces == [1, 1]


def test_jitted_solve_traces_once_per_shape():
    fn, traces = counted()
    solve = jax.jit(lambda x0, data: jaxfit.solve(fn, x0, data))
    for k in range(3):
        solve(START + k, DATA)
    assert len(traces) == 1


@pytest.mark.parametrize("kind", ["nonlocal", "list", "attribute", "global"])
def test_counting_traces_does_not_compile_again(kind):
    """What tracing writes is a side effect; two functions may share the counter."""
    count, calls = 0, []

    class Holder:
        seen = 0

    holder = Holder()

    def make(shift):
        def fn(x, data):
            nonlocal count
            if kind == "nonlocal":
                count += 1
            elif kind == "list":
                calls.append(shift)
            elif kind == "attribute":
                holder.seen += 1
            else:
                globals()["TRACES"] += 1
                TRACES + 0  # named, so that it is part of what fn is
            return residual(x, data) + shift

        return fn

    globals()["TRACES"] = 0
    for _ in range(3):
        for shift in (0.0, 1.0):
            jaxfit.solve(make(shift), START, DATA)
    assert count + len(calls) + holder.seen + TRACES == 2


TRACES = 0
GLOBAL_SHIFT = 0.0


def shifted_by_global(x, data):
    return residual(x, data) + GLOBAL_SHIFT


def helper(x):
    return x


def through_helper(x, data):
    return residual(helper(x), data)


class Shifted:
    """A bound method whose instance can change."""

    def __init__(self, shift):
        self.shift = shift

    def fn(self, x, data):
        return residual(x, data) + self.shift


class ShiftedModule(eqx.Module):
    shift: jax.Array
    sign: float = eqx.field(static=True)

    def __call__(self, x, data):
        return residual(x, data) + self.sign * self.shift


def offset(solution):
    """The fitted offset, which every shift of the residuals moves by as much."""
    return round(float(solution.x[2]), 6)


def make_pairs():
    """Pairs of functions that look alike and differ by one in the fitted offset."""

    def over(value):
        return lambda x, data: residual(x, data) + value

    def over_container(container):
        return lambda x, data: residual(x, data) + container[0]

    def nested(value):
        def outer(x, data):
            inner = lambda r: (lambda s: s + value)(r)  # noqa: E731
            return inner(residual(x, data))

        return outer

    def default(value):
        def fn(x, data, shift=value):
            return residual(x, data) + shift

        return fn

    def keyword(value):
        def fn(x, data, *, shift=value):
            return residual(x, data) + shift

        return fn

    def with_args(shift, x, data):
        return residual(x, data) + shift

    def method(value):
        return Shifted(value).fn

    def module(value):
        return ShiftedModule(jnp.asarray(value), 1.0)

    def static_module(value):
        return ShiftedModule(jnp.asarray(1.0), value)

    makers = {
        "float": over,
        "numpy array": lambda v: over(np.array(v)),
        "jax array": lambda v: over(jnp.array(v)),
        "list": lambda v: over_container([v]),
        "tuple": lambda v: over_container((v,)),
        "dict": lambda v: over_container({0: v}),
        "array in a list": lambda v: over_container([np.array(v)]),
        "nested lambda": nested,
        "default": default,
        "keyword default": keyword,
        "partial": lambda v: functools.partial(with_args, v),
        "partial of partial": lambda v: functools.partial(
            functools.partial(with_args), v
        ),
        "tree Partial": lambda v: jax.tree_util.Partial(with_args, v),
        "function in Partial": lambda v: jax.tree_util.Partial(over(v)),
        "bound method": method,
        "module": module,
        "static field": static_module,
        "jitted": lambda v: jax.jit(over(v)),
    }
    return makers


@pytest.mark.parametrize("kind", make_pairs())
def test_different_functions_are_different(kind):
    make = make_pairs()[kind]
    zero = offset(jaxfit.solve(make(0.0), START, DATA))
    one = offset(jaxfit.solve(make(1.0), START, DATA))
    assert zero - one == pytest.approx(1, abs=1e-5)
    assert offset(jaxfit.solve(make(0.0), START, DATA)) == pytest.approx(zero, abs=1e-5)


def test_rebound_and_mutated():
    """The same function object, whose meaning changes between two calls."""
    shift, box, array = 0.0, [0.0], np.zeros(1)
    holder = Shifted(0.0)

    def by_cell(x, data):
        return residual(x, data) + shift

    def by_list(x, data):
        return residual(x, data) + box[0]

    def by_array(x, data):
        return residual(x, data) + array

    functions = [by_cell, by_list, by_array, holder.fn, shifted_by_global]
    before = [offset(jaxfit.solve(fn, START, DATA)) for fn in functions]
    shift, box[0], array[0], holder.shift = 1.0, 1.0, 1.0, 1.0
    globals()["GLOBAL_SHIFT"] = 1.0
    after = [offset(jaxfit.solve(fn, START, DATA)) for fn in functions]
    globals()["GLOBAL_SHIFT"] = 0.0
    np.testing.assert_allclose(np.array(before) - after, 1, atol=1e-5)


def test_a_redefined_helper_is_seen(monkeypatch):
    plain = jaxfit.solve(through_helper, START, DATA)
    monkeypatch.setitem(globals(), "helper", lambda x: 2 * x)
    doubled = jaxfit.solve(through_helper, START, DATA)
    np.testing.assert_allclose(2 * doubled.x, plain.x, rtol=1e-6)


def test_library_objects_count_by_identity():
    """A logger changes all the time; that compiles nothing again."""
    logger, settings = logging.getLogger("test"), types.SimpleNamespace(shift=0.0)
    traces = []

    def fn(x, data):
        traces.append(1)
        logger.debug("traced")
        return residual(x, data) + settings.shift

    first = jaxfit.solve(fn, START, DATA)
    logging.getLogger("test.another").setLevel("ERROR")
    logger.isEnabledFor(logging.ERROR)
    jaxfit.solve(fn, START, DATA)
    assert len(traces) == 1
    settings.shift = 1.0
    second = jaxfit.solve(fn, START, DATA)
    np.testing.assert_allclose(first.x[2] - second.x[2], 1, atol=1e-6)


def test_signs_of_zero_and_types_differ():
    def over(value):
        return lambda x, data: residual(x, data) + (1.0 if str(value) == "1" else 0.0)

    results = [offset(jaxfit.solve(over(v), START, DATA)) for v in (True, 1, 1.0)]
    assert results[0] == results[2] != results[1]


def test_user_jacobians_are_told_apart():
    def scaled(factor):
        return lambda x, data: factor * jax.jacfwd(residual)(x, data)

    right, wrong = (
        jaxfit.solve(residual, START, DATA, options=Options(jac=scaled(factor)))
        for factor in (1.0, -1.0)
    )
    assert right.success
    assert not wrong.success


def test_closed_over_tracers_are_not_kept():
    t, y = DATA

    @jax.jit
    def outer(shift):
        return jaxfit.solve(lambda x, data: residual(x, data) + shift, START, (t, y)).x

    shifted = outer(jnp.float64(1.0))
    np.testing.assert_allclose(outer(jnp.float64(0.0))[2] - shifted[2], 1, atol=1e-6)
    assert not _compile._programs


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(_compile, "CACHE_SIZE", 3)
    for k in range(5):
        jaxfit.solve(lambda x, data, k=k: x - k, np.array([1.0]))
    assert len(_compile._programs) <= 3
    assert jaxfit.solve(lambda x, data, k=0: x - k, np.array([1.0])).x[0] == 0


def test_static_leaves_of_data():
    """What is no array in the data is part of the program, by value."""

    def fn(x, data):
        return residual(x, data["points"]) + (1.0 if data["unit"] == "shifted" else 0.0)

    plain, shifted = (
        jaxfit.solve(fn, START, {"points": DATA, "unit": unit})
        for unit in ("plain", "shifted")
    )
    np.testing.assert_allclose(plain.x[2] - shifted.x[2], 1, atol=1e-6)


def test_a_constant_fit_inside_jit():
    """Nothing of it is traced, and still it is part of a program."""
    data, _ = decay()

    @jax.jit
    def fit(s):
        _no_trace.cache_clear()  # as in a process that begins with this
        return s * jaxfit.solve(residual, START, data).x

    expected = jaxfit.solve(residual, START, data).x
    np.testing.assert_allclose(fit(2.0), 2 * expected, rtol=1e-9)
