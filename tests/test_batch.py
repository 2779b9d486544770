"""Many fits, as a loop and as lanes that refill: every fit as if it were alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import decay, exponential

import jaxfit
from jaxfit import Options, Status, losses, solve_batch, solve_blocks
from jaxfit._batch import parts as _parts
from jaxfit._programs.program import Program

N, LANES = 150, 32
AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
BOUNDS = np.array([0.0, 0.0, -5.0]), np.array([20.0, 9.0, 5.0])
(T, _), TRUTH = decay()


def residual(x, y):
    return exponential(x, T) - y


def problems(number=N, seed=0, far=True):
    """Starts near and far, and the data of each fit."""
    rng = np.random.default_rng(seed)
    x0 = TRUTH * (1 + 0.1 * rng.normal(size=(number, 3)))
    if far:
        x0[::10] = TRUTH * np.exp(rng.normal(size=x0[::10].shape))
    x0 = np.clip(x0, *BOUNDS)
    clean = np.asarray(exponential(TRUTH, T))
    return x0, clean + 0.05 * rng.normal(size=(number, len(T)))


fit = functools.partial(solve_batch, residual, bounds=BOUNDS, lanes=LANES)


@pytest.fixture(scope="module")
def batch():
    x0, y = problems()
    y[7, 3] = np.nan
    return x0, y, fit(x0, y)


def assert_same(found, expected, kept=slice(None)):
    """Bit for bit."""
    leaves = zip(
        jax.tree.leaves((found.x, found.status, found.nfev, found.linearization)),
        jax.tree.leaves(
            (expected.x, expected.status, expected.nfev, expected.linearization)
        ),
        strict=True,
    )
    for a, b in leaves:
        np.testing.assert_array_equal(a, np.asarray(b)[kept])


def assert_near(x, expected, some=slice(None)):
    """To a millionth of a standard error: another program rounds differently."""
    well = np.asarray(expected.success)[some]
    error = np.abs(x - expected.x[some]) / expected.stderr()[some]
    assert np.max(error[well]) < 1e-6


def test_as_vmap(batch):
    """What `solve` does to one fit, the lane does to each."""
    x0, y, found = batch
    alone = jax.jit(
        jax.vmap(lambda x0, y: jaxfit.solve(residual, x0, y, bounds=BOUNDS))
    )(x0, y)
    assert found.status[7] == Status.NONFINITE_START
    np.testing.assert_array_equal(found.x[7], x0[7])
    assert np.isinf(found.cost[7])
    np.testing.assert_array_equal(found.status, alone.status)
    well = np.asarray(found.success)
    assert well.sum() >= N - 5
    assert_near(found.x, alone)
    np.testing.assert_allclose(found.stderr()[well], alone.stderr()[well], rtol=1e-6)
    np.testing.assert_array_equal(found.active, alone.active)
    for leaf in jax.tree.leaves(found):
        assert leaf.shape[0] == N


@pytest.fixture(scope="module")
def looped():
    """The same fits one after the other, in one part."""
    x0, y = problems()
    y[7, 3] = np.nan
    return x0, y, fit(x0, y, lanes=None)


def test_a_loop_as_lanes(batch, looped):
    x0, y, lanes = batch
    _, _, found = looped
    in_jit = jax.jit(functools.partial(fit, lanes=None))(x0, y)
    for other in (lanes, in_jit):
        np.testing.assert_array_equal(found.status, other.status)
        assert_near(found.x, other)
        assert_near(other.x, found)


@pytest.mark.parametrize("cores", [1, 3])
def test_all_cores(looped, monkeypatch, cores, capsys):
    """Called eagerly it is done in parts, in threads: the same bits, in any number of
    parts, of any length, by one program."""
    x0, y, found = looped
    compiled = []
    original = Program._compiled

    def counted(program, operands):
        compiled.append(program)
        return original(program, operands)

    monkeypatch.setattr(Program, "_compiled", counted)
    monkeypatch.setattr(_parts, "cores", lambda: cores)
    monkeypatch.setattr(_parts, "NUMBERS", (10 + cores) * (3 + len(T)))
    monkeypatch.setattr(_parts, "MOST", 16 + cores)
    for number in (N, N - 1, 17, 2, 1):
        part = fit(x0[:number], y[:number], lanes=None, progress=number == 17)
        assert_same(part, found, slice(number))
        assert isinstance(part.x, jax.Array)
    assert len(compiled) <= 1
    assert "17" in capsys.readouterr().err
    blocks = solve_blocks(residual, x0, y, bounds=BOUNDS, block=40)
    assert_same(blocks, found)
    assert fit(x0[:0], y[:0], lanes=None).x.shape == (0, 3)


def test_progress_needs_parts():
    x0, y = problems(4, far=False)
    with pytest.raises(ValueError, match="part by part"):
        fit(x0, y, progress=True)


def test_what_is_kept_of_a_fit_may_be_anything(looped):
    """Also what cannot stand in a function of the machine."""
    x0, y, found = looped
    keep = functools.partial(solve_batch, residual, x0, y, bounds=BOUNDS)
    order, name = keep(keep=lambda fit: (jnp.sort(fit.x), {"cost": fit.cost}))
    well = np.asarray(found.success)
    np.testing.assert_allclose(order[well], np.sort(found.x[well], axis=1), rtol=1e-9)
    np.testing.assert_allclose(name["cost"][well], found.cost[well], rtol=1e-12)


@pytest.mark.parametrize("how", ["batch", "vmap", "lanes"])
def test_a_batch_that_is_spread_stays_so(looped, how):
    """By the compiler, over Auto axes of a mesh."""
    x0, y, found = looped
    mesh = jax.make_mesh((2,), ("fits",), axis_types=(AUTO,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fits"))
    run = functools.partial(fit, lanes=LANES if how == "lanes" else None)
    if how == "vmap":
        run = jax.vmap(lambda x0, y: jaxfit.solve(residual, x0, y, bounds=BOUNDS))
    spread = jax.jit(lambda x0, y: run(x0, y).x)(*jax.device_put((x0, y), spec))
    assert spread.sharding.is_equivalent_to(spec, 2)
    assert_near(spread, found)


def difference(p, y):
    return p - y


LEVELS = np.arange(24.0).reshape(2, 4, 3)


@pytest.mark.parametrize("spec", [("fits",), (None, "fits"), (None, None, "fits")])
@pytest.mark.parametrize("how", ["batch", "lanes", "vmap", "rows"])
def test_arrays_that_lie_in_any_way(how, spec):
    """Along a batch, along another, or along the rows, which all of a fit has."""
    mesh = jax.make_mesh((2,), ("fits",), axis_types=(AUTO,))
    levels, axes = LEVELS, jax.sharding.PartitionSpec(*spec)
    if spec[-1] == "fits" and len(spec) == 3:
        levels = LEVELS[..., :2]
    levels = jax.device_put(levels, jax.sharding.NamedSharding(mesh, axes))

    def one(y):
        return jaxfit.solve(difference, 0.0, y).x

    if how == "vmap":
        found = jax.jit(jax.vmap(jax.vmap(one)))(levels)
        np.testing.assert_allclose(found, np.mean(levels, axis=2))
    elif how == "rows":
        found = jax.jit(jax.vmap(one))(levels)
        np.testing.assert_allclose(found, np.mean(levels, axis=(1, 2)))
    else:
        lanes = 2 if how == "lanes" else None
        found = solve_batch(difference, 0.0, levels, in_axes=(None, 0), lanes=lanes).x
        np.testing.assert_allclose(found, np.mean(levels, axis=(1, 2)))


def test_some_axes_of_a_mesh_are_manual_and_others_are_not():
    mesh = jax.make_mesh((2, 2), ("fits", "rows"), axis_types=(AUTO, AUTO))
    fits, whole = (
        jax.sharding.PartitionSpec(*axes) for axes in (["fits"], ["fits", "rows"])
    )
    levels = LEVELS[0, :, :2]
    levels = jax.device_put(levels, jax.sharding.NamedSharding(mesh, whole))
    run = jax.shard_map(
        jax.vmap(lambda y: jaxfit.solve(difference, 0.0, y).x),
        mesh=mesh,
        in_specs=fits,
        out_specs=fits,
        axis_names={"fits"},
    )
    np.testing.assert_allclose(jax.jit(run)(levels), np.mean(levels, axis=1))


def test_leaves_of_no_size_and_keys():
    def padded(p, data):
        return jnp.concatenate([p - data[0], data[1]])

    def one(y):
        return jaxfit.solve(padded, 0.0, (y, np.zeros(0))).x

    np.testing.assert_allclose(jax.vmap(one)(LEVELS[0]), np.mean(LEVELS[0], axis=1))
    kept = solve_batch(
        difference,
        0.0,
        LEVELS[0],
        in_axes=(None, 0),
        keep=lambda fit: (fit.x, jax.random.key(fit.nfev)),
    )
    np.testing.assert_allclose(kept[0], np.mean(LEVELS[0], axis=1))
    assert jnp.issubdtype(kept[1].dtype, jax.dtypes.prng_key)
    with pytest.raises(TypeError, match="key_data"):
        solve_blocks(
            *(difference, 0.0, LEVELS[0]),
            in_axes=(None, 0),
            keep=lambda fit: jax.random.key(fit.nfev),
        )
    for key in jax.random.split(jax.random.key(0)):
        noise = jax.random.normal(key, (3,))
        found = jaxfit.solve(
            lambda p, y, key=key: p - y - jax.random.normal(key, (3,)),
            0.0,
            LEVELS[0, 0],
        )
        np.testing.assert_allclose(found.x, np.mean(LEVELS[0, 0] + noise), rtol=1e-6)


def test_explicit_axes_in_jit(looped):
    """Right, if gathered, and where they were in the end."""
    x0, y, found = looped
    mesh = jax.make_mesh((2,), ("fits",), axis_types=(EXPLICIT,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fits"))
    with jax.set_mesh(mesh):
        run = jax.vmap(lambda x0, y: jaxfit.solve(residual, x0, y, bounds=BOUNDS).x)
        spread = jax.jit(run)(*jax.device_put((x0, y), spec))
    assert spread.sharding.is_equivalent_to(spec, 2)
    assert_near(spread, found)


@pytest.mark.parametrize("lanes", [LANES, None])
def test_order_and_neighbours_do_not_matter(batch, looped, lanes):
    x0, y, found = batch if lanes else looped
    order = np.random.default_rng(1).permutation(N)
    y = y[order]
    others = np.flatnonzero(order % 5 == 0)
    y[others, 0] = np.nan
    kept = np.flatnonzero(order % 5 != 0)
    again = fit(x0[order], y, lanes=lanes)
    taken = jax.tree.map(lambda leaf: leaf[kept], again)
    assert_same(taken, found, order[kept])


def test_blocks_are_the_batch(batch, capsys):
    """Cut into calls, the last one filled up; on the host, with a line of progress."""
    x0, y, found = batch
    blocks = solve_blocks(
        residual, x0, y, bounds=BOUNDS, lanes=LANES, block=64, progress=True
    )
    assert_same(blocks, found)
    assert isinstance(blocks.x, np.ndarray)
    assert "fits" in capsys.readouterr().err


@pytest.mark.parametrize("lanes", [1, 7, 200])
def test_another_number_of_lanes(batch, lanes):
    x0, y, found = batch
    some = slice(0, 20)
    other = solve_batch(residual, x0[some], y[some], bounds=BOUNDS, lanes=lanes)
    assert_near(other.x, found, some)
    np.testing.assert_array_equal(other.status, found.status[some])


@pytest.mark.parametrize(("axis_type", "number"), [(AUTO, N - 1), (EXPLICIT, N)])
def test_devices(batch, axis_type, number):
    """One queue for each device; the parts are of unequal length, or lie there."""
    x0, y, found = batch
    x0, y = x0[:number], y[:number]
    mesh = jax.make_mesh((2,), ("fits",), axis_types=(axis_type,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fits"))
    if axis_type == EXPLICIT:
        x0, y = jax.device_put((x0, y), spec)
    spread = fit(x0, y, mesh=mesh, axis="fits")
    assert_near(spread.x, found, slice(number))
    np.testing.assert_array_equal(spread.status, found.status[:number])
    if axis_type == EXPLICIT:
        assert spread.x.sharding.is_equivalent_to(spec, 2)


def test_shard_map_of_the_user(batch):
    x0, y, found = batch
    mesh = jax.make_mesh((2,), ("fits",), axis_types=(AUTO,))
    spec = jax.sharding.PartitionSpec("fits")
    part = jax.shard_map(
        lambda x0, y: fit(x0, y).x, mesh=mesh, in_specs=spec, out_specs=spec
    )
    assert_near(jax.jit(part)(x0, y), found)


def test_nothing_to_do():
    x0, y = problems(0, far=False)
    found = fit(x0, y)
    assert found.x.shape == (0, 3)
    assert found.covariance().shape == (0, 3, 3)
    assert found.summary() == "0 fits"
    assert solve_blocks(residual, x0, y, bounds=BOUNDS, lanes=LANES).x.shape == (0, 3)


def test_keep_and_summary(batch):
    x0, y, found = batch
    x, stderr = jax.jit(lambda x0, y: fit(x0, y, keep=lambda s: (s.x, s.stderr())))(
        x0, y
    )
    well = np.asarray(found.success)
    np.testing.assert_allclose(x[well], found.x[well], rtol=1e-9)
    np.testing.assert_allclose(stderr[well], found.stderr()[well], rtol=1e-9)
    summary = found.summary(worst=2)
    assert "NONFINITE_START" in summary
    assert "fit 7: NONFINITE_START" in summary


def test_in_axes_and_masks():
    """Shared starts and abscissas, own bounds, fits of different lengths."""
    _, y = problems(12, seed=3, far=False)
    weights = np.ones_like(y)
    for i in range(12):
        weights[i, len(T) - i :] = 0
    y = np.where(weights > 0, y, np.nan)
    upper = np.tile(BOUNDS[1], (12, 1))
    upper[::2, 0] = 2.0

    def model(x, data):
        t, y = data
        return exponential(x, t) - y

    found = solve_batch(
        model,
        TRUTH * 0.7,
        (T, y.T),
        in_axes=(None, (None, 1), (None, 0)),
        bounds=(BOUNDS[0], upper),
        weights=weights,
        lanes=4,
    )
    np.testing.assert_array_equal(found.count, weights.sum(1))
    one = jax.jit(
        lambda y, w, u: jaxfit.solve(
            model, TRUTH * 0.7, (T, y), bounds=(BOUNDS[0], u), weights=w
        )
    )
    for i in (0, 1, 6, 11):
        alone = one(y[i], weights[i], upper[i])
        np.testing.assert_allclose(found.x[i], alone.x, rtol=1e-7)
        assert found.success[i] == alone.success
    np.testing.assert_array_equal(found.active[::2, 0], 1)


def test_losses_scales_trees_and_float32():
    x0, y = problems(10, seed=4, far=False)
    y[:, 5] += 3
    starts = {"a": x0[:, 0].astype(np.float32), "bc": x0[:, 1:].astype(np.float32)}

    t = T.astype(np.float32)

    def model(p, y):
        return exponential(jnp.concatenate([p["a"][None], p["bc"]]), t) - y

    options = Options(x_scale={"a": np.float32(2), "bc": np.ones(2, np.float32)})
    kwargs = {"loss": losses.Cauchy(0.1), "options": options}
    found = solve_batch(model, starts, y.astype(np.float32), lanes=4, **kwargs)
    alone = jax.vmap(lambda p, y: jaxfit.solve(model, p, y, **kwargs))(
        starts, y.astype(np.float32)
    )
    assert found.x["a"].dtype == np.float32
    assert found.x["bc"].shape == (10, 2)
    assert np.all(found.success)
    np.testing.assert_allclose(found.x["a"], alone.x["a"], rtol=2e-3)


def test_ill_conditioned_lane_keeps_its_digits_and_changes_no_neighbour():
    """One lane needs a frame and singular values; the others do not notice."""
    rng = np.random.default_rng(5)
    a = rng.normal(size=(6, 20, 3))
    hard = a.copy()
    hard[2, :, 2] = hard[2, :, 1] + 1e-7 * hard[2, :, 2]
    y = rng.normal(size=(6, 20))

    def linear(x, data):
        return data[0] @ x - data[1]

    fits = functools.partial(solve_batch, linear, np.zeros(3), in_axes=(None, 0))
    plain, found = fits((a, y), lanes=6), fits((hard, y), lanes=6)
    others = np.array([0, 1, 3, 4, 5])
    np.testing.assert_array_equal(plain.x[others], found.x[others])
    exact = np.linalg.lstsq(hard[2], y[2], rcond=None)[0]
    np.testing.assert_allclose(found.x[2], exact, rtol=1e-6)
    assert np.all(found.success)


def test_errors_are_statistically_true():
    """At 1 and 2 standard errors, 68 and 95 % of 20,000 fits hold the truth."""
    x0, y = problems(20_000, seed=6, far=False)
    x, stderr, good = fit(
        *(x0, y),
        lanes=None,
        weights=np.full_like(y, 0.05**-2),
        keep=lambda s: (s.x, s.stderr(absolute=True), s.success),
    )
    assert np.all(good)
    ratio = np.abs(np.asarray(x) - TRUTH) / np.asarray(stderr)
    one, two = np.mean(ratio < 1, axis=0), np.mean(ratio < 2, axis=0)
    np.testing.assert_allclose(one, 0.683, atol=0.01)
    np.testing.assert_allclose(two, 0.954, atol=0.01)


MESH = jax.make_mesh((1,), ("fits",), axis_types=(AUTO,))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lanes": 0}, ValueError, "lanes is 0"),
        ({"keep": 3}, TypeError, "keep is 3"),
        ({"in_axes": 0}, ValueError, "in_axes is 0"),
        ({"in_axes": (None, None)}, ValueError, "marks no batch axis"),
        ({"in_axes": (0, 2)}, ValueError, "names axis 2"),
        ({"in_axes": (0, 1)}, ValueError, "differ in length: x0 has 6, data has 40"),
        ({"in_axes": (0, {"y": 0})}, ValueError, "no prefix"),
        ({"axis": "d"}, ValueError, "there is no mesh"),
        ({"mesh": MESH, "axis": "x"}, ValueError, "axis is 'x'; give one of"),
    ],
)
def test_bad_input(change, error, message):
    x0, y = problems(6, far=False)
    with pytest.raises(error, match=message):
        solve_batch(residual, x0, y, **change)
    if "axis" not in change:
        with pytest.raises(error, match=message):
            solve_blocks(residual, x0, y, **change)


@pytest.mark.parametrize("number", [2**26, 2**31])
def test_so_many_that_indices_could_overflow(number):
    """By shapes: 2^31 residuals are fine, 2^31 fits are refused."""
    arguments = (
        jax.ShapeDtypeStruct((number, 3), float),
        jax.ShapeDtypeStruct((number, len(T)), float),
    )
    if number == 2**31:
        with pytest.raises(ValueError, match="solve_blocks"):
            jax.eval_shape(fit, *arguments)
    else:
        assert jax.eval_shape(fit, *arguments).x.shape == (number, 3)


def test_bad_block():
    x0, y = problems(6, far=False)
    with pytest.raises(ValueError, match="block is 0"):
        solve_blocks(residual, x0, y, block=0)
