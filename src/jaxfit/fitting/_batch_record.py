"""What many fits give: their numbers as arrays of the data's leading dimensions."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from jaxfit.fitting._dates import Dates
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._problem import Problem
from jaxfit.fitting._together import Together
from jaxfit.models import Model

Map = Float[np.ndarray, "..."]
IntegerMap = Int[np.ndarray, "..."]
BooleanMap = Bool[np.ndarray, "..."]
Values = Any  # a map, or one number of what all data sets share


class Labels(NamedTuple):
    """What the leading dimensions of the data are called."""

    dims: tuple[Any, ...]
    coords: Mapping[Any, Any]
    name: Any = None  # of the data


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BatchRecord:
    """Many data sets, how they were fitted, and what came of it.

    Attributes:
        problem: the model, and what became of each parameter.
        x, y: the data.
        settings: the keywords of `fit` that were given, and sigma.
        numbers: what was computed, with one leading axis.
        shape: the leading dimensions.
        labels: what those are called, of a DataArray.
        dates: what x counts, if it had dates.
        together: the whole of the fit, where parameters are shared.
    """

    problem: Problem
    x: PyTree
    y: np.ndarray
    settings: Mapping[str, Any]
    numbers: Numbers
    shape: tuple[int, ...]
    labels: Labels | None = None
    dates: Dates | None = None
    together: Together | None = None

    @property
    def model(self) -> Model:
        """The model."""
        return self.problem.model

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, in order."""
        return self.problem.names

    @functools.cached_property
    def values(self) -> dict[str, Values]:
        """The values of the parameters by name; NaN where they are not determined.

        Maps, and single numbers of what is shared; so in all that follows.
        """
        return self._of_parameters(self._determined_values)

    @functools.cached_property
    def determined(self) -> dict[str, Values]:
        """Where the data determine a parameter, by name: see `Fit.determined`."""
        return self._of_parameters(self.numbers.determined)

    @functools.cached_property
    def errors(self) -> dict[str, Values]:
        """Their standard errors by name; infinite where undetermined."""
        return self._of_parameters(self.numbers.errors)

    @functools.cached_property
    def derived(self) -> dict[str, Values]:
        """Derived quantities by name; NaN where they are not determined."""
        return self._of_derived(self._determined_values)

    @functools.cached_property
    def derived_errors(self) -> dict[str, Values]:
        """Their standard errors by name."""
        return self._of_derived(self.numbers.errors)

    @property
    def at_bound(self) -> dict[str, Values]:
        """For each varied parameter -1 at its lower bound, 1 at its upper one, or 0."""
        return self._named(self.problem.varied, self.numbers.active)

    @property
    def covariance(self) -> Float[np.ndarray, "... n n"]:
        """The covariances of the varied parameters, (..., n, n)."""
        n = len(self.problem.varied)
        return self.numbers.covariance.reshape(*self.shape, n, n)

    @property
    def status(self) -> IntegerMap:
        """Numbers of `jaxfit.Status`."""
        return self.numbers.status.reshape(self.shape)

    @property
    def success(self) -> BooleanMap:
        """Which fits ended well: a certificate, see `jaxfit.Solution`."""
        return self.status > 0

    @property
    def nfev(self) -> IntegerMap:
        """Evaluations of the model."""
        return self.numbers.nfev.reshape(self.shape)

    @property
    def count(self) -> IntegerMap:
        """Points that count, and priors; those of what is shared stand nowhere."""
        return self.numbers.count.reshape(self.shape)

    @property
    def chi_square(self) -> Map:
        """Twice the costs: the part of each data set where they share parameters.

        With a likelihood the deviances, see `Fit.deviance`.
        """
        return 2 * self.numbers.cost.reshape(self.shape)

    @property
    def dof(self) -> Values:
        """Degrees of freedom; one number of all where parameters are shared."""
        if self.together is not None:
            return self.together.dof
        return self.count - len(self.problem.varied)

    @property
    def reduced_chi_square(self) -> Values:
        """Chi-square for each degree of freedom; likewise."""
        if self.together is not None:
            return self.together.reduced_chi_square
        dof = self.dof
        return np.where(dof > 0, self.chi_square / np.where(dof > 0, dof, 1), np.nan)

    def __getitem__(self, name: str) -> Values:
        """The values of a parameter or a derived quantity: a map, or one if shared."""
        maps = self.values | self.derived
        if name not in maps:
            raise KeyError(f"{name!r}; there are {', '.join(maps)}")
        return maps[name]

    @property
    def _determined_values(self) -> Float[np.ndarray, "N k"]:
        return np.where(self.numbers.determined, self.numbers.values, np.nan)

    @property
    def single(self) -> tuple[str, ...]:
        """The quantities that have one value for all data sets, which is shared."""
        return () if self.together is None else self.together.single

    def _of_parameters(self, columns: np.ndarray) -> dict[str, Any]:
        return self._named(self.names, columns)

    def _of_derived(self, columns: np.ndarray) -> dict[str, Any]:
        return self._named(self.problem.derived_names, columns[:, len(self.names) :])

    def _named(self, names: tuple[str, ...], columns: np.ndarray) -> dict[str, Any]:
        """The first columns of an array by name: as maps, or one number if shared."""

        def quantity(column: np.ndarray, name: str) -> Any:
            if self.together is not None and name in self.together.single:
                return column[self.together.row].item()
            return column.reshape(self.shape)

        return {name: quantity(columns[:, k], name) for k, name in enumerate(names)}
