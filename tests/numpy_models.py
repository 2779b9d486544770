"""Models written in NumPy and SciPy, as tutorials and questions have them.

Each is what somebody passes to `scipy.optimize.curve_fit`, in our own words: nothing in
it knows of jaxfit. The data are the model at known parameters with noise of a fixed
seed.
"""

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import constants, integrate, interpolate, special, stats

TUTORIAL, QUESTION = "tutorial", "Q&A"


class Example(NamedTuple):
    """A model, its data, and how it is fitted."""

    function: Callable
    source: str  # where such a model is found
    x: Any
    true: tuple[float, ...]
    start: tuple[float, ...]
    noise: float
    keywords: dict[str, Any]  # of curve_fit
    host: str | None  # why NumPy itself evaluates it; None: it is compiled
    name: str

    @property
    def y(self) -> np.ndarray:
        """The data."""
        values = np.asarray(self.function(self.x, *self.true))
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        return values + self.noise * rng.normal(size=values.shape)


EXAMPLES: list[Example] = []
X = np.linspace(0.05, 6.0, 60)


def example(
    source: str,
    true: Sequence[float],
    start: Sequence[float],
    x: Any = X,
    noise: float = 0.02,
    host: str | None = None,
    name: str | None = None,
    **keywords: Any,
) -> Callable[[Callable], Callable]:
    """Enter a function into `EXAMPLES`."""

    def enter(function: Callable) -> Callable:
        title = name or function.__name__.replace("_", " ")
        entry = (source, x, tuple(true), tuple(start), noise, keywords, host, title)
        EXAMPLES.append(Example(function, *entry))
        return function

    return enter


# Curves in one line


@example(TUTORIAL, (2.5, 1.3, 0.5), (1, 1, 1))
def decay_to_an_offset(x, a, b, c):
    return a * np.exp(-b * x) + c


@example(TUTORIAL, (2.0, 3.0, 0.4, 0.1, 0.3), (1, 2.7, 0.6, 0, 0))
def lorentzian_on_a_line(x, area, center, width, slope, offset):
    peak = area / np.pi * width / ((x - center) ** 2 + width**2)
    return peak + slope * x + offset


@example(QUESTION, (1.5, 0.3, 4.0, 0.4), (1, 0.2, 3.8, 0))
def damped_cosine(t, A, gamma, omega, phi):
    return A * np.exp(-gamma * t) * np.cos(omega * t + phi)


@example(QUESTION, (3.0, 2.0, 1.5), (1, 1, 1), sigma=0.02 + 0.01 * X, bounds=(0, 9))
def hill(x, top, k, n):
    return top * np.power(x, n) / (k**n + np.power(x, n))


# Breaks and masks


@example(QUESTION, (3.12, 2.0, 1.0, -0.5), (2.5, 1, 1, 0))
def two_lines_by_piecewise(x, x0, y0, k1, k2):
    return np.piecewise(
        x, [x < x0], [lambda x: k1 * (x - x0) + y0, lambda x: k2 * (x - x0) + y0]
    )


@example(QUESTION, (2.63, 0.2, 1.0, 0.8), (2, 0.3, 1.5, 0.5))
def saturation_by_where(x, knee, low, slope, rate):
    rise = low + slope * x
    return np.where(x < knee, rise, low + slope * knee * np.exp(-rate * (x - knee)))


@example(QUESTION, (1.93, 1.5, 0.7), (1.6, 1, 1))
def onset_by_mask(t, t0, height, tau):
    y = np.zeros_like(t)
    on = t > t0
    y[on] = height * (1 - np.exp(-(t[on] - t0) / tau))
    return y


@example(QUESTION, (1.5, 0.7, 0.4), (1, 1, 1))
def two_regimes_by_mask(t, a, k1, k2):
    y = np.empty_like(t)
    early = t < 2
    y[early] = a * np.exp(-k1 * t[early])
    y[~early] = a * np.exp(-2 * k1) * np.exp(-k2 * (t[~early] - 2))
    return y


@example(QUESTION, (1.2, 0.5, 3.0), (1, 1, 2.5), host="element by element")
def filled_by_a_loop(x, a, b, c):
    y = np.zeros(len(x))
    for i in range(len(x)):
        y[i] = a * np.exp(-b * (x[i] - c) ** 2)
    return y


@example(QUESTION, (2.0, 0.9, 1.4), (1, 1, 1))
def clipped_in_place(x, a, b, top):
    y = x.copy()
    y *= -b
    np.exp(y, out=y)
    y = a * (1 - y)
    return np.clip(y, 0, top)


# Sums over parameters


@example(QUESTION, (1, 1.5, 0.4, 0.6, 4.2, 0.6), (0.8, 1.3, 0.5, 0.8, 4, 0.5))
def peaks_in_a_loop(x, *params):
    y = np.zeros_like(x)
    for i in range(0, len(params), 3):
        height, center, width = params[i : i + 3]
        y += height * np.exp(-(((x - center) / width) ** 2))
    return y


@example(QUESTION, (1.0, 0.3, 0.5, 2.0), (0.5, 0.2, 1, 2.5))
def sum_of_decays(t, *p):
    return sum(a * np.exp(-k * t) for a, k in zip(p[::2], p[1::2], strict=True))


@example(TUTORIAL, (0.1, -0.8, 1.2, 0.5), (1, 1, 1, 1))
def polynomial(x, *coefficients):
    return np.polyval(coefficients, x)


@example(QUESTION, (0.5, 1.0, -0.4, 0.3, 0.1), (0, 0, 0, 0, 0))
def fourier_series(x, *a):
    basis = np.column_stack([np.cos(k * np.pi * x / 6) for k in range(len(a))])
    return np.dot(basis, np.array(a))


@example(QUESTION, (0.2, 1.0, 0.3, 0.8, 0.1), (0.5, 0.5, 0.5, 0.5, 0.5))
def straight_between_knots(x, *levels):
    knots = np.linspace(0, 6.5, len(levels))
    i = np.searchsorted(knots, x) - 1
    levels = np.asarray(levels)
    part = (x - knots[i]) / (knots[i + 1] - knots[i])
    return levels[i] * (1 - part) + levels[i + 1] * part


# Tables, convolutions, transforms

GRID = np.linspace(-3, 9, 121)
TEMPLATE = np.exp(-((GRID - 2) ** 2)) + 0.5 * np.exp(-2 * (GRID - 4) ** 2)
RESPONSE = np.exp(-0.5 * ((X[:20] - X[8]) / 0.25) ** 2)
RESPONSE /= RESPONSE.sum()


@example(QUESTION, (1.3, 0.43, 0.1), (1, 0.2, 0))
def shifted_template(x, scale, shift, offset):
    return scale * np.interp(x - shift, GRID, TEMPLATE) + offset


@example(QUESTION, (1.3, 0.43, 0.1), (1, 0.2, 0), host="asks for the value")
def shifted_spline(x, scale, shift, offset, spline=interpolate.CubicSpline):
    return scale * spline(GRID, TEMPLATE)(x - shift) + offset


@example(QUESTION, (1.3, 0.4), (1, 0), x=X[::2])
def scaled_table(x, scale, offset):
    return scale * interpolate.interp1d(GRID, TEMPLATE)(x) + offset


@example(QUESTION, (2.0, 0.9, 0.1), (1, 0.5, 0))
def decay_through_a_response(t, a, tau, offset):
    return np.convolve(a * np.exp(-t / tau), RESPONSE)[: len(t)] + offset


@example(QUESTION, (0.8, 2.0), (1, 1))
def low_pass_by_fft(t, cutoff, gain):
    spectrum = np.fft.rfft(np.sign(np.sin(2 * t)))
    f = np.fft.rfftfreq(len(t), d=t[1] - t[0])
    return np.fft.irfft(gain * spectrum / (1 + 1j * f / cutoff), n=len(t))


@example(QUESTION, (0.3, 0.5), (0.1, 1))
def running_total(t, rate, growth):
    return np.cumsum(rate * np.exp(growth * t)) * (t[1] - t[0])


@example(QUESTION, (1.5, 2.5, 0.5), (1, 3, 1))
def slope_of_a_step(x, height, center, width):
    step = height / 2 * (1 + np.tanh((x - center) / width))
    return np.gradient(step, x)


@example(QUESTION, (1.5, 0.6), (1, 1), x=X[::2])
def dose_by_trapezoid(x, a, k):
    return np.array(
        [
            np.trapezoid(a * np.exp(-k * s), s)
            for s in (np.linspace(0, t, 30) for t in x)
        ]
    )


# Special functions


@example(QUESTION, (2.0, 3.0, 0.3, 0.2), (1, 2.8, 0.4, 0.3))
def voigt_by_wofz(x, area, center, sigma, gamma):
    z = ((x - center) + 1j * gamma) / (sigma * np.sqrt(2))
    return area * np.real(special.wofz(z)) / (sigma * np.sqrt(2 * np.pi))


@example(TUTORIAL, (2.0, 3.0, 0.3, 0.2), (1, 2.8, 0.4, 0.3))
def voigt_profile(x, area, center, sigma, gamma):
    return area * special.voigt_profile(x - center, sigma, gamma)


@example(QUESTION, (2.0, 1.5, 0.3, 0.8), (1, 1.3, 0.4, 1))
def gaussian_with_a_tail(x, area, mu, sigma, tau):
    z = (sigma / tau - (x - mu) / sigma) / np.sqrt(2)
    tail = np.exp(sigma**2 / (2 * tau**2) - (x - mu) / tau)
    return area / (2 * tau) * tail * special.erfc(z)


@example(QUESTION, (2.0, 3.0, 0.7), (1, 2, 1), noise=0.01)
def gamma_variate(t, area, k, theta):
    return area * t ** (k - 1) * np.exp(-t / theta) / special.gamma(k) / theta**k


@example(TUTORIAL, (1.0, 1.8), (0.8, 1.5), noise=0.01, host="calls jv")
def airy_disc(r, peak, width):
    u = np.pi * r / width
    return peak * (2 * special.jv(1, u) / u) ** 2


@example(TUTORIAL, (2.0, 3.0, 0.6, 0.1), (1, 2, 1, 0))
def logistic_by_expit(x, top, middle, width, bottom):
    return bottom + (top - bottom) * special.expit((x - middle) / width)


@example(QUESTION, (1.5, 2.8, 0.7), (1, 2, 1), host="asks for the value")
def normal_of_stats(x, area, mu, sigma):
    return area * stats.norm.pdf(x, mu, sigma)


# Matrices


@example(QUESTION, (1.0, 3.1, 0.4), (0.8, 2.5, 0.6))
def avoided_crossing(x, slope, center, coupling):
    h = np.zeros((len(x), 2, 2)) + coupling * np.array([[0, 1], [1, 0]])
    energy = slope * (x - center)
    h = h + energy[:, None, None] * np.array([[1, 0], [0, -1]])
    return np.linalg.eigvalsh(h)[:, 1]


@example(QUESTION, (1.0, 0.5), (0.5, 1))
def coupled_springs(x, k1, k2):
    k = np.array([[k1 + k2, -k2], [-k2, k2 + 0.3]])
    force = np.stack([np.sin(x), np.ones_like(x)])
    return np.linalg.solve(k, force)[0]


# Differential equations


@example(QUESTION, (1.4, 0.5), (1, 0.3), x=X[::2], noise=0.005)
def epidemic_by_euler(t, beta, gamma):
    s, i = 0.99, 0.01
    infected = [i]
    for k in range(1, len(t)):
        dt = t[k] - t[k - 1]
        new, gone = beta * s * i * dt, gamma * i * dt
        s, i = s - new, i + new - gone
        infected.append(i)
    return np.array(infected)


@example(QUESTION, (1.4, 0.5), (1.2, 0.4), noise=0.005, host="asks for the value")
def epidemic_by_odeint(t, beta, gamma):
    def rate(y, t, beta, gamma):
        s, i = y
        return [-beta * s * i, beta * s * i - gamma * i]

    return integrate.odeint(rate, [0.95, 0.05], t, args=(beta, gamma))[:, 1]


@example(QUESTION, (2.0, 0.3), (1.5, 0.2), x=X[::2], host="asks for the value")
def oscillator_by_solve_ivp(t, k, c):
    solution = integrate.solve_ivp(
        lambda t, y: [y[1], -k * y[0] - c * y[1]],
        (0, t[-1]), [1, 0], t_eval=t, rtol=1e-8, atol=1e-8,
    )  # fmt: skip
    return solution.y[0]


@example(QUESTION, (1.5, 0.8), (1, 0.5), x=X[::3], host="asks for the value")
@np.vectorize
def integral_by_quad(x, a, b):
    return a * integrate.quad(lambda s: np.exp(-b * s * s), 0, x)[0]


# Numbers of Python's


@example(QUESTION, (1.5, 0.8, 0.2), (1, 1, 0), host="asks for the value")
def exponential_of_math(x, a, b, c):
    return a * x * math.exp(-b) + c * x**2 + math.sqrt(a)


@example(QUESTION, (0.4, 1.0, 0.2), (0.5, 0.5, 0), host="by `if`")
def box_cox_by_if(x, lam, a, b):
    if abs(lam) < 1e-8:
        return a * np.log(x) + b
    return a * (x**lam - 1) / lam + b


@example(QUESTION, (2.0, 1.1, 0.3), (1, 1, 0), host="asks for the value")
def through_float(x, a, b, c):
    rate = float(b)
    return a * (1 - np.exp(-rate * x)) + c


@example(QUESTION, (1.2, 0.7, 2.5), (1, 1, 2), host="calls erf")
def function_of_math(x, a, width, center):
    erf = np.frompyfunc(math.erf, 1, 1)
    return a * erf((x - center) / width).astype(float)


# Objects


class Oscillator:
    """A model with a constant of its own."""

    def __init__(self, frequency):
        self.frequency = frequency

    def __call__(self, t, amplitude, phase, decay):
        return amplitude * np.sin(self.frequency * t + phase) * np.exp(-decay * t)


class Detector:
    """A model that is a method, and keeps an array."""

    def __init__(self, background):
        self.background = background

    def signal(self, x, height, center, scale):
        return height * np.exp(-((x - center) ** 2)) + scale * self.background


def with_baseline(baseline):
    """A model made for one measurement."""

    def model(x, height, rate):
        return height * np.exp(-rate * x) + baseline

    return model


def blackbody(wavelength, temperature, scale):
    """Planck's law in micrometres and thousands of kelvin."""
    lam, kelvin = wavelength * 1e-6, temperature * 1e3
    exponent = constants.h * constants.c / (lam * constants.k * kelvin)
    return (
        scale * 1e-13 * 2 * constants.h * constants.c**2 / lam**5 / np.expm1(exponent)
    )


def stretched(x, a, tau, beta):
    return a * np.exp(-((x / tau) ** beta))


example(QUESTION, (1.2, 0.4, 0.3), (1, 0, 0.1), name="an object that is called")(
    Oscillator(3.0)
)
example(QUESTION, (1.5, 2.5, 0.8), (1, 2, 1), name="a method")(
    Detector(0.2 + 0.1 * np.sqrt(X)).signal
)
example(QUESTION, (1.5, 0.8), (1, 1), name="a closure over data")(
    with_baseline(0.3 + 0.05 * X)
)
example(QUESTION, (2.0, 1.5), (1, 1), name="a partial")(
    functools.partial(stretched, beta=0.7)
)
example(TUTORIAL, (5.8, 1.0), (5, 0.5), np.linspace(0.2, 3, 60), bounds=(0, np.inf))(
    blackbody
)


# Several coordinates, complex values

XX, YY = np.meshgrid(np.linspace(-2, 2, 10), np.linspace(-1.5, 1.5, 8))


@example(QUESTION, (2, 0.3, -0.2, 0.8, 0.6, 0.4), (1, 0, 0, 1, 0.7, 0), (XX, YY))
def gaussian_of_two(xy, height, x0, y0, sx, sy, theta):
    x, y = xy
    u = np.cos(theta) * (x - x0) + np.sin(theta) * (y - y0)
    v = -np.sin(theta) * (x - x0) + np.cos(theta) * (y - y0)
    g = height * np.exp(-0.5 * ((u / sx) ** 2 + (v / sy) ** 2))
    return g.ravel()


@example(QUESTION, (1.5, 0.6, -0.4), (1, 1, 0), np.vstack([X, np.cos(2 * X)]))
def two_predictors(X, a, b, c):
    return a * X[0] ** b + c * X[1]


@example(QUESTION, (0.2, 1.0, 0.5), (0.1, 0.5, 1))
def impedance(omega, r0, r, c):
    z = r0 + 1 / (1 / r + 1j * omega * c)
    return np.hstack([z.real, z.imag])


@example(QUESTION, (3.0, 4.0, 0.9), (2.8, 3, 1))
def resonance_of_magnitude(f, f0, q, a):
    return np.abs(a / (1 + 2j * q * (f - f0) / f0))


# Averages

DRAWS = np.random.default_rng(5).normal(size=200)


@example(QUESTION, (1.5, 0.8, 0.25), (1, 1, 0.1))
def average_over_draws(t, a, k, spread):
    rates = k + spread * DRAWS
    return a * np.exp(-np.outer(t, rates)).mean(axis=1)
