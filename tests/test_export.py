"""A fit as bytes: written by `jax.export`, called where its function is not known."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfit
from jaxfit import losses

export = pytest.importorskip("jax.export")
pytest.importorskip("flatbuffers")

X0 = np.array([1.0, 1.0, 0.0])
T = np.linspace(0, 4, 60)
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.01 * np.sin(40 * T)


def residual(x, data):
    t, y = data
    return x[0] * jnp.exp(-x[1] * t) + x[2] - y


def single(x0, data):
    return jaxfit.solve(residual, x0, data, bounds=(0.0, 9.0))


def robust(x0, data):
    return jaxfit.solve(residual, x0, data, loss=losses.Huber(0.01))


def many(x0, data):
    t, y = data
    ys = jnp.stack([y, 2 * y])
    return jaxfit.solve_batch(residual, x0, (t, ys), in_axes=(None, (None, 0)))


def joint(x0, data):
    t, y = data

    def own(x, u, scale):
        return u[0] * jnp.exp(-x[0] * t) + u[1] - scale * y

    return jaxfit.solve_joint(own, x0[:1], np.zeros((3, 2)), jnp.array([1.0, 2, 3]))


FITS = {f.__name__: f for f in (single, robust, many, joint)}


def written(program, *arguments, **how):
    return export.export(jax.jit(program))(*arguments).serialize(**how)


@pytest.mark.parametrize("name", FITS)
def test_a_solution_goes_out_as_it_is(name):
    """The same solution, with its methods, from the bytes as from the function."""
    loaded = export.deserialize(written(FITS[name], X0, (T, Y))).call(X0, (T, Y))
    ours = jax.jit(FITS[name])(X0, (T, Y))
    assert type(loaded) is type(ours)
    assert jax.tree.structure(loaded) == jax.tree.structure(ours)
    for ours_leaf, leaf in zip(*map(jax.tree.leaves, (ours, loaded)), strict=True):
        np.testing.assert_array_equal(leaf, ours_leaf)
    np.testing.assert_array_equal(loaded.stderr(), ours.stderr())
    assert np.all(loaded.success)


def test_a_process_without_the_function(tmp_path):
    """Neither the model nor jaxfit itself is there: bytes, arrays and JAX."""

    def program(x0, data):
        solution = jaxfit.solve(residual, x0, data)
        return {"x": solution.x, "stderr": solution.stderr()}

    (tmp_path / "fit.bin").write_bytes(written(program, X0, (T, Y)))
    np.savez(tmp_path / "data.npz", x0=X0, t=T, y=Y)
    script = (
        "import sys, jax, numpy as np\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "from jax import export\n"
        "fit = export.deserialize(open('fit.bin', 'rb').read())\n"
        "data = np.load('data.npz')\n"
        "result = fit.call(data['x0'], (data['t'], data['y']))\n"
        "assert 'jaxfit' not in sys.modules\n"
        "np.savez('result.npz', **result)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result, ours = np.load(tmp_path / "result.npz"), jax.jit(program)(X0, (T, Y))
    for name in ("x", "stderr"):
        np.testing.assert_allclose(result[name], ours[name], rtol=1e-12)


def test_derivatives_go_out_too():
    loaded = export.deserialize(written(single, X0, (T, Y), vjp_order=1))
    slope = jax.grad(lambda y: loaded.call(X0, (T, y)).x[1])(Y)
    ours = jax.grad(lambda y: single(X0, (T, y)).x[1])(jnp.asarray(Y))
    np.testing.assert_allclose(slope, ours, rtol=1e-10)


def test_any_number_of_points():
    """One program for 16 to 1000 points."""
    (m,) = export.symbolic_shape("m", constraints=["m >= 16", "m <= 1000"])
    points = jax.ShapeDtypeStruct((m,), float)
    start = jax.ShapeDtypeStruct((3,), float)
    fit = export.deserialize(written(single, start, (points, points)))
    for k in (16, 37, 60):
        loaded, ours = fit.call(X0, (T[:k], Y[:k])), single(X0, (T[:k], Y[:k]))
        np.testing.assert_allclose(loaded.x, ours.x, rtol=1e-9)
        assert loaded.count == k


def test_any_number_of_fits():
    (k,) = export.symbolic_shape("k", constraints=["k >= 2", "k <= 2147483647"])
    curves = jax.ShapeDtypeStruct((k, T.size), float)
    fit = export.deserialize(written(jax.vmap(lambda y: single(X0, (T, y))), curves))
    for number in (2, 5):
        ys = Y * np.arange(1.0, number + 1)[:, None]
        ours = jax.vmap(lambda y: single(X0, (T, y)))(ys)
        np.testing.assert_allclose(fit.call(ys).x, ours.x, rtol=1e-9)
