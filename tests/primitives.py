"""Functions of all primitives that a fit as one function may hold, and of some others.

`python primitives.py NAMES...` compiles each as one function and compares it with what
it is without, one after the other, and says so: the compiler may abort.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import special
from jax.scipy.linalg import expm

from jaxfit._programs.one_function import one_function

P, T = np.array([0.7, 0.9, 0.4]), np.linspace(0.1, 1, 8)


def _elementwise(function):
    return lambda p, t: function(t * p[0]) + p[1]


def _steps(function):
    """Of what has no slope of its own."""
    return lambda p, t: function(t * p[0]) * p[1]


def _callback(p, t):
    like = jax.ShapeDtypeStruct(t.shape, t.dtype)
    return jax.pure_callback(lambda t: 2 * np.asarray(t), like, t) * p[0]


def _integers(p, t):
    return jnp.floor(3 * p[0] * t).astype(int)


TRIED = {
    "abs": _elementwise(lambda x: jnp.abs(x - 0.5)),
    "acos": _elementwise(lambda x: jnp.arccos(x / 2)),
    "acosh": _elementwise(lambda x: jnp.arccosh(1 + x)),
    "argmax": lambda p, t: t[jnp.argmax(t * p[0])] * p[1] - t,
    "argmin": lambda p, t: t[jnp.argmin(t * p[0])] * p[1] - t,
    "asin": _elementwise(lambda x: jnp.arcsin(x / 2)),
    "asinh": _elementwise(jnp.arcsinh),
    "associative_scan": lambda p, t: lax.associative_scan(jnp.multiply, t * p[0]),
    "atan": _elementwise(jnp.arctan),
    "atan2": lambda p, t: jnp.arctan2(t, p[0]),
    "atanh": _elementwise(lambda x: jnp.arctanh(x / 3)),
    "bessel_i0e": _elementwise(special.i0e),
    "bessel_i1e": _elementwise(special.i1e),
    "bessel_jn": lambda p, t: special.bessel_jn(t * p[0], v=2)[2],
    "betainc": lambda p, t: special.betainc(2.0, 3.0, t * p[0] / 2),
    "bits": lambda p, t: lax.bitcast_convert_type(t, np.int64) % 7 * p[0],
    "cbrt": _elementwise(jnp.cbrt),
    "ceil": _steps(jnp.ceil),
    "clip": lambda p, t: jnp.clip(t, p[2], p[0]) + lax.clamp(0.2, t * p[0], 0.5),
    "checkpoint": lambda p, t: jax.checkpoint(lambda p: jnp.sin(p[0] * t))(p),
    "complex": lambda p, t: jnp.abs(jnp.exp((p[0] + 1j) * t) - jnp.conj(p[1] * 1j * t)),
    "complex_parts": lambda p, t: (
        jnp.real(lax.complex(p[0], t) ** 2) + jnp.imag(t * 1j)
    ),
    "concatenate": lambda p, t: jnp.concatenate([(t * p[0])[2:], (t * p[1])[:2]]),
    "cond": lambda p, t: lax.cond(p[0] > 0.5, lambda a: a * p[0], jnp.sin, t),
    "convert": lambda p, t: (p * 2).astype(np.float32)[0].astype(float) * t,
    "copy": lambda p, t: jnp.copy(p[0] * t),
    "cos": _elementwise(jnp.cos),
    "cosh": _elementwise(jnp.cosh),
    "cumlogsumexp": _elementwise(lax.cumlogsumexp),
    "cummax": _elementwise(lax.cummax),
    "cummin": _elementwise(lax.cummin),
    "cumprod": _elementwise(jnp.cumprod),
    "cumsum": _elementwise(jnp.cumsum),
    "custom_jvp": _elementwise(jax.nn.softplus),
    "digamma": _elementwise(special.digamma),
    "div": lambda p, t: t / p[0],
    "dynamic_slice": lambda p, t: lax.dynamic_slice(
        t * p[0], (_integers(p, t)[0],), (3,)
    ),
    "dynamic_update": lambda p, t: lax.dynamic_update_slice(t * p[0], p, (2,)),
    "erf": _elementwise(special.erf),
    "erf_inv": _elementwise(lambda x: special.erfinv(x / 2)),
    "erfc": _elementwise(special.erfc),
    "exp": _elementwise(jnp.exp),
    "exp1": _elementwise(special.exp1),
    "exp2": _elementwise(jnp.exp2),
    "expm1": _elementwise(jnp.expm1),
    "flags": lambda p, t: jnp.where((t > 0.3) & ((t < p[0]) | ~(t > 0.9)), t, p[1]),
    "floor": _steps(jnp.floor),
    "fori_loop": lambda p, t: lax.fori_loop(0, 3, lambda _, c: c * p[0], t),
    "gammaln": lambda p, t: special.gammaln(t + p[0]),
    "gather": lambda p, t: t[_integers(p, t)] * p[1] + (t * p[0])[np.array([0, 3] * 4)],
    "igamma": lambda p, t: special.gammainc(2.0, t * p[0]) + special.gammainc(t, p[1]),
    "igammac": lambda p, t: special.gammaincc(2.0, t * p[0]),
    "integer_pow": _elementwise(lambda x: x**3 + x**-2),
    "integers": lambda p, t: _integers(p, t) * p[1],
    "interp": lambda p, t: jnp.interp(t * p[0], T, T**2),
    "iota": lambda p, t: (jnp.arange(8) % 3 * 2 + jnp.arange(8) // 2) * p[0],
    "is_finite": lambda p, t: jnp.where(jnp.isfinite(p[0] / t), p[0] / t, 0),
    "jit": lambda p, t: jax.jit(lambda x: x * p[0])(t),
    "log": _elementwise(jnp.log),
    "log1p": _elementwise(jnp.log1p),
    "logistic": _elementwise(jax.nn.sigmoid),
    "logsumexp": lambda p, t: special.logsumexp(t * p[0]) - t,
    "map": lambda p, t: lax.map(lambda x: x * p[0], t),
    "max_min": lambda p, t: jnp.maximum(t, p[0]) + jnp.minimum(t, p[1]),
    "mod": lambda p, t: t % p[0] + t // p[0] * p[1],
    "ndtri": _elementwise(lambda x: special.ndtri(x / 3)),
    "neg": lambda p, t: -(p[0] - t),
    "nextafter": lambda p, t: jnp.nextafter(t, np.inf) * p[0],
    "optimization_barrier": lambda p, t: lax.optimization_barrier(p[0] * t),
    "pad": lambda p, t: jnp.pad(t * p[0], (1, 1))[1:-1],
    "piecewise": lambda p, t: jnp.piecewise(t, [t < p[0]], [jnp.sin, jnp.cos]),
    "platform": lambda p, t: lax.platform_dependent(
        t * p[0], cpu=jnp.sin, default=jnp.sin
    ),
    "polygamma": lambda p, t: special.polygamma(1, t + p[0]),
    "polyval": lambda p, t: jnp.polyval(p, t),
    "power": lambda p, t: t ** p[0],
    "random": lambda p, t: jax.random.normal(jax.random.key(0), (8,)) * p[0],
    "reduce_all": lambda p, t: jnp.where(jnp.all(t * p[0] > 0), t, 0) * p[1],
    "reduce_any": lambda p, t: jnp.where(jnp.any(t * p[0] > 0), t, 0) * p[1],
    "reduce_max": lambda p, t: jnp.max(t * p[0]) - jnp.min(t * p[1]) - t,
    "reduce_precision": lambda p, t: lax.reduce_precision(p[0] * t, 8, 23),
    "reduce_prod": lambda p, t: jnp.prod(t * p[0]) - t,
    "reduce_sum": lambda p, t: jnp.sum(t * p[0]) + jnp.std(t * p[1]) - t,
    "reduce_window": lambda p, t: lax.reduce_window(
        t * p[0], 0.0, lax.add, (3,), (1,), "SAME"
    ),
    "reduce_xor": lambda p, t: lax.reduce_xor(t > p[0], (0,)) * p[1] - t,
    "rem": lambda p, t: lax.rem(t, p[0]),
    "reshape": lambda p, t: (t * p[0]).reshape(2, 4).T.ravel(),
    "rev": lambda p, t: (t * p[0])[::-1],
    "roll": lambda p, t: jnp.roll(t * p[0], 2),
    "round": _steps(jnp.round),
    "rsqrt": _elementwise(lax.rsqrt),
    "scan": lambda p, t: lax.scan(lambda c, x: (c * p[0] + x, c), p[1], t)[1],
    "select_n": lambda p, t: lax.select_n(np.arange(8) % 3, t, t * p[0], t * p[1]),
    "shifts": lambda p, t: ((jnp.arange(8) << 2) >> 1 ^ jnp.arange(8)) * p[0],
    "shift_logical": lambda p, t: lax.shift_right_logical(jnp.arange(8), 1) * p[0],
    "sign": _steps(lambda x: jnp.sign(x - 0.5)),
    "sin": _elementwise(jnp.sin),
    "sinc": _elementwise(jnp.sinc),
    "sinh": _elementwise(jnp.sinh),
    "split": lambda p, t: jnp.concatenate(jnp.split(t * p[0], 2)[::-1]),
    "sqrt": _elementwise(jnp.sqrt),
    "square": _elementwise(jnp.square),
    "stack": lambda p, t: jnp.stack([t * p[0], t * p[1]]).ravel(),
    "stop_gradient": lambda p, t: lax.stop_gradient(p[0]) * t * p[1],
    "switch": lambda p, t: (
        lax.switch(_integers(p, t)[-1], [jnp.sin, jnp.cos], t) * p[0]
    ),
    "tan": _elementwise(jnp.tan),
    "tanh": _elementwise(jnp.tanh),
    "tile": lambda p, t: jnp.tile(t * p[0], 2),
    "unstack": lambda p, t: sum(x * t for x in p),
    "vmap": lambda p, t: jax.vmap(lambda x: x * p[0])(t),
    "where": lambda p, t: jnp.where(t > p[0], t, p[1]),
    "while_loop": lambda p, t: lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * p[0]), (0, t)
    )[1],
    "zeta": lambda p, t: special.zeta(t + 1.5, 2.0) * p[0],
    "unused": lambda p, t: p * 2,
}

# What cannot stand in one function.
OTHERS = {
    "callback": _callback,
    "cholesky": lambda p, t: jnp.linalg.cholesky(np.eye(3) * p[0]).ravel(),
    "convolve": lambda p, t: jnp.convolve(t * p[0], np.array([0.2, 0.8]), mode="same"),
    "debug_print": lambda p, t: (jax.debug.print(""), t * p[0])[1],
    "dot": lambda p, t: np.ones((8, 3)) @ p - t,
    "eigh": lambda p, t: jnp.linalg.eigh(np.eye(3) * p[0])[0],
    "expm": lambda p, t: expm(np.eye(3) * p[0]).ravel(),
    "fft": lambda p, t: jnp.abs(jnp.fft.fft(t * p[0])),
    "large_sum": lambda p, t: jnp.sum(jnp.arange(2000.0) * p[0]) - t,
    "median": lambda p, t: jnp.median(t * p[0]) - t,
    "scatter": lambda p, t: (t * p[0]).at[np.array([1, 2])].add(1.0),
    "solve": lambda p, t: jnp.linalg.solve(np.eye(3) * p[0], p),
    "sort": lambda p, t: jnp.sort(t * p[0]),
    "top_k": lambda p, t: lax.top_k(t * p[0], 2)[0],
}


def trial(function):
    """A loop over a function and its derivatives, as a fit is."""

    def fit(arguments):
        p, t = arguments

        def residual(p):
            return jnp.ravel(function(p, t)).astype(float)

        def step(_, p):
            push = jax.vmap(lambda d: jax.jvp(residual, (p,), (d,)), out_axes=(None, 0))
            value, columns = push(jnp.eye(3))
            return p - 1e-3 * jnp.tanh(jnp.sum(columns * value, axis=1))

        return lax.fori_loop(0, 3, step, p)

    return fit


def main(names):
    jax.config.update("jax_enable_x64", True)
    for name in names:
        print("try", name, flush=True)
        fit = trial(TRIED[name])
        expected = jax.jit(fit)((P, T))
        found = jax.jit(lambda arrays, fit=fit: one_function(fit, arrays))((P, T))
        np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=name)
        print("right", name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
