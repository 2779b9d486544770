"""Counts and magnitudes: `python -m bench.coverage_counts [NUMBER]`.

Spots of a few photons and decays of MR magnitudes are simulated and fitted by maximum
likelihood and by least squares, all from starts that the data show. The tables are in
docs/coverage.md: bias, variance beside the bound of Cramér and Rao, and how often
intervals hold the truth.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from scipy.stats import chi2, norm

import jaxfit
from bench.report import markdown
from jaxfit import losses

NUMBER = 20_000
LEVELS = 0.68, 0.95


class Experiment(NamedTuple):
    """What is measured over and over."""

    name: str
    mean: Callable[[dict], Any]  # what is expected in each row
    truth: dict[str, float]
    likelihood: losses.Likelihood
    start: Callable[[np.ndarray], dict]  # what the data (number, m) show
    lower: dict[str, float]
    upper: dict[str, float]

    def data(self, number: int) -> np.ndarray:
        """Independent data sets (number, m)."""
        means = jnp.broadcast_to(self.mean(self.truth).ravel(), (number, self.rows))
        return np.asarray(self.likelihood.sample(jax.random.key(2026), means))

    @property
    def rows(self) -> int:
        """How many values one data set has."""
        return self.mean(self.truth).size

    def bound(self) -> np.ndarray:
        """The least standard deviations without bias: from the information at truth."""
        names = list(self.truth)
        means = self.mean(self.truth).ravel()
        slopes = jax.jacfwd(lambda p: self.mean(p).ravel())(self.truth)
        jacobian = np.stack([slopes[name] for name in names], axis=1)
        information = np.asarray(self.likelihood.curvature(means, means))
        inverse = np.linalg.inv(jacobian.T @ (information[:, None] * jacobian))
        return np.sqrt(np.diag(inverse))


# Spots


SIDE = 11  # pixels
PIXEL = np.arange(SIDE) - SIDE // 2.0


def in_pixels(center, width):
    """The part of a Gaussian's light that each pixel along an axis receives."""
    low, high = (PIXEL - center - 0.5) / width, (PIXEL - center + 0.5) / width
    return (erf(high / np.sqrt(2)) - erf(low / np.sqrt(2))) / 2


def spot(p):
    """Photons expected in the pixels of a window."""
    rows, columns = in_pixels(p["y"], p["width"]), in_pixels(p["x"], p["width"])
    return p["photons"] * rows[:, None] * columns + p["background"]


def start_of_spot(counts):
    """The background from the rim, photons and their centre from what is above it."""
    images = counts.reshape(-1, SIDE, SIDE)
    is_rim = np.ones((SIDE, SIDE), bool)
    is_rim[2:-2, 2:-2] = False
    background = np.maximum(images[:, is_rim].mean(axis=1), 0.01)
    above = np.where(is_rim, 0, np.maximum(images - background[:, None, None], 0))
    total = np.maximum(above.sum(axis=(1, 2)), 1.0)
    x = np.clip((above * PIXEL).sum(axis=(1, 2)) / total, -2, 2)
    y = np.clip((above * PIXEL[:, None]).sum(axis=(1, 2)) / total, -2, 2)
    width = np.full(len(counts), 1.5)
    return {
        "photons": total,
        "x": x,
        "y": y,
        "width": width,
        "background": background,
    }


def spots(photons, background):
    """A spot between pixels, of a microscope's usual width."""
    return Experiment(
        f"{photons}",
        spot,
        {
            "photons": float(photons),
            "x": 0.2,
            "y": -0.3,
            "width": 1.3,
            "background": background,
        },
        losses.Poisson(),
        start_of_spot,
        {"photons": 0.0, "x": -4.0, "y": -4.0, "width": 0.3, "background": 0.0},
        {"photons": 1e5, "x": 4.0, "y": 4.0, "width": 5.0, "background": 1e3},
    )


SPOTS = tuple(
    spots(*light)
    for light in ((3, 0.02), (10, 0.05), (30, 0.2), (100, 0.5), (300, 1.0))
)


# Decays


ECHOES = 10.0 * np.arange(1, 17)  # ms


def decay(p):
    """The magnitude without noise, and what least squares may put below it."""
    return p["amplitude"] * jnp.exp(-ECHOES / p["T2"]) + p.get("offset", 0.0)


def start_of_decay(magnitudes):
    """The first echo, and the time after which half of it is left."""
    first = magnitudes[:, 0]
    is_low = magnitudes < first[:, None] / 2
    half = np.where(is_low.any(axis=1), ECHOES[is_low.argmax(axis=1)], ECHOES[-1])
    t2 = half / np.log(2)
    return {"amplitude": first * np.exp(ECHOES[0] / t2), "T2": t2.clip(15)}


def decays(snr):
    """A decay whose last echoes are below the noise."""
    return Experiment(
        f"{snr}",
        decay,
        {"amplitude": float(snr), "T2": 60.0},
        losses.Rician(1.0),
        start_of_decay,
        {"amplitude": 0.0, "T2": 10.0},
        {"amplitude": 1e3, "T2": 1e3},
    )


DECAYS = tuple(decays(snr) for snr in (2, 5, 10, 20))


# Ways of fitting


class Way(NamedTuple):
    """How data are fitted, and what is made of the errors."""

    name: str
    is_likelihood: bool
    is_known: bool = True  # whether the rows' errors are
    variance: Callable[[np.ndarray], np.ndarray] | None = None
    offset: bool = False


LIKELIHOOD = Way("maximum likelihood", is_likelihood=True)
OF_COUNTS = (
    LIKELIHOOD,
    Way("unweighted", is_likelihood=False, is_known=False),
    Way("weights 1/max(y, 1)", is_likelihood=False, variance=lambda y: y.clip(1)),
)
OF_MAGNITUDES = (
    LIKELIHOOD,
    Way("least squares", is_likelihood=False),
    Way("least squares with offset", is_likelihood=False, offset=True),
)


class Kept(NamedTuple):
    """What is kept of many fits."""

    x: dict[str, np.ndarray]
    stderr: dict[str, np.ndarray]
    cost: np.ndarray
    status: np.ndarray


def solved(experiment: Experiment, way: Way, y, start, lower, upper) -> Kept:
    """All data sets, fitted."""

    def row(p, observed):
        mean = experiment.mean(p).ravel()
        if way.is_likelihood:
            return jaxfit.Prediction(mean, observed)
        return mean - observed

    def keep(fit):
        return Kept(fit.x, fit.stderr(absolute=way.is_known), fit.cost, fit.status)

    fits = jaxfit.solve_batch(
        row,
        start,
        y,
        bounds=(lower, upper),
        weights=None if way.variance is None else 1 / way.variance(y),
        loss=experiment.likelihood if way.is_likelihood else None,
        keep=keep,
    )
    return jax.tree.map(np.asarray, fits)


class Shown(NamedTuple):
    """What simulations show of one way, by parameter."""

    bias: dict[str, float]  # in standard deviations
    variance: dict[str, float]  # in that of the bound
    wald: dict[str, list[float]]  # per cent, by level
    profile: dict[str, list[float]]
    failed: int
    failed_profiles: int
    lower: int  # how often a profile found a better minimum than the fit


def shown(experiment: Experiment, way: Way, number: int) -> Shown:
    """Fit, and compare with the truth."""
    y, truth = experiment.data(number), experiment.truth
    lower, upper = dict(experiment.lower), dict(experiment.upper)
    start = experiment.start(y)
    if way.offset:
        start["offset"] = np.zeros(number)
        lower["offset"], upper["offset"] = -1e4, 1e4
    fits = solved(experiment, way, y, start, lower, upper)
    good = fits.status > 0
    bias, variance, wald, profile = {}, {}, {}, {}
    failed, is_lower = 0, np.zeros(number, bool)
    for (name, true), least in zip(truth.items(), experiment.bound(), strict=True):
        off, stderr = fits.x[name][good] - true, fits.stderr[name][good]
        bias[name] = off.mean() / off.std()
        variance[name] = off.var() / least**2
        wald[name] = [
            100 * np.mean(np.abs(off) <= norm.ppf((1 + level) / 2) * stderr)
            for level in LEVELS
        ]
        if way.is_likelihood:
            fixed = {**fits.x, name: np.full(number, true)}
            at_truth = {**lower, name: true}, {**upper, name: true}
            held = solved(experiment, way, y, fixed, *at_truth)
            both = good & (held.status > 0)
            failed += int(np.sum(good & ~both))
            rise = 2 * (held.cost - fits.cost)
            is_lower |= both & (rise < -1e-6)
            profile[name] = [
                100 * np.mean(rise[both] <= chi2.ppf(level, 1)) for level in LEVELS
            ]
    lost = int(np.sum(~good)), failed, int(np.sum(is_lower))
    return Shown(bias, variance, wald, profile, *lost)


# Tables


def tables(first: str, experiments, ways, number: int) -> str:
    """Maximum likelihood, and below it the others, as Markdown."""
    percent = [f"{level:.0%}" for level in LEVELS]
    intervals = [f"{kind} {p}" for kind in ("wald", "profile") for p in percent]
    head = first, "parameter", "bias / sd", "variance / bound", *intervals
    of_others = ("bias / sd", "variance / bound", "wald 95%")
    head_of_others = (
        first,
        "parameter",
        *(f"{way.name}: {what}" for way in ways[1:] for what in of_others),
    )
    rows, rows_of_others, lost = [], [], []
    for experiment in experiments:
        likely, *others = [shown(experiment, way, number) for way in ways]
        counts = likely.failed, likely.failed_profiles, likely.lower
        lost.append((experiment.name, *counts, *(other.failed for other in others)))
        for name in experiment.truth:
            shares = *likely.wald[name], *likely.profile[name]
            rows.append(
                (
                    experiment.name,
                    name,
                    f"{likely.bias[name]:+.3f}",
                    f"{likely.variance[name]:.3f}",
                    *(f"{share:.1f}" for share in shares),
                )
            )
            cells = [
                (
                    f"{other.bias[name]:+.2f}",
                    f"{other.variance[name]:.2f}",
                    f"{other.wald[name][1]:.1f}",
                )
                for other in others
            ]
            rows_of_others.append((experiment.name, name, *sum(cells, ())))
    of_likelihood = ways[0].name, "profiles", "better minimum in a profile"
    failures = first, *of_likelihood, *(way.name for way in ways[1:])
    return "\n\n".join(
        (
            markdown(head, rows),
            "Least squares:",
            markdown(head_of_others, rows_of_others),
            "Fits without success:",
            markdown(failures, lost),
        )
    )


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else NUMBER
    print(tables("photons", SPOTS, OF_COUNTS, wanted))
    print()
    print(tables("SNR", DECAYS, OF_MAGNITUDES, wanted))
