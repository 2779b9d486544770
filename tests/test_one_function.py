"""A fit as one function: where the mark is set, what may stand in it, and that it
changes nothing but the speed."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import primitives
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxfit
from jaxfit import Options
from jaxfit._core.fit import Request, set_up
from jaxfit._programs import compiled as _compile
from jaxfit._programs import one_function as _one_function
from jaxfit._programs import program
from jaxfit._programs.one_function import PRIMITIVES, can_be_one_function
from jaxfit._programs.smooth import inner_jaxprs

T = np.linspace(0, 4, 40)
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.01 * np.cos(20 * T)
START = np.array([1.0, 1.0, 0.0])

ALWAYS, NEVER = Options(one_function=True), Options(one_function=False)


def residual(p, data):
    t, y = data
    return p[0] * jnp.exp(-p[1] * t) + p[2] - y


def fit(x0=START, data=(T, Y), fn=residual, options=ALWAYS, **arguments):
    return jaxfit.solve(fn, x0, data, options=options, **arguments)


def two_devices():
    auto, devices = (jax.sharding.AxisType.Auto,), jax.devices()[:2]
    return jax.make_mesh((2,), ("i",), axis_types=auto, devices=devices)


def first(number, options=None):
    """A fit of as many points, which nobody else has: programs are kept."""
    return fit(data=(T[:number], Y[:number]), options=options)


def is_marked(function, *arguments) -> bool:
    return (
        'xla_cpu_small_call = "true"' in jax.jit(function).lower(*arguments).as_text()
    )


# Primitives


def run_alone(names):
    """How each ends, in processes of their own: an abort ends one."""
    names, ends = list(names), {}
    while names:
        script = Path(primitives.__file__)
        command = [sys.executable, script, *names]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        words = [line.split() for line in run.stdout.splitlines()]
        ends |= {name: "right" for end, name in words if end == "right"}
        if run.returncode:
            assert words, run.stderr
            ends[words[-1][1]] = run.stderr[-1000:]
        names = [name for name in names if name not in ends]
    return ends


@pytest.mark.parametrize("part", range(2))
def test_primitives_that_were_tried(part):
    for name, end in run_alone([*primitives.TRIED][part::2]).items():
        assert end == "right", name


@pytest.fixture(autouse=True)
def _standard_promotion():
    """The functions of `primitives.py` mix dtypes, as a user's do."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def jaxpr_of(function):
    return jax.make_jaxpr(function)(jnp.asarray(primitives.P), primitives.T).jaxpr


def names_in(jaxpr):
    for equation in jaxpr.eqns:
        yield _one_function._name(equation)
        for inner in inner_jaxprs(equation):
            yield from names_in(inner)


def test_only_what_was_tried_is_in_the_table():
    seen = {name for f in primitives.TRIED.values() for name in names_in(jaxpr_of(f))}
    other_releases = {"SearchSorted", "lt_to", "polynomial", "unstack"}
    in_derivatives = {"add_any"}  # of nearly all of them
    assert PRIMITIVES - seen <= other_releases | in_derivatives


@pytest.mark.parametrize("name", primitives.TRIED)
def test_is_found_possible(name):
    assert can_be_one_function(jaxpr_of(primitives.TRIED[name]), times=4)


@pytest.mark.parametrize("name", primitives.OTHERS)
def test_is_found_impossible(name):
    """Also inside of loops, branches and calls."""
    function = primitives.OTHERS[name]

    def nested(p, t):
        return jax.lax.cond(p[0] > 0, jax.jit(function), jax.jit(function), p, t)

    for f in (function, nested):
        assert not can_be_one_function(jaxpr_of(f), times=4)


@pytest.mark.parametrize("name", ["dot", "eigh", "fft", "median", "sort", "callback"])
def test_function_that_holds_others(name):
    """The n x n part alone is one function, and the answer is the same."""
    function, t = primitives.OTHERS[name], jnp.asarray(primitives.T)
    if name == "callback":
        options = [
            Options(one_function=choice, jac=lambda p, t: jnp.stack([2 * t, 0 * t], 1))
            for choice in (True, False)
        ]
        start = np.array([0.5, 0.0])
    else:
        options, start = [ALWAYS, NEVER], primitives.P

    def run(options):
        scale = 0.5 + 0.1 * jnp.arange(np.size(function(start, t)))

        def difference(p, t):
            return function(p, t) - scale

        return jaxfit.solve(difference, start, t, options=options)

    assert is_marked(functools.partial(run, options[0]))
    with_it, without = (jax.jit(functools.partial(run, o))() for o in options)
    assert with_it.status == without.status
    np.testing.assert_allclose(with_it.x, without.x, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bears", [True, False])
def test_rule_of_a_derivative_is_looked_into(bears):
    @jax.custom_jvp
    def decay(x):
        return jnp.exp(-x)

    @decay.defjvp
    def rule(primals, tangents):
        slope = -decay(primals[0])
        slope = slope if bears else jnp.sort(slope[::-1])
        return decay(primals[0]), slope * tangents[0]

    def own(p, data):
        return p[0] * decay(p[1] * data[0]) + p[2] - data[1]

    setup = set_up(Request(own, None, START, (T, Y), None, None, None, ALWAYS))
    assert setup.is_one_function == bears
    found = jax.jit(functools.partial(fit, fn=own))()
    np.testing.assert_allclose(found.x, fit(options=NEVER).x, rtol=1e-8)


# Where it is set


def test_not_in_a_program_that_may_be_for_several_devices():
    assert jax.device_count() == 8
    assert not is_marked(functools.partial(fit, options=None))
    assert not is_marked(functools.partial(fit, options=NEVER))
    assert is_marked(fit)


def test_in_our_own_programs(monkeypatch):
    """Eager calls are marked, and not where their arrays lie on several devices."""
    was_used = []
    original = program.program_of_ours

    def watched(platform):
        manager = original(platform)
        was_used.append(manager)
        return manager

    monkeypatch.setattr(program, "program_of_ours", watched)

    def own(p, data):
        return 1.0 * residual(p, data)

    assert fit(fn=own, options=None).success
    assert len(was_used) == 1
    spread = jax.device_put((T, Y), NamedSharding(two_devices(), PartitionSpec("i")))
    assert fit(data=spread, fn=own, options=None).success
    assert len(was_used) == 1


def test_environment_variable(monkeypatch):
    monkeypatch.setenv(_one_function.VARIABLE, "0")
    assert not is_marked(functools.partial(first, 20, ALWAYS))


def test_unknown_release(monkeypatch):
    monkeypatch.setattr(_one_function, "RELEASES", set())
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert not is_marked(functools.partial(first, 21))


def test_one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert is_marked(functools.partial(first, 22))


def test_many_parameters_are_left_to_lapack():
    assert not is_marked(lambda: jaxfit.solve(lambda x, _: x - 1, np.zeros(13)))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_export_for_other_platforms(platform):
    exported = jax.export.export(jax.jit(fit), platforms=[platform])(START)
    assert "xla_cpu_small_call" not in exported.mlir_module()
    exported = jax.export.export(jax.jit(fit), platforms=["cpu", platform])(START)
    assert "xla_cpu_small_call" in exported.mlir_module()


# The same answer


def answers_agree(a, b):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bounds": (np.zeros(3), np.array([2.0, 5.0, 5.0]))},
        {"loss": jaxfit.losses.Huber(0.01)},
        {"weights": np.where(T > 1, 1.0, 0.0)},
        {"x0": {"a": np.ones(2), "b": np.float64(0)}},
    ],
)
def test_kinds_of_fits(arguments):
    if "x0" in arguments:
        arguments["fn"] = lambda p, data: residual([*p["a"], p["b"]], data)
    with_it, without = (
        jax.jit(functools.partial(fit, options=o, **arguments))()
        for o in (ALWAYS, NEVER)
    )
    assert with_it.success
    answers_agree(with_it.x, without.x)
    answers_agree(with_it.stderr(), without.stderr())


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, data: p - 1,  # no data
        lambda p, data: jax.jit(lambda p, data: p * p - 2)(p, data),
        lambda p, data: jnp.concatenate([p[:2] - data[0][:2], p[2:] - data[0][3]]),
    ],
)
def test_what_is_not_used(fn):
    """The compiler would abort for an argument that the function does not use."""
    run = jax.jit(lambda data: fit(data=(*data, np.zeros((0, 3)), data[0]), fn=fn))
    assert run((T, Y)).success


def test_derivatives_and_nesting():
    def estimate(y, options):
        return fit(data=(T, y), options=options).x

    def inner(scale, options):
        return jnp.sum(estimate(scale * Y, options) ** 2)

    def outer(options):
        def distance(s, _):
            return inner(s[0], options) * jnp.ones(1) - 8

        return jaxfit.solve(distance, jnp.ones(1), options=options).x

    for transformed in (  # more of them in test_loop.py
        jax.hessian(inner),
        lambda s, o: jax.lax.map(lambda s: estimate(s * Y, o), s * T[1:4]),
        lambda s, o: jax.grad(
            lambda s: jax.lax.cond(s > 0, lambda s: inner(s, o), jnp.sin, s)
        )(s),
        lambda s, o: outer(o),
    ):
        run = jax.jit(transformed, static_argnums=1)
        answers_agree(run(1.1, ALWAYS), run(1.1, NEVER))


def test_batched_by_vmap_each_fit_is_marked():
    """Where the compiler takes it inside of what it spreads over devices."""
    many = jax.vmap(lambda y: fit(data=(T, y)).x)
    is_tried = _one_function._release() in _one_function.IN_PARTS
    assert is_marked(many, jnp.stack([Y, 2 * Y])) == is_tried


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma):
    """Inside, a program is for one device: it is marked by itself."""
    mesh, spec = two_devices(), PartitionSpec("i")

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma
    )
    def run(ys):
        return fit(data=(T, ys[0]), options=None).x[None]

    ys = jnp.stack([Y, 2 * Y])
    assert is_marked(run, ys)
    np.testing.assert_allclose(jax.jit(run)(ys)[0], fit(options=NEVER).x, rtol=1e-9)


@pytest.mark.parametrize("what", ["rows", "batch"])
def test_sharded_by_the_compiler(what):
    """A program of several devices is not marked, and right."""
    mesh = jax.make_mesh(
        (2,),
        ("i",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:2],
    )
    place = NamedSharding(mesh, PartitionSpec("i"))
    if what == "rows":
        data = jax.device_put((jnp.asarray(T), jnp.asarray(Y)), place)
        found = jax.jit(lambda data: fit(data=data, options=None).x)(data)
    else:
        ys = jax.device_put(jnp.stack([Y, 2 * Y]), place)
        many = jax.vmap(lambda y: fit(data=(T, y), options=None).x)
        found = jax.jit(many)(ys)[0]
    np.testing.assert_allclose(found, fit(options=NEVER).x, rtol=1e-9)


def test_what_does_not_compile_is_compiled_without(monkeypatch):
    """And is remembered: an error of the compiler is not the user's."""
    monkeypatch.setattr(
        "jaxfit._rows.residuals.can_be_one_function", lambda jaxpr, times: True
    )
    programs = set(map(id, _compile._programs.values()))

    def own(p, data):
        return jnp.sort(residual(p, data))

    for _ in range(2):
        assert fit(fn=own, options=None).success
    (made,) = [p for p in _compile._programs.values() if id(p) not in programs]
    assert not made._bears_it
