"""lmfit's models and parameters in `fit`: lmfit's own results."""

import lmfit
import numpy as np
import pytest
from lmfit import models
from numpy.testing import assert_allclose

import jaxfit

X = np.linspace(0.1, 10, 80)
NOISE = np.random.default_rng(1).normal(size=80)
TIGHT = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 0.0}  # leastsq, to its last digits

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using UFloat objects with std_dev==0"  # lmfit's
)


def check(model, x, y, params, names=None, sigma=None, **keywords):
    """The same values and errors, of what varies and of what follows from it."""
    fit = jaxfit.fit(model, x, y, p0=params, sigma=sigma, **keywords)
    inputs = dict(zip(model.independent_vars, x, strict=False))
    inputs = inputs if isinstance(x, tuple) else {model.independent_vars[0]: x}
    weights = None if sigma is None else 1 / sigma
    theirs = model.fit(y, params, weights=weights, fit_kws=TIGHT, **inputs)
    assert fit.success
    assert fit.chi_square <= theirs.chisqr * (1 + 1e-12)
    for name in names or [n for n, one in theirs.params.items() if one.vary]:
        one = theirs.params[name]
        near = 1e-4 * one.stderr  # where lmfit's differences for derivatives end
        assert_allclose(fit[name].value, one.value, rtol=1e-6, atol=near)
        assert_allclose(fit[name].stderr, one.stderr, rtol=1e-3)
    return fit, theirs


BUILT_IN = {
    "gaussian": (models.GaussianModel, {"center": 4.0, "sigma": 1.1}),
    "voigt": (models.VoigtModel, {"center": 4.0, "sigma": 0.8}),
    "pseudo-voigt": (models.PseudoVoigtModel, {"center": 4.0, "sigma": 0.9}),
    "moffat": (models.MoffatModel, {"center": 4.0, "sigma": 1.4, "beta": 1.5}),
    "exponential gaussian": (models.ExponentialGaussianModel, {"center": 3.0}),
    "oscillator": (models.DampedOscillatorModel, {"center": 3.0, "sigma": 0.2}),
    "power": (models.PowerLawModel, {"amplitude": 2.0, "exponent": -0.7}),
    "decay": (models.ExponentialModel, {"amplitude": 2.0, "decay": 3.0}),
}


@pytest.mark.parametrize("case", BUILT_IN)
def test_built_in_models(case):
    kind, truth = BUILT_IN[case]
    model = kind()
    true = model.make_params(**truth)
    y = model.eval(true, x=X)
    y = y + 0.01 * np.ptp(y) * NOISE
    start = model.make_params(**{n: 1.05 * value for n, value in truth.items()})
    derived = [n for n, one in start.items() if one.expr and n not in truth]
    fit, theirs = check(model, X, y, start)
    for name in derived:
        assert_allclose(fit[name].value, theirs.params[name].value, rtol=1e-6)
        assert_allclose(fit[name].stderr, theirs.params[name].stderr, rtol=1e-3)


PEAKS = models.GaussianModel(prefix="a_") + models.LorentzianModel(prefix="b_")
PEAKS = PEAKS * models.ConstantModel(prefix="s_") + models.LinearModel()


def peaks():
    params = PEAKS.make_params(
        a_amplitude=3, a_center=3, a_sigma=0.6, b_amplitude=2, b_center=7, b_sigma=0.8
    )
    params["s_c"].set(value=1.2, vary=False)
    params["slope"].set(value=0.02, min=0)
    params["intercept"].set(value=0.3)
    return params


def test_composites_prefixes_bounds_fixed():
    y = PEAKS.eval(peaks(), x=X) + 0.01 * NOISE
    start = peaks()
    start["b_amplitude"].set(value=1.5, max=1.9)  # active
    fit = jaxfit.fit(PEAKS, X, y, p0=start)
    assert fit["b_amplitude"].value == pytest.approx(1.9, rel=1e-6)
    assert fit["s_c"].value == 1.2
    start["b_amplitude"].max = np.inf
    check(PEAKS, X, y, start, sigma=np.full(80, 0.01))


EXPRESSIONS = {
    "equal": ("b_sigma", "a_sigma"),
    "arithmetic": ("b_sigma", "2 * a_sigma + 0.1**2 - 0.01"),
    "functions": ("b_sigma", "sqrt(a_sigma**2 + exp(-max(1, a_center)))"),
    "an own parameter": ("b_center", "a_center + apart"),
    "a chain": ("b_center", "a_center + 5 * middle"),
}


@pytest.mark.parametrize("case", EXPRESSIONS)
def test_expressions(case):
    start = peaks()
    start.add("apart", value=3.8, min=0)
    start.add("middle", expr="a_sigma * 2")
    if case != "an own parameter":
        start["apart"].vary = False
    name, text = EXPRESSIONS[case]
    start[name].set(expr=text)
    y = PEAKS.eval(start, x=X) + 0.01 * NOISE
    start["a_center"].value = 2.9
    fit, theirs = check(PEAKS, X, y, start)
    assert_allclose(fit[name].value, theirs.params[name].value, rtol=1e-6)


def test_an_expression_is_cut_at_its_bounds():
    y = PEAKS.eval(peaks(), x=X) + 0.01 * NOISE
    start = peaks()
    start["b_sigma"].set(expr="3 * a_sigma", max=0.9)
    fit, _ = check(PEAKS, X, y, start, names=["a_center", "b_amplitude"])
    assert fit["b_sigma"].value == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a_sigma if a_sigma > 0.1 else 0.1", "a_sigma if"),
        ("mine(a_sigma)", "mine(a_sigma)"),
        ("[a_sigma][0]", "[a_sigma][0]"),
    ],
)
def test_what_cannot_be_a_tie_is_named(text, wrong):
    start = peaks()
    start._asteval.symtable["mine"] = lambda value: value
    start["b_sigma"].set(expr=text)
    with pytest.raises(ValueError, match="which cannot be compiled") as error:
        jaxfit.fit(PEAKS, X, X, p0=start)
    assert repr(text) in str(error.value)
    assert wrong in str(error.value)


def decay(t, amount, rate=1.0, offset=0.0):
    return amount * np.exp(-rate * t) + offset


def surface(u, v, a, b):
    return a * np.sin(u) + b * v**2


def test_own_functions():
    y = decay(X, 2.0, 0.7, 0.1) + 0.01 * NOISE
    model = lmfit.Model(decay)
    params = model.make_params(amount=1.0)
    check(model, X, y, params)
    fit = jaxfit.fit(model, X, y, p0={"amount": 1.0}, fixed={"offset": 0.1})
    assert fit["offset"].value == 0.1
    same = jaxfit.fit(model, X, y, p0=[1.0, 1.0, 0.1], fixed=["offset"])
    assert_allclose(same["rate"].value, fit["rate"].value, rtol=1e-9)


def test_several_independent_variables():
    model = lmfit.Model(surface, independent_vars=["u", "v"])
    u, v = X, np.cos(X)
    y = surface(u, v, 2.0, 3.0) + 0.01 * NOISE
    fit, _ = check(model, (u, v), y, model.make_params(a=1, b=1))
    by_name = jaxfit.fit(model, {"u": u, "v": v}, y, p0={"a": 1.0, "b": 1.0})
    assert_allclose(by_name["b"].value, fit["b"].value, rtol=1e-9)
    with pytest.raises(ValueError, match="independent variables u, v"):
        jaxfit.fit(model, u, y)


def test_a_model_that_is_a_text():
    model = models.ExpressionModel("amount * exp(-rate * x) + offset")
    y = decay(X, 2.0, 0.7, 0.1) + 0.01 * NOISE
    check(model, X, y, model.make_params(amount=1, rate=1, offset=0))


def test_a_step_with_its_form():
    model = models.StepModel(form="erf")
    params = model.make_params(amplitude=2.0, center=5.0, sigma=0.9)
    y = model.eval(params, x=X) + 0.01 * NOISE
    params["center"].value = 4.6
    check(model, X, y, params)


def test_parameters_for_a_model_of_ours():
    params = lmfit.Parameters()
    params.add("height", value=1.0, min=0)
    params.add("center", value=4.0)
    params.add("width", value=1.0, min=0.1)
    params.add("twice", expr="2 * width")  # derived: left out
    ours = jaxfit.models.Gaussian()
    assert set(ours.names) == {*params} - {"twice"}
    y = 2 * np.exp(-((X - 4.2) ** 2) / 2) + 0.01 * NOISE
    params["width"].vary = False
    fit = jaxfit.fit(ours, X, y, p0=params)
    assert fit["width"].value == 1.0
    assert fit["center"].value == pytest.approx(4.2, abs=0.05)


class Doubled(lmfit.Model):
    def eval(self, params=None, **inputs):
        return 2 * super().eval(params, **inputs)


def test_a_class_with_its_own_evaluation_is_refused():
    with pytest.raises(TypeError, match="Doubled is a class of lmfit's models with"):
        jaxfit.fit(Doubled(decay), X, X)


def test_what_stands_beside_parameters_prevails():
    model = lmfit.Model(decay)
    params = model.make_params(amount=1.0, offset={"value": 0.3, "max": 0.5})
    params["rate"].set(value=0.5, min=0.0)
    y = decay(X, 2.0, 0.7, 0.1) + 0.01 * NOISE
    bounds = {"rate": (0.0, 0.6)}
    fit = jaxfit.fit(model, X, y, p0=params, bounds=bounds, fixed="offset")
    assert fit["rate"].value == pytest.approx(0.6)
    assert fit["offset"].value == 0.3
    tie = {"offset": lambda p: p["rate"] / 7}
    tied = jaxfit.fit(model, X, y, p0=params, tie=tie)
    assert tied["offset"].value == pytest.approx(tied["rate"].value / 7)


def test_a_batch():
    model = models.GaussianModel()
    params = model.make_params(amplitude=2.0, center=4.0, sigma=1.0)
    ys = model.eval(params, x=X) + 0.01 * np.stack([NOISE, NOISE[::-1]])
    fits = jaxfit.fit_batch(model, X, ys, p0=params)
    alone = jaxfit.fit(model, X, ys[1], p0=params)
    assert_allclose(fits["center"][1], alone["center"].value, rtol=1e-9)
