"""Ten small problems of likelihoods, and their minima and errors by NumPy and SciPy.

Each model is written once for NumPy and JAX. Minus the log-likelihood stands here in
NumPy's words, as a function that takes complex means too, so that its gradient comes
from a complex step, exact to rounding; its values are held against `scipy.stats`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

from jaxfit import Prediction, losses

STEP = 1e-30  # of complex steps
T = np.linspace(0.0, 6.0, 64)


class OnlyCost(losses.Likelihood):
    """Counts more scattered than Poisson's, by their cost alone: negative binomial."""

    size: Any = 3.0

    def cost(self, mean, observed):
        y = jnp.asarray(observed, mean.dtype)
        size = jnp.asarray(self.size, mean.dtype)
        return (y + size) * jnp.log(mean + size) - y * jnp.log(mean)


class Problem(NamedTuple):
    """A model, what was observed, and what NumPy knows of its likelihood."""

    mean: Callable  # (numpy or jax.numpy, x, t) -> means
    t: Any
    observed: np.ndarray
    x0: np.ndarray
    likelihood: losses.Likelihood
    cost: Callable  # (mean, observed) of each row, for complex means too
    minus_log: Callable  # (mean, observed) by scipy.stats
    information: Callable  # mean -> of each row
    bounds: tuple | None = None

    @property
    def data(self):
        """What `fn` takes."""
        return self.t, self.observed

    @property
    def box(self):
        """Bounds as two vectors."""
        lower, upper = self.bounds or (-np.inf, np.inf)
        return np.broadcast_to(lower, len(self.x0)), np.broadcast_to(
            upper, len(self.x0)
        )

    def fn(self):
        """What `solve` takes, a function of (x, data)."""
        mean = self.mean

        def predicted(x, data):
            t, observed = data
            return Prediction(mean(jnp, x, t), observed)

        return predicted

    def total(self, x):
        """The cost of all rows."""
        return np.sum(self.cost(self.mean(np, x, self.t), self.observed))

    def gradient(self, x):
        """By complex steps."""
        steps = 1j * STEP * np.eye(len(x))
        return np.array([self.total(x + step).imag / STEP for step in steps])

    def hessian(self, x, scale):
        """Differences of gradients, with steps of so much."""
        columns = [
            (self.gradient(x + step) - self.gradient(x - step)) / (2 * np.sum(step))
            for step in np.diag(1e-4 * scale)
        ]
        return (np.array(columns) + np.array(columns).T) / 2

    def jacobian(self, x):
        """Of the means, by complex steps."""
        steps = 1j * STEP * np.eye(len(x))
        means = [self.mean(np, x + step, self.t).imag / STEP for step in steps]
        return np.stack([mean.ravel() for mean in means], axis=1)

    def errors(self, x, free=slice(None)):
        """Roots of the diagonal of the inverse of the expected information."""
        jac = self.jacobian(x)[:, free]
        weights = np.broadcast_to(
            self.information(self.mean(np, x, self.t)), self.observed.shape
        ).ravel()
        return np.sqrt(np.diag(np.linalg.inv(jac.T @ (weights[:, None] * jac))))

    def minimum(self):
        """By SciPy from the start, and Newton's steps of what is free at the end."""
        with np.errstate(all="ignore"):
            box = scipy.optimize.Bounds(*self.box)

            def total(x):
                value = np.real(self.total(x))
                return value if np.isfinite(value) else 1e30

            x = scipy.optimize.minimize(
                total, self.x0, jac=self.gradient, bounds=box, method="L-BFGS-B"
            ).x
            held = (x <= self.box[0]) | (x >= self.box[1])
            for _ in range(8):
                scale, free = np.abs(x) + 1e-3 * (x == 0), np.flatnonzero(~held)
                inner = self._at(x, free)
                step = np.linalg.solve(
                    inner.hessian(x[free], scale[free]), inner.gradient(x[free])
                )
                x[free] -= step
        return x

    def _at(self, x, free):
        """The same problem in its free parameters."""

        def mean(xp, part, t):
            whole = np.array(x, part.dtype)
            whole[free] = part
            return self.mean(xp, whole, t)

        return self._replace(mean=mean)


# Models


def peak(xp, x, t):
    return x[0] * xp.exp(-0.5 * ((t - x[1]) / x[2]) ** 2) + x[3]


def decay(xp, x, t):
    return x[0] * xp.exp(-t / x[1]) + x[2]


def pure_decay(xp, x, t):
    return x[0] * xp.exp(-t / x[1])


def line(xp, x, t):
    return x[0] + x[1] * t


def spot(xp, x, t):
    square = (t[0] - x[1]) ** 2 + (t[1] - x[2]) ** 2
    return x[0] * xp.exp(-0.5 * square / x[3] ** 2) + x[4]


def two_peaks(xp, x, t):
    first = x[0] * xp.exp(-0.5 * ((t - x[1]) / 0.5) ** 2)
    return first + x[2] * xp.exp(-0.5 * ((t - x[3]) / 0.5) ** 2) + x[4]


def response(xp, x, t):
    """Successes of trials (t[1]) at the logarithm of a dose (t[0])."""
    return t[1] / (1 + xp.exp(-x[1] * (t[0] - x[0])))


# Minus the logarithms of likelihoods


def of_poisson(mean, observed):
    return mean - scipy.special.xlogy(observed, mean)


def by_poisson(mean, observed):
    return -scipy.stats.poisson.logpmf(observed, mean)


def _camera(variance):
    def cost(mean, observed):
        return of_poisson(mean + variance, observed + variance)

    def by_gamma_function(mean, observed):
        y, shifted = observed + variance, mean + variance
        return shifted - y * np.log(shifted) + scipy.special.gammaln(y + 1)

    return cost, by_gamma_function


def of_gamma(mean, observed):
    return SHAPE * (observed / mean + np.log(mean))


def by_gamma(mean, observed):
    return -scipy.stats.gamma.logpdf(observed, SHAPE, scale=mean / SHAPE)


def of_rice(mean, observed):
    z = observed * mean / SIGMA**2
    ratio = scipy.special.i1e(np.real(z)) / scipy.special.i0e(np.real(z))
    log_bessel = np.log(scipy.special.i0e(np.real(z))) + z
    log_bessel = log_bessel + 1j * np.imag(z) * (ratio - 1)  # exact for a complex step
    return mean**2 / (2 * SIGMA**2) - log_bessel


def by_rice(mean, observed):
    return -scipy.stats.rice.logpdf(observed, mean / SIGMA, scale=SIGMA)


def _squared_score_of_rice(a):
    """The expectation of (a - m I₁/I₀)², by quadrature over the density."""

    def integrand(m):
        z = m * a
        ratio = scipy.special.i1e(z) / scipy.special.i0e(z)
        density = m * np.exp(-0.5 * (m - a) ** 2) * scipy.special.i0e(z)
        return density * (m * ratio - a) ** 2

    return scipy.integrate.quad(
        integrand, max(0, a - 12), a + 12, epsabs=1e-12, epsrel=1e-11, limit=400
    )[0]


def information_of_rice(mean):
    return np.array([_squared_score_of_rice(a) for a in mean / SIGMA]) / SIGMA**2


def of_student(mean, observed):
    z = (mean - observed) / SCALE
    return (DF + 1) / 2 * np.log1p(z**2 / DF)


def by_student(mean, observed):
    return -scipy.stats.t.logpdf(observed, DF, mean, SCALE)


def of_negative(mean, observed):
    return (observed + SIZE) * np.log(mean + SIZE) - observed * np.log(mean)


def by_negative(mean, observed):
    return -scipy.stats.nbinom.logpmf(observed, SIZE, SIZE / (SIZE + mean))


SHAPE, SIGMA, SCALE, DF, SIZE = 4.0, 1.0, 0.3, 2.5, 3.0
POSITIVE = np.array([0.0, 0.1, 0.0]), np.full(3, np.inf)  # of decays


def _poisson(mean, truth, x0, seed, bounds=None, t=T):
    observed = np.random.default_rng(seed).poisson(mean(np, np.array(truth), t))
    return Problem(
        mean=mean,
        t=t,
        observed=observed.astype(float),
        x0=np.array(x0),
        likelihood=losses.Poisson(),
        cost=of_poisson,
        minus_log=by_poisson,
        information=lambda mean: 1 / mean,
        bounds=bounds,
    )


def _gamma():
    clean = line(np, [1.0, 0.5], T)
    noise = np.random.default_rng(3).gamma(SHAPE, 1 / SHAPE, T.size)
    return Problem(
        mean=line,
        t=T,
        observed=clean * noise,
        x0=np.array([2.0, 0.1]),
        likelihood=losses.Gamma(SHAPE),
        cost=of_gamma,
        minus_log=by_gamma,
        information=lambda mean: SHAPE / mean**2,
    )


def _binomial():
    trials = 1.0 + np.arange(T.size) % 9
    t = (T, trials)
    clean = response(np, [2.5, 2.0], t)
    rng = np.random.default_rng(4)
    observed = rng.binomial(trials.astype(int), clean / trials).astype(float)
    assert np.sum(observed == 0) > 5
    assert np.sum(observed == trials) > 5

    def cost(mean, observed):
        failed = scipy.special.xlogy(trials - observed, trials - mean)
        return -scipy.special.xlogy(observed, mean) - failed

    return Problem(
        mean=response,
        t=t,
        observed=observed,
        x0=np.array([3.0, 1.0]),
        likelihood=losses.Binomial(trials),
        cost=cost,
        minus_log=lambda mean, k: -scipy.stats.binom.logpmf(k, trials, mean / trials),
        information=lambda mean: trials / (mean * (trials - mean)),
    )


def _rice():
    clean = pure_decay(np, [12.0, 1.8], T[:32])
    noise = np.random.default_rng(5).normal(size=(2, 32))
    return Problem(
        mean=pure_decay,
        t=T[:32],
        observed=np.hypot(clean + noise[0], noise[1]),
        x0=np.array([8.0, 3.0]),
        likelihood=losses.Rician(SIGMA),
        cost=of_rice,
        minus_log=by_rice,
        information=information_of_rice,
    )


def _camera_spot():
    grid = tuple(np.mgrid[:9, :9].astype(float))
    rng = np.random.default_rng(6)
    variance = rng.uniform(0.5, 6.0, (9, 9))
    clean = spot(np, [20.0, 4.2, 3.7, 1.3, 2.0], grid)
    observed = rng.poisson(clean) + np.sqrt(variance) * rng.normal(size=(9, 9))
    observed = np.maximum(observed, 0.01 - variance)
    cost, minus_log = _camera(variance)
    return Problem(
        mean=spot,
        t=grid,
        observed=observed,
        x0=np.array([12.0, 4.0, 4.0, 1.0, 1.0]),
        likelihood=losses.PoissonGaussian(variance),
        cost=cost,
        minus_log=minus_log,
        information=lambda mean: 1 / (mean + variance),
    )


def _student():
    rng = np.random.default_rng(7)
    return Problem(
        mean=line,
        t=T,
        observed=line(np, [1.0, 0.5], T) + SCALE * rng.standard_t(DF, T.size),
        x0=np.array([2.0, 0.1]),
        likelihood=losses.StudentT(SCALE, DF),
        cost=of_student,
        minus_log=by_student,
        information=lambda mean: (DF + 1) / ((DF + 3) * SCALE**2),
    )


def _negative():
    clean = decay(np, np.array([30.0, 1.5, 1.0]), T)
    rng = np.random.default_rng(8)
    return Problem(
        mean=decay,
        t=T,
        observed=rng.negative_binomial(SIZE, SIZE / (SIZE + clean)).astype(float),
        x0=np.array([20.0, 2.0, 2.0]),
        likelihood=OnlyCost(SIZE),
        cost=of_negative,
        minus_log=by_negative,
        information=lambda mean: SIZE / (mean * (mean + SIZE)),
        bounds=POSITIVE,
    )


PROBLEMS = {
    "peak": _poisson(peak, [4.0, 3.0, 0.5, 0.2], [2.0, 2.7, 0.7, 0.5], 0),
    "lifetime": _poisson(decay, [6.0, 1.2, 0.1], [3.0, 2.0, 0.3], 1, POSITIVE),
    "intensities": _gamma(),
    "doses": _binomial(),
    "magnitudes": _rice(),
    "camera": _camera_spot(),
    "tails": _student(),
    "two peaks": _poisson(
        two_peaks,
        [5.0, 2.0, 3.0, 3.6, 0.3],
        [3.0, 1.8, 3.0, 3.9, 0.5],
        2,
        (0, np.inf),
    ),
    "no background": _poisson(decay, [8.0, 0.9, 0.0], [5.0, 2.0, 0.5], 21, POSITIVE),
    "own": _negative(),
}
