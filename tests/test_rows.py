"""Rows in chunks and on devices: the answer of all rows at once."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import START, decay, residual

import jaxfit
from jaxfit import Chunked, Options, Sharded, Shared, Whole, losses, solve
from jaxfit._rows.devices import of_first
from jaxfit._rows.linearization import (
    COUNT_BASE,
    Kind,
    RunningSum,
    carried,
    in_words,
    without_rows,
)
from jaxfit._rows.table import lengthened

ROWS = 1003
DATA, TRUTH = decay(rows=ROWS)


@pytest.fixture(scope="module")
def whole():
    return solve(residual, START, DATA)


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()), ("rows",))


def assert_same(found, expected):
    """The same fit, but for rounding."""
    assert found.status == expected.status
    assert abs(int(found.steps) - int(expected.steps)) <= 1
    assert found.count == expected.count
    for a, b in zip(jax.tree.leaves(found.x), jax.tree.leaves(expected.x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(
        found.covariance(), expected.covariance(), rtol=1e-9, atol=1e-18
    )


@pytest.mark.parametrize("size", [7, 64, 501, ROWS, 5 * ROWS, None])
def test_chunks_of_any_size(whole, size):
    assert_same(solve(residual, START, DATA, rows=Chunked(size)), whole)


# A fit with all that a fit may have

MIXED = {
    "x": np.stack([DATA[0], DATA[0] ** 2], axis=1),
    "y": DATA[1],
    "offset": Shared({"by": np.float64(0.25)}),
    "label": np.arange(ROWS) % 2,
}
X0 = {"a": np.array([1.0, 1.0]), "c": np.array(0.0)}


def mixed(x, data):
    """Two columns of real residuals, and complex ones."""
    t = data["x"][:, 0]
    model = x["a"][0] * jnp.exp(-x["a"][1] * t) + x["c"] + data["offset"]["by"]
    sign = jnp.where(data["label"] == 1, 1.0, -1.0)
    two = jnp.stack([model - data["y"], 0.5 * sign * (model - data["y"])], axis=1)
    wave = jax.lax.complex(jnp.cos(t), jnp.sin(t))
    return {"two": two, "one": jax.lax.complex(model - data["y"], 0 * t) * wave}


def mixed_weights():
    weights = {"two": np.ones((ROWS, 1)), "one": np.linspace(0.5, 1, ROWS)}
    weights["two"][::5] = 0
    weights["one"][::5] = 0
    return weights


def mixed_data():
    y = np.array(DATA[1])
    y[::5] = np.nan  # of weight zero
    return MIXED | {"y": y}


fit_mixed = functools.partial(
    solve,
    mixed,
    X0,
    mixed_data(),
    bounds=({"a": 0.0, "c": -1.0}, {"a": 5.0, "c": 0.1}),  # c ends at its bound
    weights=mixed_weights(),
    loss=losses.SoftL1(0.1),
)


@pytest.fixture(scope="module")
def whole_mixed():
    found = fit_mixed()
    assert found.success
    assert found.active["c"] == 1
    return found


def test_chunks_of_anything(whole_mixed):
    assert_same(fit_mixed(rows=Chunked(64)), whole_mixed)


def test_shards_of_anything(whole_mixed, mesh):
    assert_same(fit_mixed(rows=Sharded(mesh, "rows", 50)), whole_mixed)


def test_a_given_jacobian_in_chunks(whole):
    def jacobian(x, data):
        return jax.jacfwd(residual)(x, data)

    options = Options(jac=jacobian)
    assert_same(solve(residual, START, DATA, options=options, rows=Chunked(64)), whole)


def test_memory_is_that_of_a_chunk():
    rows, size = 1_000_000, 4096
    row = jax.ShapeDtypeStruct((rows,), np.float64)

    def fit(data):
        return solve(residual, START, data, rows=Chunked(size))

    memory = jax.jit(fit).lower((row, row)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * size * 8 + 100_000


# Devices


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("size", [None, 50])
def test_shards_called_eagerly_and_jitted(whole, kind, size):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
    fit = functools.partial(solve, residual, rows=Sharded(mesh, "rows", size))
    assert_same(fit(START, DATA), whole)
    assert_same(jax.jit(fit)(START, DATA), whole)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shards_inside_a_shard_map(mesh, check_vma):
    data = jax.tree.map(lambda leaf: leaf[:1000], DATA)
    fit = jax.shard_map(
        lambda x, data: solve(residual, x, data, rows=Sharded(None, "rows")),
        mesh=mesh,
        in_specs=(P(), P("rows")),
        out_specs=P(),
        check_vma=check_vma,
    )
    assert_same(jax.jit(fit)(START, data), solve(residual, START, data))


def test_shards_along_two_axes(whole):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("hosts", "chips"))
    fit = functools.partial(solve, residual, START, DATA)
    assert_same(fit(rows=Sharded(mesh, ("hosts", "chips"))), whole)
    assert_same(fit(rows=Sharded(mesh, "chips")), whole)


def test_more_devices_than_rows(mesh):
    data = jax.tree.map(lambda leaf: leaf[::201], DATA)
    assert_same(
        solve(residual, START, data, rows=Sharded(mesh, "rows")),
        solve(residual, START, data),
    )


def test_only_small_matrices_cross(mesh):
    rows = Sharded(mesh, "rows", 50)
    placed, data, _ = rows.place(DATA)
    fit = jax.jit(lambda x, data, rows: solve(residual, x, data, rows=rows))
    program = fit.lower(START, data, placed).compile().as_text()
    crossing = re.findall(
        r"= \(?(\w+\[[\d,]*\]).*? (all-reduce|all-gather|all-to-all|collective-\w+|"
        r"reduce-scatter)(?:-start)?\(",
        program,
    )
    assert crossing
    for shape, operation in crossing:
        dimensions = re.search(r"\[(.*)\]", shape)[1]
        size = math.prod(int(d) for d in dimensions.split(",") if d)
        assert operation == "all-reduce"
        assert size < ROWS // 8


def test_placed_rows_stay_where_they_are(mesh):
    rows = Sharded(mesh, "rows")
    data = jax.device_put(
        jax.tree.map(lambda leaf: leaf[:1000], DATA), NamedSharding(mesh, P("rows"))
    )
    again, same, weights = rows.place(data)
    assert again.counts is None
    assert weights is None
    assert all(a is b for a, b in zip(data, same, strict=True))
    placed, data, _ = rows.place(DATA)
    assert np.sum(placed.counts) == ROWS
    assert data[0].sharding.is_equivalent_to(NamedSharding(mesh, P("rows")), 1)


def test_filling_up():
    rows = np.array([1.0, 2.0])
    assert lengthened(rows, 0) is rows
    np.testing.assert_array_equal(lengthened(rows, 2), [1, 2, 2, 2])
    assert lengthened(rows[:0], 3).shape == (3,)  # a process without any rows


# Sums that last


def test_sums_do_not_lose_digits():
    terms = np.random.default_rng(0).uniform(0, 1, 20_000).astype(np.float32)
    x = jnp.zeros(1, jnp.float32)
    nothing = without_rows(x, jnp.eye(1, dtype=jnp.float32), kind=Kind.SQUARES)

    def add(running, term):
        normal = jnp.full((2, 2), term)
        one = jax.tree.map(lambda leaf: leaf, nothing)
        more = type(one)(normal, one.frame, in_words(jnp.int32(65535)), None)
        return running.plus(more), None

    start = RunningSum.of_nothing(x, jnp.eye(1, dtype=jnp.float32), kind=Kind.SQUARES)
    total = jax.lax.scan(add, start, terms)[0].total()
    exact = np.sum(terms.astype(np.float64))
    assert abs(float(total.normal[0, 0]) / exact - 1) < 1e-7
    words = np.asarray(total.counted, np.int64)
    assert words[0] * COUNT_BASE + words[1] == 65535 * 20_000


def test_counts_beyond_32_bits():
    words = sum(in_words(jnp.int32(2**31 - 1)) for _ in range(5))
    high, low = np.asarray(carried(words), np.int64)
    assert high * COUNT_BASE + low == 5 * (2**31 - 1)
    assert low < COUNT_BASE


def test_float32_is_as_good_as_it_can_be():
    rng = np.random.default_rng(1)
    t = np.linspace(0, 4, 300_000, dtype=np.float32)
    clean = TRUTH[0] * np.exp(-TRUTH[1] * t.astype(float)) + TRUTH[2]
    y = (clean + 0.5 * rng.normal(size=t.size)).astype(np.float32)
    rows = Chunked(1024)
    single = solve(residual, START.astype(np.float32), (t, y), rows=rows)
    double = solve(residual, START, (t.astype(float), y.astype(float)), rows=rows)
    assert single.success
    assert single.x.dtype == np.float32
    error = np.abs(np.asarray(single.x, float) - double.x) / double.stderr()
    assert np.max(error) < 1e-2


@pytest.mark.parametrize(("rows", "x64"), [(3 * 10**9, False), (10**10, True)])
def test_indices_beyond_32_bits(rows, x64):
    with jax.enable_x64(x64):
        row = jax.ShapeDtypeStruct((rows,), np.float32)
        fit = functools.partial(solve, residual, rows=Chunked())
        x0 = jax.ShapeDtypeStruct((3,), np.float32)
        assert jax.eval_shape(fit, x0, (row, row)).x.shape == (3,)


def test_too_many_rows_without_x64():
    with jax.enable_x64(False):
        row = jax.ShapeDtypeStruct((2**32,), np.float32)
        x0 = jax.ShapeDtypeStruct((3,), np.float32)
        with pytest.raises(ValueError, match="x64"):
            jax.eval_shape(
                functools.partial(solve, residual, rows=Chunked()), x0, (row, row)
            )


# Errors


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((DATA[0], 3.0), "Shared"),
        ((DATA[0], DATA[1][:-1]), r"data\[0\] has 1003, data\[1\] has 1002"),
        ((DATA[0][:0], DATA[1][:0]), "no rows"),
        ((Shared(1.0), Shared(2.0)), "no rows"),
    ],
)
def test_data_without_rows(data, message):
    with pytest.raises(ValueError, match=message):
        solve(residual, START, data, rows=Chunked(10))


def test_a_residual_without_rows():
    def summed(x, data):
        return jnp.sum(residual(x, data), keepdims=True)

    with pytest.raises(ValueError, match="leading axis"):
        solve(summed, START, DATA, rows=Chunked(10))


def test_what_rows_are_not(mesh):
    with pytest.raises(ValueError, match="size is 0"):
        Chunked(0)
    with pytest.raises(ValueError, match=r"size is 1\.5"):
        Sharded(mesh, "rows", 1.5)
    with pytest.raises(ValueError, match="axis is 'columns'"):
        Sharded(mesh, "columns")
    with pytest.raises(TypeError, match=r"jax\.sharding\.Mesh"):
        Sharded("cpu", "rows")
    with pytest.raises(TypeError, match="Chunked"):
        solve(residual, START, DATA, rows=100)


def test_shared_under_whole(whole):
    data = (DATA[0], Shared(DATA[1]))
    assert_same(solve(residual, START, data, rows=Whole()), whole)


def test_merged_halves_count_all_rows(whole):
    def half(first):
        return jax.tree.map(lambda leaf: leaf[first::2], DATA)

    options = Options(max_steps=1)
    halves = [solve(residual, whole.x, half(i), options=options) for i in (0, 1)]
    merged = jaxfit.merge(*(fit.linearization for fit in halves))
    assert merged.count == ROWS
    np.testing.assert_allclose(merged.gram, whole.linearization.gram, rtol=1e-12)


def test_all_devices_go_on_from_the_first(mesh):
    """Hosts may round differently, and still have to take the same steps."""

    def own(_):
        i = jax.lax.axis_index("rows")
        x = jnp.where(i == 0, jnp.array([jnp.inf, 1.5, -2]), jnp.nan)
        return jax.tree.map(
            lambda leaf: leaf[None], of_first("rows", (x, i == 0, i + 3, x[1:2]))
        )

    found = jax.shard_map(own, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))(
        jnp.zeros(8)
    )
    for leaf, expected in zip(found, ([np.inf, 1.5, -2], True, 3, [1.5]), strict=True):
        for one in np.asarray(leaf):
            np.testing.assert_array_equal(one, expected)
