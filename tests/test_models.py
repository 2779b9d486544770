"""Models: values, names, composition, and starts that lead to the right minimum."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
from simulated import CASES, SUMS

import jaxfit
from jaxfit import models
from jaxfit.models._parse import library

NUMBER = 1000


# Starts


@pytest.mark.parametrize("case", CASES + SUMS, ids=lambda case: case.name)
def test_a_thousand_data_sets_reach_the_right_minimum_from_the_guess(case):
    truth, y = case.draw(NUMBER)
    model, names = case.model, case.model.names
    guess = model.guess(case.x, y)
    assert tuple(guess) == names
    x = jax.tree.map(jnp.asarray, case.x)
    lower, upper = np.array([model.bounds[name] for name in names]).T

    def residual(p, y):
        return model.evaluate(x, dict(zip(names, p, strict=True))) - y

    def fitted(start):
        start = np.stack([np.broadcast_to(start[n], NUMBER) for n in names], axis=1)
        inside = np.clip(start, lower + 1e-9, upper - 1e-9)
        return jaxfit.solve_batch(residual, inside, y, bounds=(lower, upper))

    ours, best = fitted(guess), fitted(truth)
    right = ours.success & (ours.cost <= best.cost * (1 + 1e-6))
    assert np.mean(right) >= 0.99


def test_guesses_of_a_batch_are_those_of_its_curves_and_ignore_nan():
    case = CASES[12]
    assert case.name == "Gaussian"
    _, y = case.draw(6)
    batch = case.model.guess(case.x, y.reshape(2, 3, -1))
    assert batch["center"].shape == (2, 3)
    for k in range(6):
        one = case.model.guess(case.x, y[k])
        for name, value in one.items():
            np.testing.assert_allclose(batch[name].ravel()[k], value, rtol=1e-12)
    gaps = y.copy()
    gaps[:, :10] = np.nan
    found = case.model.guess(case.x, gaps)
    np.testing.assert_allclose(found["center"], batch["center"].ravel(), atol=1)


def test_a_guess_does_not_depend_on_the_order_of_the_points():
    case = CASES[12]
    _, y = case.draw(1)
    order = np.random.default_rng(0).permutation(len(case.x))
    one = case.model.guess(case.x, y[0])
    other = case.model.guess(case.x[order], y[0][order])
    assert one == other


# Values


@pytest.mark.parametrize("imaginary", [0.0, 1e-9, 1e-3, 0.5, 3.0, 50.0])
def test_the_faddeeva_function_is_scipys(imaginary):
    z = np.linspace(-60, 60, 2001) + 1j * imaginary
    expected = scipy.special.wofz(z)
    found = np.asarray(models.faddeeva(jnp.asarray(z)))
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    slope = jax.vmap(
        lambda x: jax.jvp(
            lambda x: models.faddeeva(jax.lax.complex(x, jnp.asarray(imaginary))),
            (x,),
            (jnp.ones_like(x),),
        )[1]
    )(jnp.asarray(z.real))
    exact = 2j / np.sqrt(np.pi) - 2 * z * expected
    near = np.abs(z) < 8  # beyond, this formula cancels
    np.testing.assert_allclose(slope[near], exact[near], rtol=1e-10, atol=1e-13)
    h = 0.02
    a, b = (
        (scipy.special.wofz(z + k * h) - scipy.special.wofz(z - k * h)) for k in (1, 2)
    )
    differences = (8 * a - b) / (12 * h)
    far = np.abs(z) > 8.1
    np.testing.assert_allclose(slope[far], differences[far], rtol=1e-7)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_and_slopes_are_finite_in_both_precisions(case):
    truth, _ = case.draw(3, seed=5)
    for dtype in (jnp.float32, jnp.float64):
        x = jax.tree.map(lambda leaf, dtype=dtype: jnp.asarray(leaf, dtype), case.x)
        first = x[0] if isinstance(x, tuple) else x
        p = {n: jnp.asarray(v[0], dtype) for n, v in truth.items()}
        values, slopes = jax.value_and_grad(
            lambda p, x=x: jnp.sum(case.model.evaluate(x, p))
        )(p)
        assert case.model.evaluate(x, p).shape == first.shape
        assert values.dtype == dtype
        assert np.isfinite(values)
        assert all(np.isfinite(v) and v.dtype == dtype for v in slopes.values())


AREAS = [case for case in CASES if "area" in case.model.derived(case.draw(1)[0])]


@pytest.mark.parametrize("case", AREAS, ids=lambda case: case.name)
def test_derived_areas_and_widths_are_those_of_the_curve(case):
    truth, _ = case.draw(1, seed=3)
    p = {name: jnp.asarray(value[0]) for name, value in truth.items()}
    derived, center = case.model.derived(p), float(p["center"])

    def value(x):
        return float(case.model.evaluate(jnp.asarray(x), p))

    t = np.linspace(-np.pi / 2, np.pi / 2, 200_003)[1:-1]  # all of the line
    x = center + np.tan(t)
    y = np.asarray(case.model.evaluate(jnp.asarray(x), p))
    area = scipy.integrate.simpson(y / np.cos(t) ** 2, x=t)
    np.testing.assert_allclose(derived["area"], area, rtol=2e-3)
    half = float(derived["fwhm"]) / 2
    np.testing.assert_allclose(value(center + half), value(center) / 2, rtol=1e-3)


def test_derived_quantities_of_voigt():
    p = {
        "area": jnp.asarray(3.0),
        "center": jnp.asarray(1.0),
        "sigma": 0.4,
        "gamma": 0.3,
    }
    p = {name: jnp.asarray(value) for name, value in p.items()}
    derived = models.Voigt().derived(p)
    at = models.Voigt().evaluate(
        jnp.asarray([1.0, 1.0 + float(derived["fwhm"]) / 2]), p
    )
    np.testing.assert_allclose(at[0], derived["height"], rtol=1e-12)
    np.testing.assert_allclose(at[1], at[0] / 2, rtol=1e-3)
    x = np.linspace(-3, 5, 50)
    expected = 3.0 * scipy.special.voigt_profile(x - 1, 0.4, 0.3)
    found = models.Voigt().evaluate(jnp.asarray(x), p)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# Composition


def test_sums_and_products_join_names_bounds_and_values():
    model = models.Gaussian() + models.Gaussian(prefix="b_") + models.Linear()
    assert model.names == (
        *("height", "center", "width"),
        *("b_height", "b_center", "b_width", "slope", "intercept"),
    )
    assert model.bounds["b_width"] == (0, np.inf)
    assert [part.label for part in model.parts] == ["Gaussian", "Gaussian b", "Linear"]
    x = np.linspace(0, 5, 7)
    values = {
        "height": 1.0,
        "center": 2.0,
        "width": 0.5,
        "slope": 0.1,
        "intercept": 3.0,
    }
    values |= {"b_height": 2.0, "b_center": 3.0, "b_width": 0.7}
    bell = np.exp(-0.5 * ((x - 2) / 0.5) ** 2)
    other = 2 * np.exp(-0.5 * ((x - 3) / 0.7) ** 2)
    np.testing.assert_allclose(model(x, values), bell + other + 0.1 * x + 3)
    np.testing.assert_allclose(model(x, **values), model(x, values))
    product = models.Linear() * models.Gaussian()
    part = {name: values[name] for name in product.names}
    np.testing.assert_allclose(product(x, part), (0.1 * x + 3) * bell)
    assert set(model.derived(values)) >= {"fwhm", "b_fwhm", "area", "b_area"}


def test_plain_functions_are_models():
    def wave(x, a, k=2.0, *, shift):
        return a * jnp.sin(k * x) + shift

    model = models.as_model(wave) + models.Gaussian()
    assert model.names == ("a", "k", "shift", "height", "center", "width")
    x = jnp.linspace(0, 1, 5)
    alone = models.as_model(wave)
    np.testing.assert_allclose(
        alone(x, a=1.0, k=3.0, shift=0.5), np.sin(3 * x) + 0.5, rtol=1e-15
    )
    assert alone.guess(x, x) == {"a": 1, "k": 2, "shift": 1}
    assert (wave + models.Constant()).names == ("a", "k", "shift", "c")


def test_a_model_of_ones_own():
    class Cosine(models.Model):
        """amplitude cos(rate x)."""

        linear = ("amplitude",)
        limits = {"rate": (0.0, 10.0)}

        def function(self, x, amplitude, rate):
            return amplitude * jnp.cos(rate * x)

        def candidates(self, x, y):
            return {"rate": np.linspace(0.2, 9, 45)}

        def quantities(self, amplitude, rate):
            return {"period": 2 * np.pi / rate}

    x = np.linspace(0, 5, 60)
    fit = jaxfit.fit(Cosine(), x, 3 * np.cos(4.3 * x))
    np.testing.assert_allclose(fit.values["rate"], 4.3, rtol=1e-9)
    np.testing.assert_allclose(fit["period"].value, 2 * np.pi / 4.3, rtol=1e-9)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gaussian", ["height", "center", "width"]),
        (
            "Linear + b_Lorentzian",
            [
                *("slope", "intercept", "b_height", "b_center", "b_width"),
            ],
        ),
        ("polynomial(2)", ["c0", "c1", "c2"]),
        (
            "s_step(arctan) * (constant+linear)",
            [
                *("s_height", "s_center", "s_width", "c", "slope", "intercept"),
            ],
        ),
    ],
)
def test_models_from_text(text, names):
    assert list(models.parse(text).names) == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gausian", "did you mean gaussian"),
        ("gaussian +", "not the end"),
        ("gaussian linear", "'linear' is unexpected"),
        ("(gaussian", "closing parenthesis"),
        ("gaussian(3)", "takes nothing in parentheses"),
        ("polynomial()", "lacks what stands in parentheses"),
        ("polynomial(99)", "degree is 99"),
        ("step(cosine)", "form is 'cosine'"),
        ("gaussian - linear", "'-' in the model"),
        ("__import__('os')", '"\'" in the model'),
        ("1 + linear", "a model is expected, not '1'"),
        ("", "a model is expected"),
        ("gaussian + gaussian", "Give one of them a prefix"),
    ],
)
def test_texts_that_are_no_models_are_explained(text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        models.parse(text)


def _all(*values):
    return 0


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: models.Gaussian(prefix="1b"), ValueError, "prefix is '1b'"),
        (lambda: models.as_model(3), TypeError, "expected one of jaxfit.models"),
        (lambda: models.as_model(models.Gaussian), TypeError, "write Gaussian()"),
        (lambda: models.as_model(lambda x: x), TypeError, "at least one parameter"),
        (lambda: models.as_model(_all).names, TypeError, "names no parameter"),
        (lambda: models.Gaussian()(0.0, height=1.0), TypeError, "missing: center"),
        (
            lambda: models.Constant()(0.0, c=1.0, d=2.0),
            TypeError,
            "unknown: d",
        ),
    ],
)
def test_models_that_are_none_are_explained(make, kind, words):
    with pytest.raises(kind) as error:
        make()
    assert words in str(error.value)


def test_the_library_is_documented():
    own = library().values()
    assert len(own) >= 30
    for kind in own:
        for name in kind().names:
            documented = kind.__doc__.replace("`", " ")
            known = name in documented or name.rstrip("0123456789") in documented
            assert known, f"{kind.__name__}: {name}"


def test_a_guess_takes_what_is_given_for_granted():
    model = models.Gaussian(prefix="a_") + models.Gaussian(prefix="b_")
    x = np.linspace(0, 10, 80)
    y = 5 * np.exp(-((x - 3) ** 2)) + np.exp(-((x - 7) ** 2))
    y = y + 0.05 * np.random.default_rng(0).normal(size=80)
    guess = model.guess(x, y)
    assert abs(guess["a_center"] - 3) < 0.3  # the largest comes first
    assert abs(guess["b_center"] - 7) < 0.5
    for given in ({"p0": {"a_center": 6.9}}, {"fixed": {"a_center": 7.0}}):
        fit = jaxfit.fit(model, x, y, **given)
        assert fit.params["b_center"].start == pytest.approx(3, abs=0.3)
        assert fit.values["a_center"] == pytest.approx(7, abs=0.1)
        assert fit.values["b_height"] == pytest.approx(5, abs=0.2)


def test_a_model_of_which_nothing_is_known_starts_at_one():
    class Bare(models.Model):
        def function(self, x, a, b):
            return a * jnp.exp(-b * x)

    class Judged(Bare):
        def candidates(self, x, y):
            return {"a": np.ones(2), "b": np.ones(2)}

    x = np.linspace(0, 2, 20)
    fit = jaxfit.fit(Bare(), x, 3 * np.exp(-2 * x))
    assert fit.values["b"] == pytest.approx(2)
    with pytest.raises(TypeError, match="Judged has candidates and no linear"):
        jaxfit.fit(Judged(), x, 3 * np.exp(-2 * x))
