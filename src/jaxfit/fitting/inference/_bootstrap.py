"""The bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, 9)."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxfit.fitting._likelihood import sampled
from jaxfit.fitting._points import Axes, DataSet
from jaxfit.fitting._record import Record
from jaxfit.fitting._run import numbers_from
from jaxfit.fitting._together import check_alone

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
        scatter = np.std(self.values[self.status > 0], axis=0, ddof=1)
        return dict(zip(self.names, map(float, scatter), strict=True))

    def __getitem__(self, name: Any) -> Any:
        """The refits' values of one parameter, by its name."""
        if isinstance(name, str):
            return self.values[:, self.names.index(name)]
        return tuple(self)[name]


class _Samples(NamedTuple):
    """Data sets that were drawn."""

    data_sets: DataSet
    axes: Axes


def bootstrap(
    record: Record, number: int = 2000, resample: str | None = None, seed: int = 0
) -> Bootstrap:
    """Refits of resampled data, see `Fit.bootstrap`."""
    if resample is None:
        resample = "parametric" if record.is_judged else "residual"
    if resample not in KINDS:
        raise ValueError(f"resample is {resample!r}; give one of {', '.join(KINDS)}.")
    if not (isinstance(number, int) and number >= 2):
        raise ValueError(f"number is {number!r}; give at least 2.")
    check_alone(record.together, "A bootstrap")
    problem = record.problem
    if problem.prior:
        raise ValueError(
            "A bootstrap draws data anew, and a prior is none. Use intervals by "
            "profile likelihood for a fit with priors."
        )
    if record.dof <= 0 and resample != "case":
        raise ValueError("No degree of freedom is left: there are no residuals.")
    if record.observed.is_correlated and resample == "case":
        raise ValueError(
            "resample='case' draws points by themselves, and these have a covariance. "
            "Give 'residual' or 'parametric', which keep it."
        )
    if record.is_judged and resample == "residual":
        raise ValueError(
            "resample='residual' draws residuals that are alike, and those of a "
            "likelihood are not. Give 'parametric', which draws from the likelihood, "
            "or 'case'."
        )
    if record.has_errors_in_x and resample != "case":
        raise ValueError(
            f"resample={resample!r} draws y, and this fit has errors in x too. Give "
            "'case', which draws points with both."
        )
    x = record.numbers.at_solver.x
    method = record.method._replace(absolute=np.bool_(True))
    random = np.random.default_rng(seed)
    at_a_time = max(1, NUMBERS // max(np.size(record.observed.data.y), 1))
    values, status = [], []
    for begin in range(0, number, at_a_time):
        count = min(at_a_time, number - begin)
        samples = _samples(record, resample, random, count)
        starts = np.broadcast_to(x, (count, len(x)))
        numbers = numbers_from(problem, samples.data_sets, samples.axes, starts, method)
        values.append(numbers.values)
        status.append(numbers.status)
    return Bootstrap(
        resample=resample,
        names=problem.names + problem.derived_names,
        values=np.concatenate(values),
        status=np.concatenate(status),
    )


def _samples(
    record: Record, resample: str, random: np.random.Generator, number: int
) -> _Samples:
    """The data of samples: points drawn anew, or the model with noise."""
    observed = record.observed
    y = observed.data.y
    valid = np.ones(y.shape, bool) if observed.valid is None else observed.valid
    data_set = observed.data_set
    if resample == "case":
        shape = y.shape[:-1] if observed.is_complex else y.shape
        index = np.flatnonzero(valid[..., 0] if observed.is_complex else valid)
        drawn = random.integers(0, len(index), (number, len(index)))
        counts = np.zeros((number, math.prod(shape)))
        np.add.at(counts, (np.arange(number)[:, None], index[drawn]), 1)
        weights = observed.of_each(counts.reshape(number, *shape))
        return _Samples(data_set._replace(valid=weights), Axes(valid=0, shared=True))
    drawn = np.broadcast_to(y.ravel(), (number, y.size)).copy()
    best = observed.counted(record.numbers.best)
    if record.is_judged:
        values = sampled(observed, best, number, int(random.integers(2**31)))
    else:
        draw = _normal_noise if resample == "parametric" else _drawn_residuals
        values = best + draw(record, random, number)
    drawn[:, np.flatnonzero(valid)] = values
    data = observed.data._replace(y=drawn.reshape(number, *y.shape))
    return _Samples(data_set._replace(data=data), Axes())


def _normal_noise(
    record: Record, random: np.random.Generator, number: int
) -> Float[np.ndarray, "number m"]:
    scale = 1.0 if record.absolute_sigma else np.sqrt(record.reduced_chi_square)
    points = record.observed.counted(record.numbers.best).size
    noise = scale * random.normal(size=(number, points))
    return record.observed.scattered(noise)


def _drawn_residuals(
    record: Record, random: np.random.Generator, number: int
) -> Float[np.ndarray, "number m"]:
    """Residuals drawn among all, as large as the errors are."""
    observed = record.observed
    residuals = observed.counted(record.in_errors)
    points = residuals.size
    residuals = residuals - residuals.mean()
    residuals = residuals * np.sqrt(points / max(record.dof, 1))
    return observed.scattered(residuals[random.integers(0, points, (number, points))])
