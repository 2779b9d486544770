"""`Fit`: parameters by name, and all that a scientist asks of a fit."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxfit._core.certificate import Status
from jaxfit.fitting._points import Observed
from jaxfit.fitting._problem import Problem
from jaxfit.fitting._programs import Manner
from jaxfit.fitting.inference import _bands, _intervals
from jaxfit.fitting.inference._statistics import Goodness, goodness
from jaxfit.fitting.output import _plot, _report, _save
from jaxfit.models import Model


class Parameter(NamedTuple):
    """A parameter, or a quantity derived from parameters, after a fit."""

    name: str
    value: float
    stderr: float  # infinite if the data do not determine it, 0 if it is fixed
    kind: str  # "varied", "fixed", "tied" or "derived"
    at_bound: int  # -1 at its lower bound, 1 at its upper one, else 0
    lower: float
    upper: float
    start: float
    determined: bool  # whether the data say anything about it

    @property
    def is_outside(self) -> bool:
        """Whether it is tied, and that takes it out of its bounds."""
        return self.kind == "tied" and not self.lower <= self.value <= self.upper

    @property
    def undetermined(self) -> bool:
        """Whether the data say nothing about it."""
        return not self.determined


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """The result of `fit`.

    Attributes:
        problem: the model, and what became of each parameter.
        observed: the data, and which points count.
        manner: loss, options, and what the errors mean.
        numbers: what was computed, as NumPy arrays.
        minima: of several starts, the minima as (cost, how many ended there).
        remarks: sentences about how it came to its end.
    """

    problem: Problem
    observed: Observed
    manner: Manner
    numbers: Mapping[str, Any]
    minima: list[tuple[float, int]] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def absolute_sigma(self) -> bool:
        """Whether sigma is known."""
        return bool(self.manner.absolute)

    # How it ended

    @property
    def success(self) -> bool:
        """Whether it ended well: a certificate, see `jaxfit.Solution`."""
        return self.numbers["status"] > 0

    @property
    def status(self) -> Status:
        """How it ended."""
        return Status(int(self.numbers["status"]))

    @property
    def message(self) -> str:
        """How it ended, as a sentence."""
        outside = [p for p in self.params.values() if p.is_outside]
        return _report.beyond(outside) if outside else self.status.message

    @property
    def nfev(self) -> int:
        """Evaluations of the model."""
        return int(self.numbers["nfev"])

    # Parameters

    @property
    def model(self) -> Model:
        """The model."""
        return self.problem.model

    @functools.cached_property
    def params(self) -> dict[str, Parameter]:
        """The parameters by name."""
        known = self.numbers["determined"].astype(bool).tolist()
        values, errors = (
            self.numbers["values"].tolist(),
            self.numbers["errors"].tolist(),
        )
        varied = {name: k for k, name in enumerate(self.problem.varied)}
        own = self.problem
        found = {}
        for name, value, error, determined in zip(
            *(self.problem.names, values, errors, known), strict=False
        ):
            lower, upper, start, active = -math.inf, math.inf, value, 0
            kind = "fixed" if name in own.fixed else "tied"
            if kind == "tied":
                lower, upper = own.model.bounds[name]
            if name in varied:
                k, kind = varied[name], "varied"
                start = float(self.numbers["start"][k])
                active = int(self.numbers["active"][k])
                if own.lower is not None:
                    lower, upper = float(own.lower[k]), float(own.upper[k])
            found[name] = Parameter(
                name, value, error, kind, active, lower, upper, start, determined
            )
        return found

    @functools.cached_property
    def derived(self) -> dict[str, Parameter]:
        """Derived quantities by name, with propagated errors."""
        count = len(self.problem.names)
        parts = (self.numbers[what][count:] for what in ("values", "errors"))
        known = self.numbers["determined"][count:]
        return {
            name: Parameter(
                *(name, float(value), float(error), "derived", 0),
                *(-np.inf, np.inf, np.nan, bool(determined)),
            )
            for name, value, error, determined in zip(
                *(self.problem.derived_names, *parts, known), strict=True
            )
        }

    def __getitem__(self, name: str) -> Parameter:
        """A parameter or a derived quantity by name."""
        if name in self.params:
            return self.params[name]
        if name in self.derived:
            return self.derived[name]
        known = ", ".join([*self.params, *self.derived])
        raise KeyError(f"{name!r}; there are {known}")

    @property
    def values(self) -> dict[str, float]:
        """The values of the parameters by name."""
        return {name: p.value for name, p in self.params.items()}

    @property
    def errors(self) -> dict[str, float]:
        """Their standard errors by name."""
        return {name: p.stderr for name, p in self.params.items()}

    @property
    def determined(self) -> dict[str, bool]:
        """Whether the data determine them, by name.

        By the rank of the Gram matrix, not by the number of points; what is fixed is
        determined, what is tied where all that it depends on is.
        """
        return {name: p.determined for name, p in self.params.items()}

    @property
    def varied(self) -> tuple[str, ...]:
        """The parameters that varied: the order of `covariance`."""
        return self.problem.varied

    @property
    def covariance(self) -> np.ndarray:
        """The covariance of the varied parameters, (n, n); see `covariance_kind`."""
        return self.numbers["covariance"]

    @property
    def covariance_kind(self) -> str:
        """Where the errors come from, in words."""
        if self.manner.covariance.value == "sandwich":
            return "sandwich, from the scatter of the single residuals"
        if self.absolute_sigma:
            return "inverse Gram matrix, sigma as given"
        return "inverse Gram matrix, scaled to a reduced chi-square of 1"

    @functools.cached_property
    def correlation(self) -> np.ndarray:
        """The correlation of the varied parameters, NaN where an error is infinite."""
        root = np.array(
            [
                math.sqrt(v) if 0 < v < math.inf else math.nan
                for v in self.covariance.diagonal().tolist()
            ]
        )
        found = (self.covariance / (root[:, None] * root)).clip(-1, 1)
        found.flat[:: len(root) + 1] = root / root
        return found

    @property
    def correlations(self) -> dict[tuple[str, str], float]:
        """The correlation of each pair of varied parameters, the strongest first."""
        names, matrix = self.varied, self.correlation
        pairs = {
            (names[i], names[j]): float(matrix[i, j])
            for i in range(len(names))
            for j in range(i + 1, len(names))
        }
        strength = {k: -abs(v) if np.isfinite(v) else 1 for k, v in pairs.items()}
        return {k: pairs[k] for k in sorted(pairs, key=lambda k: strength[k])}

    # The fit as a whole

    @functools.cached_property
    def goodness(self) -> Goodness:
        """Chi-square and what is computed from it."""
        seen = self.observed
        y, best, sigma = seen.counted(seen.data.y, self.numbers["best"], seen.sigma)
        return goodness(
            2 * self.numbers["cost"],
            int(self.numbers["count"]),
            len(self.varied),
            self.absolute_sigma,
            *(y, y - best, sigma),
        )

    @property
    def ndata(self) -> int:
        """Points that count."""
        return self.goodness.ndata

    @property
    def dof(self) -> int:
        """Degrees of freedom: points and priors less varied parameters."""
        return self.goodness.dof

    @property
    def chi_square(self) -> float:
        """Twice the cost: the sum of ((y - model) / sigma)², under the loss."""
        return self.goodness.chi_square

    @property
    def reduced_chi_square(self) -> float:
        """Chi-square for each degree of freedom."""
        return self.goodness.reduced_chi_square

    @property
    def r_squared(self) -> float:
        """The part of the variance of y that the model explains."""
        return self.goodness.r_squared

    @property
    def log_likelihood(self) -> float:
        """Of normal errors: of sigma as given, or at the best scale of it."""
        return self.goodness.log_likelihood

    @property
    def aic(self) -> float:
        """Akaike's criterion, m log(chi²/m) + 2 n, or chi² + 2 n for a known sigma.

        That is -2 log-likelihood + 2 n up to a number that depends on the data alone.
        """
        return self.goodness.aic

    @property
    def aicc(self) -> float:
        """Akaike's criterion for few points (Hurvich and Tsai, Biometrika 76, 1989)."""
        return self.goodness.aicc

    @property
    def bic(self) -> float:
        """The Bayesian criterion: that of Akaike with n log m in place of 2 n."""
        return self.goodness.bic

    # Points

    @property
    def best_fit(self) -> np.ndarray:
        """The model's values at the data, in their shape."""
        return self.numbers["best"].reshape(np.shape(self.observed.data.y))

    @property
    def residuals(self) -> np.ndarray:
        """y - model, in the shape of the data; NaN for points that do not count."""
        y, valid = self.observed.data.y, self.observed.valid
        left = y - self.best_fit
        return left if valid is None else np.where(valid, left, np.nan)

    @property
    def standardized_residuals(self) -> np.ndarray:
        """Residuals over their standard deviation: about 1 in size.

        That is sigma, scaled to a reduced chi-square of 1 unless it is known.
        """
        sigma = self.observed.sigma
        left = self.residuals if sigma is None else self.residuals / sigma
        return left if self.absolute_sigma else left / np.sqrt(self.reduced_chi_square)

    def predict(self, x: PyTree = None) -> np.ndarray:
        """The model's values at other points, or at the data."""
        return self.best_fit if x is None else _bands.band(self, x)[0]

    def confidence_band(self, x: PyTree = None, level: float = 0.95) -> "_bands.Band":
        """Where the curve is, with this probability at each point.

        By the derivative of the model and the covariance, times Student's t.
        """
        return _bands.confidence(self, x, level)

    def prediction_band(self, x: PyTree = None, level: float = 0.95) -> "_bands.Band":
        """Where a further observation falls, with this probability.

        The confidence band with the scatter of single points added, that of sigma = 1
        scaled, or of the data's own sigma where `x` is None.
        """
        return _bands.prediction(self, x, level)

    def components(self, x: PyTree = None) -> dict[str, np.ndarray]:
        """The values of the parts of a sum by their labels."""
        return _bands.components(self, x)

    # Intervals: `_intervals.py`

    intervals = _intervals.intervals
    profile = _intervals.profile
    bootstrap = _intervals.bootstrap
    contour = _intervals.contour

    # For people and for files

    def __str__(self) -> str:
        return _report.short(self)

    def __repr__(self) -> str:
        return _report.one_line(self)

    def _repr_html_(self) -> str:
        return _report.html(self)

    report = _report.long
    warnings = _report.warnings
    to_dict = _save.to_dict
    to_dataframe = _save.to_dataframe
    to_xarray = _save.to_xarray
    save = _save.save

    @staticmethod
    def load(path: Any, model: Any = None, tie: Any = None) -> "Fit":
        """A fit that was saved; see `save`."""
        return _save.load(path, model, tie)

    plot = _plot.fit
    plot_residuals = _plot.residuals
    plot_profile = _plot.profile
    plot_contour = _plot.contour
    plot_corner = _plot.corner
