"""What came of a fit: how it ended, and the parameters with their errors."""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxfit._core.certificate import Status
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._points import Observed
from jaxfit.fitting._problem import Method, Problem
from jaxfit.fitting._together import Together
from jaxfit.models import Model


class Parameter(NamedTuple):
    """A parameter, or a quantity derived from parameters, after a fit."""

    name: str
    value: float
    stderr: float  # infinite if the data do not determine it, 0 if it is fixed
    kind: str  # "varied", "fixed", "tied" or "derived"
    at_bound: int = 0  # -1 at its lower bound, 1 at its upper one, else 0
    lower: float = -math.inf
    upper: float = math.inf
    start: float = math.nan
    determined: bool = True  # whether the data say anything about it

    @property
    def is_outside(self) -> bool:
        """Whether it is tied, and that takes it out of its bounds."""
        return self.kind == "tied" and not self.lower <= self.value <= self.upper

    @property
    def undetermined(self) -> bool:
        """Whether the data say nothing about it."""
        return not self.determined


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FittedParameters:
    """What was fitted, how, how it ended, and the parameters.

    Attributes:
        problem: the model, and what became of each parameter.
        observed: the data, and which points count.
        method: loss, options, and what the errors mean.
        numbers: what was computed, as NumPy arrays.
        minima: of several starts, the minima as (cost, how many ended there).
        remarks: sentences about how it came to its end.
        together: of one of many data sets that share parameters, the whole fit.
    """

    problem: Problem
    observed: Observed
    method: Method
    numbers: Numbers
    minima: list[tuple[float, int]] | None = None
    remarks: tuple[str, ...] = ()
    together: Together | None = None

    @property
    def absolute_sigma(self) -> bool:
        """Whether sigma is known."""
        return bool(self.method.absolute)

    @property
    def is_judged(self) -> bool:
        """Whether the data have a likelihood."""
        return self.observed.likelihood is not None

    # How it ended

    @property
    def success(self) -> bool:
        """Whether it ended well: a certificate, see `jaxfit.Solution`."""
        return self.numbers.success

    @property
    def status(self) -> Status:
        """How it ended."""
        return Status(int(self.numbers.status))

    @property
    def message(self) -> str:
        """How it ended, as a sentence."""
        outside = [p for p in self.params.values() if p.is_outside]
        if not outside:
            status = self.status
            return status.message_of_likelihood if self.is_judged else status.message
        texts = [
            f"{p.name} = {p.value:.6g} ({p.lower:g} .. {p.upper:g})" for p in outside
        ]
        return (
            f"The best fit takes what is tied out of its bounds: {listed(texts)}. "
            "Tie it otherwise, or bound what it depends on."
        )

    @property
    def nfev(self) -> int:
        """Evaluations of the model."""
        return int(self.numbers.nfev)

    # Parameters

    @property
    def model(self) -> Model:
        """The model."""
        return self.problem.model

    @functools.cached_property
    def params(self) -> dict[str, Parameter]:
        """The parameters by name."""
        problem, numbers = self.problem, self.numbers
        params = {}
        for k, name in enumerate(problem.names):
            parameter = self._quantity(k, name, "fixed")
            if name in problem.ties:
                lower, upper = problem.model.bounds[name]
                parameter = parameter._replace(kind="tied", lower=lower, upper=upper)
            params[name] = parameter._replace(start=parameter.value)
        for k, name in enumerate(problem.varied):
            parameter = params[name]._replace(
                kind="varied",
                at_bound=int(numbers.active[k]),
                start=float(numbers.start[k]),
            )
            if problem.lower is not None:
                lower, upper = float(problem.lower[k]), float(problem.upper[k])
                parameter = parameter._replace(lower=lower, upper=upper)
            params[name] = parameter
        return params

    @functools.cached_property
    def derived(self) -> dict[str, Parameter]:
        """Derived quantities by name, with propagated errors."""
        names, first = self.problem.derived_names, len(self.problem.names)
        return {
            name: self._quantity(k, name, "derived")
            for k, name in enumerate(names, start=first)
        }

    def _quantity(self, k: int, name: str, kind: str) -> Parameter:
        numbers = self.numbers
        return Parameter(
            name=name,
            value=float(numbers.values[k]),
            stderr=float(numbers.errors[k]),
            kind=kind,
            determined=bool(numbers.determined[k]),
        )

    def __getitem__(self, name: str) -> Parameter:
        """A parameter or a derived quantity by name."""
        quantities = self.params | self.derived
        if name not in quantities:
            raise KeyError(f"{name!r}; there are {', '.join(quantities)}")
        return quantities[name]

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
    def covariance(self) -> Float[np.ndarray, "n n"]:
        """The covariance of the varied parameters, (n, n); see `covariance_kind`."""
        return self.numbers.covariance

    @property
    def covariance_kind(self) -> str:
        """Where the errors come from, in words."""
        if self.method.is_sandwich:
            return "sandwich, from the scatter of the single residuals"
        is_observed = self.method.is_of_rows
        if self.is_judged:
            return f"inverse {'observed' if is_observed else 'expected'} information"
        if is_observed:
            scale = "sigma as given" if self.absolute_sigma else "scaled"
            return f"inverse Hessian of the cost, {scale}"
        if self.absolute_sigma:
            return "inverse Gram matrix, sigma as given"
        return "inverse Gram matrix, scaled to a reduced chi-square of 1"

    @functools.cached_property
    def correlation(self) -> Float[np.ndarray, "n n"]:
        """The correlation of the varied parameters, NaN where an error is infinite."""
        variances = self.covariance.diagonal().tolist()
        root = [math.sqrt(v) if 0 < v < math.inf else math.nan for v in variances]
        correlation = (self.covariance / np.outer(root, root)).clip(-1, 1)
        correlation.flat[:: len(root) + 1] = np.divide(root, root)
        return correlation

    @property
    def correlations(self) -> dict[tuple[str, str], float]:
        """The correlation of each pair of varied parameters, the strongest first."""
        names, matrix = self.varied, self.correlation
        pairs = {
            (names[i], names[j]): float(matrix[i, j])
            for i, j in itertools.combinations(range(len(names)), 2)
        }
        strength = {k: -abs(v) if np.isfinite(v) else 1 for k, v in pairs.items()}
        return {k: pairs[k] for k in sorted(pairs, key=lambda k: strength[k])}


def listed(names: list[str]) -> str:
    """Names, or what else there is of words, as a list in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
