"""The bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, 9)."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxfit.fitting._programs import Axes, Case, for_solver
from jaxfit.fitting._run import run_fits

if TYPE_CHECKING:
    from jaxfit.fitting._result import Fit

NUMBERS = 2**22  # of the samples in memory
KINDS = "residual", "case", "parametric"


class Bootstrap(NamedTuple):
    """Refits of resampled data."""

    resample: str
    names: tuple[str, ...]  # all parameters, then derived quantities
    values: np.ndarray  # (number, names)
    status: np.ndarray  # (number,)

    @property
    def stderr(self) -> dict[str, float]:
        """The scatter of the refits that ended well, by name."""
        spread = np.std(self.values[self.status > 0], axis=0, ddof=1)
        return dict(zip(self.names, map(float, spread), strict=True))

    def __getitem__(self, name):
        """The refits' values of one parameter, by its name."""
        if isinstance(name, str):
            return self.values[:, self.names.index(name)]
        return tuple(self)[name]


def run(fit: "Fit", number: int, resample: str, seed: int) -> Bootstrap:
    """See `Fit.bootstrap`."""
    if resample not in KINDS:
        raise ValueError(f"resample is {resample!r}; give one of {', '.join(KINDS)}.")
    if not (isinstance(number, int) and number >= 2):
        raise ValueError(f"number is {number!r}; give at least 2.")
    if fit.problem.prior:
        raise ValueError(
            "A bootstrap draws data anew, and a prior is none. Use intervals by "
            "profile likelihood for a fit with priors."
        )
    if fit.dof <= 0 and resample != "case":
        raise ValueError("No degree of freedom is left: there are no residuals.")
    x = for_solver(fit.numbers, "x")
    manner = fit.manner._replace(absolute=np.bool_(True))
    random = np.random.default_rng(seed)
    values, status = [], []
    for begin in range(0, number, size := _at_a_time(fit)):
        count = min(size, number - begin)
        cases, axes = _samples(fit, resample, random, count)
        starts = np.broadcast_to(x, (count, len(x)))
        found = run_fits(fit.problem, cases, axes, starts, manner)
        values.append(found["values"])
        status.append(found["status"])
    names = fit.problem.names + fit.problem.derived_names
    return Bootstrap(resample, names, np.concatenate(values), np.concatenate(status))


def _at_a_time(fit: "Fit") -> int:
    """Samples that are in memory."""
    return max(1, NUMBERS // max(np.size(fit.observed.data.y), 1))


def _samples(
    fit: "Fit", resample: str, random: np.random.Generator, number: int
) -> tuple[Case, Axes]:
    """The data of samples: points drawn anew, or the model with noise."""
    seen = fit.observed
    y, sigma = seen.data.y, seen.sigma
    index = np.arange(y.size) if seen.valid is None else np.flatnonzero(seen.valid)
    case = Case(seen.data, seen.valid, {})
    if resample == "case":
        drawn = random.integers(0, len(index), (number, len(index)))
        counts = np.zeros((number, y.size))
        np.add.at(counts, (np.arange(number)[:, None], index[drawn]), 1)
        weights = counts.reshape(number, *y.shape)
        return case._replace(valid=weights), Axes(None, 0, shared=True)
    unit = 1.0 if sigma is None else sigma.ravel()[index]
    best = np.ravel(fit.best_fit)[index]
    if resample == "parametric":
        scale = 1.0 if fit.absolute_sigma else np.sqrt(fit.reduced_chi_square)
        noise = scale * random.normal(size=(number, len(index)))
    else:
        left = (y.ravel()[index] - best) / unit
        left = (left - left.mean()) * np.sqrt(len(index) / max(fit.dof, 1))
        noise = left[random.integers(0, len(index), (number, len(index)))]
    drawn = np.broadcast_to(y.ravel(), (number, y.size)).copy()
    drawn[:, index] = best + unit * noise
    data = seen.data._replace(y=drawn.reshape(number, *y.shape))
    return case._replace(data=data), Axes(None, None)
