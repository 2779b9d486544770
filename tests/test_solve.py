"""What `solve` accepts, and how it ends."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, decay, linear, residual
from scipy.optimize import least_squares

import jaxfit
from jaxfit import Options, Status, losses

DATA, TRUTH = decay()
SOLUTION = least_squares(
    lambda x: np.asarray(residual(x, DATA)), START, xtol=1e-15, ftol=1e-15, gtol=1e-15
)


def test_least_squares():
    solution = jaxfit.solve(residual, START, DATA)
    assert solution.success
    np.testing.assert_allclose(solution.x, SOLUTION.x, rtol=1e-7)
    np.testing.assert_allclose(solution.cost, SOLUTION.cost, rtol=1e-12)
    assert solution.count == 40
    assert solution.njev == solution.nfev > solution.steps
    assert solution.optimality < 1e-8
    assert "Converged" in solution.message


def test_parameters_as_a_tree():
    def split(p, data):
        return residual(jnp.stack([p["rate"][0], p["rate"][1], *p["rest"]]), data)

    start = {"rate": START[:2], "rest": (jnp.float64(0.0),)}
    solution = jaxfit.solve(split, start, DATA)
    whole = jaxfit.solve(residual, START, DATA)
    np.testing.assert_allclose(solution.x["rate"], whole.x[:2], rtol=1e-9)
    assert solution.x["rest"][0].shape == ()
    assert jax.tree.structure(solution.stderr()) == jax.tree.structure(start)
    assert jax.tree.structure(solution.gradient) == jax.tree.structure(start)
    assert jax.tree.structure(solution.active) == jax.tree.structure(start)
    np.testing.assert_allclose(solution.covariance(), whole.covariance(), rtol=1e-6)


def test_python_numbers_and_lists():
    def from_list(p, data):
        return residual(jnp.stack(p), data)

    solution = jaxfit.solve(from_list, [1.0, 1.0, 0.0], DATA)
    np.testing.assert_allclose(jnp.stack(solution.x), SOLUTION.x, rtol=1e-7)


def test_arrays_in_another_byte_order():
    """As files of astronomy and netCDF have them."""
    data, start = (np.asarray(leaf, ">f8") for leaf in DATA), START.astype(">f8")
    data = tuple(data)
    plain = jaxfit.solve(residual, START, DATA)
    for solution in (
        jaxfit.solve(residual, start, data),
        jaxfit.solve_stream(residual, start, [data]),
    ):
        np.testing.assert_allclose(solution.x, plain.x, rtol=1e-9)
    many = tuple(leaf[None] for leaf in data)
    for fits in (
        jaxfit.solve_batch(residual, start, many, in_axes=(None, 0)),
        jaxfit.solve_blocks(residual, start, many, in_axes=(None, 0)),
    ):
        np.testing.assert_allclose(fits.x[0], plain.x, rtol=1e-9)
    begun = jaxfit.warm_start(residual, start, data, steps=2)
    np.testing.assert_array_equal(
        begun, jaxfit.warm_start(residual, START, DATA, steps=2)
    )


def test_residuals_as_a_tree_and_complex():
    """z and the two real numbers it is made of are the same data."""
    t = jnp.linspace(0, 5, 20)
    target = jax.lax.complex(2 * jnp.cos(0.7 * t) + 0.1, 2 * jnp.sin(0.7 * t))

    def as_complex(p, t):
        value = jax.lax.complex(p[0] * jnp.cos(p[1] * t), p[0] * jnp.sin(p[1] * t))
        return {"z": value - target, "prior": p[:1] - 2}

    def as_real(p, t):
        value = as_complex(p, t)
        return [value["prior"], value["z"].real, value["z"].imag]

    start = np.array([1.5, 0.6])
    one, two = (jaxfit.solve(fn, start, t) for fn in (as_complex, as_real))
    assert one.count == two.count == 41
    np.testing.assert_allclose(one.x, two.x, rtol=1e-9)
    np.testing.assert_allclose(one.covariance(), two.covariance(), rtol=1e-7)
    weighted = jaxfit.solve(as_complex, start, t, weights={"z": 2.0, "prior": 0.0})
    assert weighted.count == 40


@pytest.mark.parametrize("x64", [True, False])
def test_float32(x64):
    data = tuple(np.asarray(d, np.float32) for d in DATA)
    start = START.astype(np.float32)
    with jax.enable_x64(x64):
        solution = jaxfit.solve(residual, start, data)
        stderr = solution.stderr()
    for leaf in (solution.x, solution.cost, stderr, solution.optimality):
        assert leaf.dtype == np.float32
    assert solution.success
    error = np.abs(np.asarray(solution.x) - SOLUTION.x)
    assert np.all(error < 1e-3 * np.asarray(stderr))


def test_float32_residuals_are_cast():
    """A float64 start with float32 data fits in float64."""
    data = tuple(np.asarray(d, np.float32) for d in DATA)

    def fn(x, data):
        return residual(x, tuple(d.astype(x.dtype) for d in data)).astype(jnp.float32)

    assert jaxfit.solve(fn, START, data).x.dtype == np.float64


# Bounds


@pytest.mark.parametrize(
    ("lower", "upper", "active"),
    [
        ([-np.inf, 0, 0], [2.0, np.inf, np.inf], [1, 0, 0]),
        ([0, 1.5, 0], [10.0, 10, 10], [0, -1, 0]),
        ([0, 0, 0.7], [2.0, 10, 10], [1, 0, -1]),
        ([0, 0, 0], [10.0, 10, 10], [0, 0, 0]),
    ],
)
def test_bounds(lower, upper, active):
    lower, upper = np.array(lower, float), np.array(upper)
    start = np.clip(START, lower, upper)
    solution = jaxfit.solve(residual, start, DATA, bounds=(lower, upper))
    reference = least_squares(
        lambda x: np.asarray(residual(x, DATA)),
        np.clip(SOLUTION.x, lower + 1e-3, upper - 1e-3),
        bounds=(lower, upper),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    assert solution.success
    np.testing.assert_array_equal(solution.active, active)
    exact = np.where(solution.active == 1, upper, lower)
    at_bound = np.array(active) != 0
    np.testing.assert_array_equal(solution.x[at_bound], exact[at_bound])
    np.testing.assert_allclose(solution.x, reference.x, rtol=1e-6)
    assert solution.cost <= reference.cost * (1 + 1e-12)


def test_lists_for_arrays():
    """Where x0 and residuals are one array each, lists of numbers will do."""
    solution = jaxfit.solve(
        residual,
        START,
        DATA,
        bounds=([0, 0, -1], [2.0, 9.0, 9.0]),
        weights=[1.0] * 40,
        options=Options(x_scale=[1.0, 2.0, 3.0]),
    )
    np.testing.assert_array_equal(solution.active, [1, 0, 0])


def test_one_sided_and_scalar_bounds():
    solution = jaxfit.solve(residual, START, DATA, bounds=(0.0, jnp.inf))
    np.testing.assert_allclose(solution.x, SOLUTION.x, rtol=1e-7)


def test_start_on_a_bound_leaves_it():
    bounds = np.array([1.0, 0.0, 0.0]), np.array([5.0, 1.0, 2.0])
    solution = jaxfit.solve(residual, np.array([1.0, 1.0, 0.0]), DATA, bounds=bounds)
    np.testing.assert_array_equal(solution.active, [0, 1, 0])


def test_equal_bounds_fix():
    """A fixed parameter: its value, no variance, no degree of freedom."""
    lower = np.array([-np.inf, 1.1, -np.inf])
    upper = np.array([np.inf, 1.1, np.inf])
    solution = jaxfit.solve(residual, START, DATA, bounds=(lower, upper))

    def reduced(x, data):
        return residual(jnp.stack([x[0], jnp.float64(1.1), x[1]]), data)

    expected = jaxfit.solve(reduced, START[[0, 2]], DATA)
    assert solution.success
    assert solution.x[1] == 1.1
    np.testing.assert_allclose(solution.x[jnp.array([0, 2])], expected.x, rtol=1e-9)
    covariance = solution.covariance()
    free = np.ix_([0, 2], [0, 2])
    np.testing.assert_allclose(covariance[free], expected.covariance(), rtol=1e-7)
    assert np.all(covariance[1] == 0)
    assert np.isnan(solution.correlation()[1]).all()


def test_all_fixed():
    solution = jaxfit.solve(residual, START, DATA, bounds=(TRUTH, TRUTH))
    np.testing.assert_array_equal(solution.x, TRUTH)
    assert solution.success
    assert np.all(solution.covariance() == 0)


# Weights


def test_weight_zero_hides_nan_and_counts_not():
    t, y = DATA
    spoilt = y.copy()
    spoilt[5:9] = np.nan
    weights = np.ones(40)
    weights[5:9] = 0
    solution = jaxfit.solve(residual, START, (t, spoilt), weights=weights)
    kept = weights > 0
    expected = jaxfit.solve(residual, START, (t[kept], y[kept]))
    assert solution.count == 36
    np.testing.assert_allclose(solution.x, expected.x, rtol=1e-9)
    np.testing.assert_allclose(solution.stderr(), expected.stderr(), rtol=1e-7)


def test_weights_are_inside_the_loss():
    """Weights 1/sigma² make a loss of scale 1 work in units of sigma."""
    sigma = 0.1
    loss = losses.SoftL1
    one = jaxfit.solve(residual, START, DATA, weights=1 / sigma**2, loss=loss(1.0))
    two = jaxfit.solve(residual, START, DATA, loss=loss(sigma))
    np.testing.assert_allclose(one.x, two.x, rtol=1e-7)
    np.testing.assert_allclose(one.cost, two.cost / sigma**2, rtol=1e-9)


# Jacobians


def test_jacobian_modes_agree():
    def jac(x, data):
        t, _ = data
        decay = jnp.exp(-x[1] * t)
        return jnp.stack([decay, -x[0] * t * decay, jnp.ones_like(t)], axis=1)

    solutions = [
        jaxfit.solve(residual, START, DATA, options=Options(jac=mode))
        for mode in ("fwd", "rev", jac)
    ]
    for solution in solutions:
        assert solution.success
        np.testing.assert_allclose(solution.x, SOLUTION.x, rtol=1e-7)


def test_user_jacobian_of_trees():
    def fn(p, data):
        return {"a": residual(jnp.stack([p["k"], p["r"][0], p["r"][1]]), data)}

    options = Options(jac=jax.jacrev(fn))
    solution = jaxfit.solve(
        fn, {"k": jnp.float64(1), "r": START[1:]}, DATA, options=options
    )
    np.testing.assert_allclose(solution.x["k"], SOLUTION.x[0], rtol=1e-7)


def test_more_parameters_than_rows():
    """m < n: reverse mode, and the step of least norm."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 6)), rng.normal(size=3)
    options = Options(x_scale=1.0)
    solution = jaxfit.solve(linear, np.zeros(6), (a, b), options=options)
    assert solution.success
    np.testing.assert_allclose(solution.x, np.linalg.pinv(a) @ b, rtol=1e-10)
    assert np.all(np.isinf(solution.stderr()))


def test_rank_deficient_step_of_least_norm():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(9, 4))
    a[:, 3] = a[:, 0] - 2 * a[:, 1]
    b = rng.normal(size=9)
    options = Options(x_scale=1.0)

    def solve(b):
        return jaxfit.solve(linear, np.zeros(4), (a, b), options=options)

    for solution in (solve(b), jax.tree.map(lambda x: x[0], jax.vmap(solve)(b[None]))):
        assert solution.success
        np.testing.assert_allclose(solution.x, np.linalg.pinv(a) @ b, rtol=1e-9)


def test_ill_conditioned_keeps_its_digits():
    """A Gram matrix alone loses all digits at a condition number of 1e8."""
    t = np.linspace(5, 10, 40)
    a = np.vander(t, 8)
    b = a @ np.ones(8) + np.random.default_rng(0).normal(size=40)
    solution = jaxfit.solve(linear, np.ones(8), (a, b))
    norms = np.linalg.norm(a, axis=0)
    q, r = np.linalg.qr(a / norms)
    exact = np.linalg.solve(r, q.T @ b) / norms
    inverse = np.linalg.inv(r)
    variance = 2 * solution.cost / (40 - 8)
    stderr = np.sqrt(np.sum(inverse**2, axis=1) * variance) / norms
    assert np.linalg.cond(r) > 1e7
    assert solution.success
    np.testing.assert_array_less(np.abs(solution.x - exact), 1e-6 * stderr)
    np.testing.assert_allclose(solution.stderr(), stderr, rtol=1e-4)


# How a fit ends


@pytest.mark.parametrize("curvature", [1.9, 1.99, 1.999, 2.0, 2.01])
def test_steps_do_not_zigzag(curvature):
    """Curvature twice that of JᵀJ mirrors steps; slopes tell where costs cannot."""

    def residual(x, c):
        return jnp.stack([x - 3, 1 + (c - 1) / 2 * (x - 3) ** 2])

    fit = jaxfit.solve(residual, 3.3, curvature)
    assert fit.success
    assert fit.nfev < 30
    np.testing.assert_allclose(fit.x, 3, atol=1e-8)


@pytest.mark.parametrize(
    ("bounds", "start"),
    [
        ((np.array([2.0, 0, 0]), np.array([1.0, 9, 9])), START),
        ((np.array([np.nan, 0, 0]), np.array([9.0, 9, 9])), START),
        ((0.0, 9.0), np.array([1.0, 1, -1])),
        ((0.0, 9.0), np.array([1.0, 1, np.nan])),
    ],
)
def test_invalid_bounds_are_a_status(bounds, start):
    solution = jaxfit.solve(residual, start, DATA, bounds=bounds)
    assert solution.status == Status.INVALID_BOUNDS
    assert not solution.success
    assert solution.nfev == 0
    assert "bound" in solution.message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_start_is_a_status(bad):
    t, y = DATA
    spoilt = np.where(np.arange(40) == 3, bad, y)
    solution = jaxfit.solve(residual, START, (t, spoilt))
    assert solution.status == Status.NONFINITE_START
    np.testing.assert_array_equal(solution.x, START)


def test_negative_weights_are_a_status():
    solution = jaxfit.solve(residual, START, DATA, weights=-np.ones(40))
    assert solution.status == Status.NONFINITE_START


def test_infinite_slope_at_a_trial_point_is_refused():
    """sqrt has a finite value and an infinite slope at 0, which must not stick."""

    def fn(x, data):
        return jnp.stack([jnp.sqrt(jnp.maximum(x[0], 0.0)) - 0.3, x[1] - 2])

    solution = jaxfit.solve(fn, np.array([1.0, 0.0]))
    assert solution.success
    np.testing.assert_allclose(solution.x, [0.09, 2], rtol=1e-7)


def test_nan_slope_at_a_better_point_shortens_the_step():
    """The Newton step hits a kink where the cost is least and J is NaN, every time."""

    def kink(x, _):
        return jnp.sqrt(x * x)

    solution = jaxfit.solve(kink, np.array([1.0]))
    assert solution.success
    np.testing.assert_allclose(solution.x, 0, atol=1e-10)


def test_zero_residual():
    t, _ = DATA
    y = TRUTH[0] * np.exp(-TRUTH[1] * t) + TRUTH[2]
    solution = jaxfit.solve(residual, START, (t, y))
    assert solution.success
    np.testing.assert_allclose(solution.x, TRUTH, rtol=1e-13)
    assert jaxfit.solve(residual, TRUTH, (t, y)).success


def test_constant_function_is_undetermined():
    def constant(x, data):
        return 0 * x[:1] + 1

    solution = jaxfit.solve(constant, np.array([1.0, 2.0]))
    assert solution.success
    assert np.all(np.isinf(solution.stderr(absolute=True)))


def test_every_residual_beyond_tukey():
    solution = jaxfit.solve(residual, START + 5, DATA, loss=losses.Tukey(1e-3))
    assert not solution.success
    assert solution.status == Status.STALLED


def test_wrong_jacobian_is_no_success():
    def jac(x, data):
        return -jax.jacfwd(residual)(x, data)

    solution = jaxfit.solve(residual, START, DATA, options=Options(jac=jac))
    assert solution.status == Status.STALLED
    np.testing.assert_allclose(solution.x, START, atol=1e-12)


def test_overflow_is_no_success():
    def fn(x, data):
        return jnp.exp(jnp.exp(x)) - 1e300

    assert not jaxfit.solve(fn, np.array([10.0])).success


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_steps(limit):
    solution = jaxfit.solve(residual, START, DATA, options=Options(max_steps=limit))
    assert solution.status == Status.MAX_STEPS
    assert solution.nfev == limit


@pytest.mark.parametrize(
    ("tolerances", "status"),
    [
        ({"ftol": 1e-6, "xtol": 0.0, "gtol": 0.0}, Status.COST),
        ({"ftol": 0.0, "xtol": 1e-4, "gtol": 0.0}, Status.STEP),
        ({"ftol": 0.0, "xtol": 0.0, "gtol": 1e-6}, Status.GRADIENT),
    ],
)
def test_each_test_by_itself(tolerances, status):
    options = Options(**tolerances)
    solution = jaxfit.solve(residual, START, DATA, options=options)
    assert solution.status == status
    loose = int(solution.nfev)
    assert loose <= jaxfit.solve(residual, START, DATA).nfev


def test_without_any_test_it_ends_at_rounding():
    options = Options(ftol=0.0, xtol=0.0, gtol=0.0)
    solution = jaxfit.solve(residual, START, DATA, options=options)
    assert solution.success
    assert solution.nfev < 60


# Inside JAX


def test_jit_vmap_scan():
    t, y = DATA
    ys = jnp.stack([y, y + 0.1, 2 * y])

    def fit(y):
        return jaxfit.solve(residual, START, (t, y)).x

    expected = jnp.stack([fit(y) for y in ys])
    np.testing.assert_allclose(jax.jit(fit)(y), expected[0], rtol=1e-10)
    np.testing.assert_allclose(jax.vmap(fit)(ys), expected, rtol=1e-8)
    _, scanned = jax.lax.scan(lambda c, y: (c, fit(y)), None, ys)
    np.testing.assert_allclose(scanned, expected, rtol=1e-10)


@pytest.mark.parametrize("lanes", [False, True])
def test_shard_map(lanes):
    """Each device fits its own data; loops and branches vary over the mesh."""
    t, y = DATA
    mesh = jax.make_mesh((1,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("device")

    def fit(y):
        return jaxfit.solve(residual, START, (t, y), bounds=(-9.0, 9.0)).x

    def local(ys):
        return jax.vmap(fit)(ys) if lanes else fit(ys[0])[None]

    sharded = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(jax.jit(sharded)(y[None])[0], SOLUTION.x, rtol=1e-7)


class Decay(eqx.Module):
    """A callable pytree."""

    offset: jax.Array

    def __call__(self, x, data):
        return residual(x, data) + self.offset


@pytest.mark.parametrize("fn", [Decay(jnp.zeros(())), jax.tree_util.Partial(residual)])
def test_literal_jit_of_a_callable_pytree(fn):
    solution = jax.jit(jaxfit.solve)(fn, START, DATA)
    np.testing.assert_allclose(solution.x, SOLUTION.x, rtol=1e-7)


def test_static_function():
    solution = jax.jit(jaxfit.solve, static_argnums=0)(residual, START, DATA)
    np.testing.assert_allclose(solution.x, SOLUTION.x, rtol=1e-7)


def test_shared_leaves_are_unwrapped():
    t, y = DATA
    solution = jaxfit.solve(residual, START, (jaxfit.Shared(t), y))
    np.testing.assert_allclose(solution.x, SOLUTION.x, rtol=1e-7)
