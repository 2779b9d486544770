"""What errors say: what was given, what was expected, and what to write instead."""

import datetime
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import jaxfit

X = np.linspace(0.0, 1.0, 8)
Y = np.exp(-1.5 * X)


def plain(x, a, b):
    return a * jnp.exp(-b * x)


def power(x, a, b):
    return a * math.pow(b, 2.0) * x


def gamma(x, a, b):
    return a * math.lgamma(b) * x


def number(x, a, b):
    return a * x + float(b)


def item(x, a, b):
    return a * x + b.item()


def branch(x, a, b):
    return a * x if a > 0 else b * x


def longer(x, a, b):
    return jnp.maximum(a, b) * x + max(a, b)


def mask(x, a, b):
    return a * x[x > b]


def counted(x, a, b):
    return sum(a * x for _ in range(b))


def formatted(x, a, b):
    return a * x + len(f"{b:.2f}")


def integral(x, a, b):
    return x * quad(lambda t: a * t + b, 0, 1)[0]


def by_numpy(x, a, b):
    return a * np.exp(-b * x)


WORDS = [
    (power, "Write `jnp.pow` for `math.pow`."),
    (gamma, "Write `jax.scipy.special.gammaln` for `math.lgamma`."),
    (number, "Leave float() out"),
    (item, "Leave float() out"),
    (branch, "Write `jnp.where(condition, a, b)`"),
    (longer, "`jnp.maximum(a, b)`"),
    (mask, "by a boolean mask, and how many is not known. Write `jnp.where"),
    (counted, "`jax.lax.fori_loop` for range()"),
    (formatted, 'Write `jax.debug.print("a = {a}", a=a)`'),
    (integral, "`t, w = np.polynomial.legendre.leggauss(50)`"),
    (by_numpy, "`jnp.exp` for `np.exp`"),
]


def entrances(model):
    """The entrances for functions in JAX alone, as functions of nothing."""
    return {
        "solve": lambda: jaxfit.solve(
            lambda p, d: model(jnp.asarray(X), *p) - Y, jnp.ones(2)
        ),
        "solve_batch": lambda: jaxfit.solve_batch(
            lambda p, d: model(jnp.asarray(X), *p) - Y, jnp.ones((2, 2)), None
        ),
    }


@pytest.mark.parametrize(
    ("model", "words"), WORDS, ids=[model.__name__ for model, _ in WORDS]
)
def test_what_cannot_be_traced_is_told_with_its_line(model, words):
    line = model.__code__.co_firstlineno + 1
    for name, call in entrances(model).items():
        with pytest.raises(TypeError, match=re.escape(words)) as caught:
            call()
        assert f"{__file__}:{line}" in str(caught.value), name


DATES = np.array([datetime.datetime(2026, 1, 1 + k) for k in range(8)], dtype=object)
KINDS = [  # what is given as data, and the words
    (DATES.astype("M8[s]"), TypeError, "(t - t[0]) / np.timedelta64(1, 's')"),
    (DATES, TypeError, "np.asarray(t - t[0], 'timedelta64[us]') / np.timedelta64("),
    (DATES - DATES[0], TypeError, "np.asarray(t, 'timedelta64[us]')"),
    (np.array(["a"] * 8), (TypeError, ValueError), "expected an array of"),
    (np.array([{}] * 8), (TypeError, ValueError), "expected an array of"),
]


@pytest.mark.parametrize(("given", "kind", "words"), KINDS)
def test_dates_texts_and_objects_are_not_complex(given, kind, words):
    calls = [
        lambda: jaxfit.curve_fit(plain, X, given, [1.0, 1.0]),
        lambda: jaxfit.fit(plain, X, given),
        lambda: jaxfit.fit_batch(plain, X, given[None]),
        lambda: jaxfit.solve(lambda p, d: p - d, jnp.ones(8), given),
    ]
    for call in calls:
        with pytest.raises(kind, match=re.escape(words)) as caught:
            call()
        assert "complex" not in str(caught.value)


def test_complex_data_are_sent_on():
    for call in (
        lambda: jaxfit.curve_fit(plain, X, Y + 1j, [1.0, 1.0]),
        lambda: jaxfit.fit(plain, X + 1j, Y),
    ):
        with pytest.raises(ValueError, match=r"\[z.real, z.imag\].*solve"):
            call()
    with pytest.raises(TypeError, match="which takes complex residuals"):
        jaxfit.least_squares(lambda p: jax.lax.complex(p, p), [1.0])
    with pytest.raises(TypeError, match=r"dtype bool.*jnp.where") as caught:
        jaxfit.least_squares(lambda p: p > 0, [1.0])
    assert "complex" not in str(caught.value)


@jax.custom_vjp
def backwards(x, a, b):
    return a * jnp.exp(-b * x)


def _ahead(x, a, b):
    return backwards(x, a, b), (x, a, b)


def _back(kept, cotangent):
    x, a, b = kept
    e = jnp.exp(-b * x)
    return None, jnp.sum(cotangent * e), jnp.sum(-cotangent * a * x * e)


backwards.defvjp(_ahead, _back)


def only_backwards(x, a, b):
    return backwards(x, a, b)


def test_reverse_mode_is_fallen_back_to():
    """As diffrax's adjoints and odeint need it; the values are the same."""
    y = Y + 0.01 * np.cos(20 * X)
    expected = jaxfit.curve_fit(plain, X, y, [1.0, 1.0])
    found = jaxfit.curve_fit(only_backwards, X, y, [1.0, 1.0])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)

    result = jaxfit.least_squares(lambda p: backwards(X, *p) - y, [1.0, 1.0])
    np.testing.assert_allclose(result.x, expected[0], rtol=1e-6)
    fit = jaxfit.fit(only_backwards, X, y, covariance="sandwich")
    a, b = fit.values.values()
    np.testing.assert_allclose([a, b], expected[0], rtol=1e-9)
    e = np.exp(-b * X)
    slopes = np.stack([e, -a * X * e], axis=1)
    gradients = slopes * (a * e - y)[:, None]
    bread = np.linalg.inv(slopes.T @ slopes)  # the sandwich's, with its HC1
    covariance = bread @ (gradients.T @ gradients) @ bread * 8 / 6
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-6)
    stderr = np.sqrt(np.sum(slopes @ covariance * slopes, axis=1))
    np.testing.assert_allclose(fit.confidence_band().stderr, stderr, rtol=1e-6)


def test_forward_mode_that_is_asked_for_says_which_option_helps():
    with pytest.raises(TypeError, match=r"custom_vjp.*jac='rev'"):
        jaxfit.solve(
            lambda p, d: backwards(X, p[0], p[1]) - Y,
            jnp.ones(2),
            options=jaxfit.Options(jac="fwd"),
        )


def logarithm(x, a, b):
    return a * jnp.log(x - b)


def root(x, a, b):
    return a + jnp.sqrt(jnp.abs(x - b))


NOT_FINITE = [
    (logarithm, [1.0, 0.5], "4 of 8 residuals are not finite, the first at index 0"),
    (
        root,
        [1.0, X[3]],
        "all 8 residuals are finite, and the derivatives of 1 are not, the first at "
        "index 3",
    ),
]


@pytest.mark.parametrize(
    ("model", "start", "words"), NOT_FINITE, ids=["values", "slopes"]
)
def test_what_is_not_finite_at_the_start_is_counted(model, start, words):
    with pytest.raises(ValueError, match=words):
        jaxfit.curve_fit(model, X, Y, start)
    with pytest.raises(ValueError, match=words):
        jaxfit.least_squares(lambda p: model(jnp.asarray(X), *p) - Y, start)
    with pytest.raises(jaxfit.FitError, match=words):
        jaxfit.fit(model, X, Y, p0=start)
