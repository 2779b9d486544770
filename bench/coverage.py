"""How often intervals hold the truth: `python -m bench.coverage [NUMBER]`.

Data sets are simulated, and each is fitted from the model's own guess; its intervals
come from `Fit.intervals` of each kind. The tables are those of docs/coverage.md: of
errors in y, and of errors in x and y.
"""

import sys
from typing import NamedTuple

import numpy as np

import jaxfit
from bench.report import markdown
from jaxfit import models

NUMBER, REFITS = 5000, 1000
LEVELS = 0.68, 0.95
KINDS = "wald", "profile", "bootstrap"


class Experiment(NamedTuple):
    """What is measured over and over."""

    name: str
    model: models.Model
    x: np.ndarray
    truth: dict[str, float]
    noise: float

    def data(self, number: int) -> np.ndarray:
        """Independent data sets (number, m), with normal errors."""
        generator = np.random.default_rng(2026)
        exact = np.asarray(self.model(self.x, self.truth))
        return exact + self.noise * generator.normal(size=(number, exact.size))


EXPERIMENTS = (
    Experiment(
        "decay to a ground",
        models.Exponential() + models.Constant(),
        np.linspace(0, 4, 25),
        {"amplitude": 5.0, "rate": 1.2, "c": 1.0},
        0.3,
    ),
    Experiment(
        "peak on a line",
        models.Gaussian() + models.Linear(),
        np.linspace(0, 10, 40),
        {"height": 3.0, "center": 4.6, "width": 0.7, "slope": 0.1, "intercept": 1.0},
        0.4,
    ),
    Experiment(
        "enzyme kinetics",
        models.MichaelisMenten(),
        np.array([0.1, 0.2, 0.4, 0.7, 1.2, 2.0] * 2),
        {"maximum": 10.0, "constant": 1.5},
        0.5,
    ),
)


def covered(experiment: Experiment, number: int):
    """Which intervals hold the truth, by kind (number, levels, n); NaN: no fit."""
    truth = np.array(list(experiment.truth.values()))
    shape = number, len(LEVELS), len(truth)
    found = {kind: np.full(shape, np.nan) for kind in KINDS}
    for k, y in enumerate(experiment.data(number)):
        try:
            fit = jaxfit.fit(experiment.model, experiment.x, y)
        except jaxfit.FitError:
            continue
        for kind in KINDS:
            more = {"number": REFITS, "seed": k} if kind == "bootstrap" else {}
            ends = fit.intervals(kind, LEVELS, **more)
            places = [ends.names.index(name) for name in experiment.truth]
            low, high = ends.lower[places].T, ends.upper[places].T
            found[kind][k] = (low <= truth) & (truth <= high)
    return found


def table(number: int) -> str:
    """The coverage of every kind, level and parameter as Markdown, in per cent."""
    head = "model", "parameter", *(f"{k} {p:.0%}" for k in KINDS for p in LEVELS)
    rows, lost = [], {}
    for experiment in EXPERIMENTS:
        found = covered(experiment, number)
        share = {kind: np.nanmean(held, axis=0) for kind, held in found.items()}
        lost[experiment.name] = int(np.isnan(found["wald"][:, 0, 0]).sum())
        for j, name in enumerate(experiment.truth):
            parts = [100 * share[kind][i, j] for kind in KINDS for i in range(2)]
            rows.append((experiment.name, name, *(f"{part:.1f}" for part in parts)))
    words = ", ".join(f"{name} {count}" for name, count in lost.items())
    return markdown(head, rows) + f"\n\nFits without success: {words}."


# Errors in x and y


class InBoth(NamedTuple):
    """What is measured over and over, with errors in both."""

    name: str
    model: models.Model
    x: np.ndarray
    truth: dict[str, float]
    sigma: float
    sigma_x: float

    def data(self, number: int):
        """Independent data sets x and y (number, m), with normal errors."""
        generator = np.random.default_rng(2026)
        exact = np.asarray(self.model(self.x, self.truth))
        along_x, along_y = generator.normal(size=(2, number, exact.size))
        return self.x + self.sigma_x * along_x, exact + self.sigma * along_y


IN_BOTH = (
    InBoth(
        "straight line",
        models.Linear(),
        np.linspace(0, 10, 20),
        {"slope": 0.8, "intercept": 1.0},
        0.4,
        0.4,
    ),
    InBoth(
        "decay",
        models.Exponential(),
        np.linspace(0, 4, 25),
        {"amplitude": 5.0, "rate": 1.2},
        0.15,
        0.1,
    ),
    InBoth(
        "decay, few and rough",
        models.Exponential(),
        np.linspace(0, 2, 8),
        {"amplitude": 5.0, "rate": 1.2},
        0.3,
        0.15,
    ),
)
WAYS = {  # kind of interval, and whether the errors are known
    "wald": ("wald", False),
    "wald, known": ("wald", True),
    "profile": ("profile", False),
    "without sigma_x": ("wald", False),
}


def covered_in_both(experiment: InBoth, number: int):
    """`covered`, by way; the last of them fits as if x were exact."""
    truth = np.array(list(experiment.truth.values()))
    found = {way: np.full((number, len(LEVELS), len(truth)), np.nan) for way in WAYS}
    for k, (x, y) in enumerate(zip(*experiment.data(number), strict=True)):
        for way, (kind, is_known) in WAYS.items():
            sigma_x = None if way == "without sigma_x" else experiment.sigma_x
            try:
                fit = jaxfit.fit(
                    experiment.model,
                    x,
                    y,
                    sigma=experiment.sigma,
                    sigma_x=sigma_x,
                    absolute_sigma=is_known,
                )
            except jaxfit.FitError:
                continue
            ends = fit.intervals(kind, LEVELS)
            places = [ends.names.index(name) for name in experiment.truth]
            low, high = ends.lower[places].T, ends.upper[places].T
            found[way][k] = (low <= truth) & (truth <= high)
    return found


def table_in_both(number: int) -> str:
    """The coverage with errors in x and y as Markdown, in per cent."""
    head = "data", "parameter", *(f"{way} {p:.0%}" for way in WAYS for p in LEVELS)
    rows, lost = [], {}
    for experiment in IN_BOTH:
        found = covered_in_both(experiment, number)
        lost[experiment.name] = int(np.isnan(found["wald"][:, 0, 0]).sum())
        for j, name in enumerate(experiment.truth):
            shares = [100 * np.nanmean(found[w][:, i, j]) for w in WAYS for i in (0, 1)]
            rows.append((experiment.name, name, *(f"{share:.1f}" for share in shares)))
    words = ", ".join(f"{name} {count}" for name, count in lost.items())
    return markdown(head, rows) + f"\n\nFits without success: {words}."


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else NUMBER
    print(table(wanted), table_in_both(wanted), sep="\n\n")
