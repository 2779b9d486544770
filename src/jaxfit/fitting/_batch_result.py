"""`BatchFit`: maps of what was found in many data sets."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._core.certificate import Status
from jaxfit._programs.host import computed
from jaxfit._scipy.arguments import coordinates, real_array
from jaxfit.fitting._fit import fit
from jaxfit.fitting._problem import Problem
from jaxfit.fitting._programs import for_solver, named
from jaxfit.fitting._result import Fit
from jaxfit.fitting.output import _plot_batch
from jaxfit.fitting.output._save import needed
from jaxfit.models import Model


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BatchFit:
    """The result of `fit_batch`: arrays of the leading dimensions of the data.

    Attributes:
        problem: the model, and what became of each parameter.
        x, y: the data.
        settings: the keywords of `fit` that were given, and sigma.
        numbers: what was computed, with one leading axis.
        shape: the leading dimensions.
    """

    problem: Problem
    x: PyTree
    y: np.ndarray
    settings: Mapping[str, Any]
    numbers: Mapping[str, np.ndarray]
    shape: tuple[int, ...]
    labels: Any = None

    @property
    def model(self) -> Model:
        """The model."""
        return self.problem.model

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, in order."""
        return self.problem.names

    @functools.cached_property
    def values(self) -> dict[str, np.ndarray]:
        """The values of the parameters by name; NaN where they are not determined."""
        return self._where_known(derived=False)

    @functools.cached_property
    def determined(self) -> dict[str, np.ndarray]:
        """Where the data determine a parameter, by name: see `Fit.determined`."""
        return self._by_name("determined", derived=False)

    @functools.cached_property
    def errors(self) -> dict[str, np.ndarray]:
        """Their standard errors by name; infinite where undetermined."""
        return self._by_name("errors", derived=False)

    @functools.cached_property
    def derived(self) -> dict[str, np.ndarray]:
        """Derived quantities by name; NaN where they are not determined."""
        return self._where_known(derived=True)

    @functools.cached_property
    def derived_errors(self) -> dict[str, np.ndarray]:
        """Their standard errors by name."""
        return self._by_name("errors", derived=True)

    @property
    def at_bound(self) -> dict[str, np.ndarray]:
        """For each varied parameter -1 at its lower bound, 1 at its upper one, or 0."""
        return {
            name: self._map(self.numbers["active"][:, k])
            for k, name in enumerate(self.problem.varied)
        }

    @property
    def covariance(self) -> np.ndarray:
        """The covariances of the varied parameters, (..., n, n)."""
        n = len(self.problem.varied)
        return self.numbers["covariance"].reshape(*self.shape, n, n)

    @property
    def status(self) -> np.ndarray:
        """Numbers of `jaxfit.Status`."""
        return self._map(self.numbers["status"])

    @property
    def success(self) -> np.ndarray:
        """Which fits ended well: a certificate, see `jaxfit.Solution`."""
        return self.status > 0

    @property
    def nfev(self) -> np.ndarray:
        """Evaluations of the model."""
        return self._map(self.numbers["nfev"])

    @property
    def count(self) -> np.ndarray:
        """Points that count, and priors."""
        return self._map(self.numbers["count"])

    @property
    def chi_square(self) -> np.ndarray:
        """Twice the costs."""
        return 2 * self._map(self.numbers["cost"])

    @property
    def reduced_chi_square(self) -> np.ndarray:
        """Chi-square for each degree of freedom."""
        dof = self.count - len(self.problem.varied)
        return np.where(dof > 0, self.chi_square / np.where(dof > 0, dof, 1), np.nan)

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of a parameter or a derived quantity."""
        for found in (self.values, self.derived):
            if name in found:
                return found[name]
        known = ", ".join([*self.values, *self.derived])
        raise KeyError(f"{name!r}; there are {known}")

    def predict(self, x: PyTree = None) -> np.ndarray:
        """The fitted curves at other points, or at the data."""
        points = self.x if x is None else coordinates(x, real_array)
        curves = batch_values(self.problem, points, for_solver(self.numbers, "x"))
        return curves.reshape(*self.shape, *curves.shape[1:])

    def fit(self, index: Any, **settings: Any) -> Fit:
        """The whole `Fit` of one data set, in the same manner; from where it ended.

        Args:
            index: a number, or a tuple for several leading dimensions.
            **settings: of `fit`, in place of the batch's.

        Raises:
            FitError: that fit did not succeed.
        """
        problem, values = self.problem, self._by_name("values", derived=False)
        untied = [name for name in self.names if name not in problem.ties]
        ended = {name: values[name][index] for name in untied}
        if problem.origin is not None:  # an amplitude at x = 0 may be beyond any number
            ended = {n: v for n, v in ended.items() if np.isfinite(v)}
        same = {
            **self.settings,
            "p0": ended,
            "nan_policy": "omit",
        }
        if same["sigma"] is not None:
            same["sigma"] = np.broadcast_to(same["sigma"], self.y.shape)[index]
        return fit(problem.model, self.x, self.y[index], **(same | settings))

    def __str__(self) -> str:
        good, total = int(self.success.sum()), self.success.size
        lines = [
            f"{self.model.label}: {total} fits {self.shape}, {good} with success "
            f"({good / max(total, 1):.2%})"
        ]
        codes, counts = np.unique(self.status, return_counts=True)
        lines += [
            f"  {Status(int(code)).name:<18}{number:>10}"
            for code, number in zip(codes, counts, strict=True)
            if code <= 0
        ]
        lines.append(
            f"{'':<20}{'median':>13}{'16 %':>13}{'84 %':>13}{'median error':>15}"
        )
        everything = self.values | self.derived
        errors = self.errors | self.derived_errors
        for name, value in everything.items():
            seen = self.success & np.isfinite(value)
            if not seen.any():
                continue
            middle, low, high = np.quantile(value[seen], [0.5, 0.16, 0.84])
            error = np.median(errors[name][seen])
            lines.append(
                f"{name[:19]:<20}{middle:>13.5g}{low:>13.5g}{high:>13.5g}{error:>15.3g}"
            )
        for name, known in self.determined.items():
            number = int(np.sum(self.success & ~known))
            if number:
                lines.append(
                    f"! The data do not determine {name} in {number} of {good} fits."
                )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<BatchFit of {self.model.label}, {self.shape}>"

    def to_xarray(self) -> Any:
        """Maps of values, errors and status as an xarray Dataset.

        Variables are the names, `<name>_stderr`, `status`, `chi_square` and so on; the
        dimensions are those of the DataArray that was fitted, or `dim_0`, `dim_1`.
        """
        xarray = needed("xarray")
        dims, coords, _ = self.labels or (
            tuple(f"dim_{k}" for k in range(len(self.shape))),
            *({}, None),
        )
        errors = self.errors | self.derived_errors
        maps = self.values | self.derived
        maps |= {f"{name}_stderr": value for name, value in errors.items()}
        maps |= {
            "status": self.status,
            "success": self.success,
            "nfev": self.nfev,
            "chi_square": self.chi_square,
            "reduced_chi_square": self.reduced_chi_square,
        }
        return xarray.Dataset(
            {name: (dims, value) for name, value in maps.items()},
            coords=coords,
            attrs={"model": self.model.label},
        )

    def to_dataframe(self) -> Any:
        """One row for each fit as a pandas DataFrame."""
        pandas = needed("pandas")
        columns: dict[str, Any] = {}
        errors = self.errors | self.derived_errors
        for name, value in (self.values | self.derived).items():
            columns[name] = value.ravel()
            columns[f"{name}_stderr"] = errors[name].ravel()
        columns |= {
            "status": self.status.ravel(),
            "reduced_chi_square": self.reduced_chi_square.ravel(),
        }
        index = None
        if len(self.shape) > 1:
            index = pandas.MultiIndex.from_product([range(n) for n in self.shape])
        return pandas.DataFrame(columns, index=index)

    plot = _plot_batch.maps
    plot_status = _plot_batch.status
    plot_fits = _plot_batch.several

    def _map(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(self.shape)

    def _where_known(self, derived: bool) -> dict[str, np.ndarray]:
        known = self._by_name("determined", derived)
        return {
            name: np.where(known[name], value, np.nan)
            for name, value in self._by_name("values", derived).items()
        }

    def _by_name(self, what: str, derived: bool) -> dict[str, np.ndarray]:
        count = len(self.names)
        names = self.problem.derived_names if derived else self.names
        columns = self.numbers[what][:, count:] if derived else self.numbers[what]
        return {name: self._map(columns[:, k]) for k, name in enumerate(names)}


def batch_values(problem: Problem, points: PyTree, x: np.ndarray) -> np.ndarray:
    """The model at some points, for each of many of the solver's vectors."""
    return computed(
        _curves, problem, points, x, traced=named(problem.model), is_hasty=False
    )


def _curves(problem, points, vectors):

    def one(x):
        return problem.model.evaluate(problem.points(points), problem.about_origin(x))

    return jax.vmap(one)(vectors)
