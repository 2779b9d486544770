"""`BatchFit`: maps of what was found in many data sets."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Inexact, PyTree

from jaxfit._rows.predictions import RowNumbers
from jaxfit.fitting._arguments import method_from
from jaxfit.fitting._batch_record import BatchRecord, Map
from jaxfit.fitting._dates import Dated
from jaxfit.fitting._fit import FitError, fit
from jaxfit.fitting._likelihood import ExpectedDeviance, with_likelihood
from jaxfit.fitting._points import observed
from jaxfit.fitting._result import Fit
from jaxfit.fitting._together import parameters_of_each
from jaxfit.fitting.inference import _bands, _draws, _outliers
from jaxfit.fitting.output import _plot_batch, _report, _tables
from jaxfit.losses import Likelihood


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BatchFit(BatchRecord):
    """The result of `fit_batch`: arrays of the leading dimensions of the data.

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

    def predict(self, x: PyTree = None) -> Inexact[np.ndarray, "..."]:
        """The fitted curves at other points (of bins: edges), or at the data."""
        return _bands.curves(self, x)

    def fit(self, index: Any, **settings: Any) -> Fit:
        """The whole `Fit` of one data set, in the same manner; from where it ended.

        Where parameters are shared nothing is fitted anew: their values and errors,
        and the rows of the covariance, are those of the joint fit.

        Args:
            index: a number, or a tuple for several leading dimensions.
            **settings: of `fit`, in place of the batch's; none where parameters are
                shared.

        Raises:
            FitError: that fit did not succeed.
        """
        if self.together is not None:
            return self._part_of_all(index, settings)
        problem, values = self.problem, self._of_parameters(self.numbers.values)
        untied = [name for name in self.names if name not in problem.ties]
        ended = {name: values[name][index] for name in untied}
        if problem.origin is not None:  # an amplitude at x = 0 may be beyond any number
            ended = {name: v for name, v in ended.items() if np.isfinite(v)}
        same = {**self.settings, "p0": ended, "nan_policy": "omit"}
        same |= {"sigma": self._sigma(index), "loss": self._loss(index)}
        x = Dated(self.x, self.dates)
        return fit(problem.model, x, self.y[index], **(same | settings))

    def _sigma(self, index: Any) -> Any:
        """The standard errors of one data set."""
        sigma = self.settings["sigma"]
        return None if sigma is None else np.broadcast_to(sigma, self.y.shape)[index]

    @property
    def deviance(self) -> Map:
        """`chi_square` by the name that it has with a likelihood: see `Fit.deviance`.

        Beside it `expected_deviance` tells how large it would be of a right model.
        """
        return self.chi_square

    @functools.cached_property
    def expected_deviance(self) -> ExpectedDeviance | None:
        """The deviance that a right model would have, as maps: see `Fit`.

        None without a likelihood, with priors, and where it is not known.
        """
        loss, one = self.settings["loss"], self.y.ndim - len(self.shape)
        if not isinstance(loss, Likelihood) or self.problem.prior:
            return None
        means = np.asarray(_bands.curves(self, None))
        with np.errstate(invalid="ignore"):
            moments = loss.expected_deviance(means)
        if moments is None:
            return None
        valid, points = np.isfinite(self.y) & np.isfinite(means), tuple(range(-one, 0))
        expectation, variance = (
            np.sum(np.where(valid, part, 0), axis=points) for part in moments
        )
        share = parameters_of_each(self.problem.varied, self.together)
        fitted = ((self.numbers.active == 0) @ share).reshape(self.shape)
        has_points = valid.any(axis=points)
        expectation = np.where(has_points, expectation - fitted, np.nan)
        return ExpectedDeviance(expectation, np.sqrt(variance))

    def _loss(self, index: Any) -> Any:
        """The loss of one data set: its own numbers of a likelihood."""
        loss = self.settings["loss"]
        if RowNumbers.of(loss) is None:
            return loss
        trailing = self.y.ndim - len(self.shape)

        def own(number: Any) -> Any:
            if np.ndim(number) <= trailing:
                return number
            return np.broadcast_to(number, self.y.shape)[index]

        return jax.tree.map(own, loss)

    def _part_of_all(self, index: Any, settings: dict[str, Any]) -> Fit:
        """One data set as the joint fit has it."""
        if settings:
            raise TypeError(
                f"fit({index!r}, {', '.join(settings)}=...): this data set was fitted "
                "together with others. Give settings to fit_batch, or the data to fit."
            )
        x, own = Dated(self.x, self.dates), self.settings
        loss = self._loss(index)
        seen = observed(x, self.y[index], self._sigma(index), "omit")
        seen = with_likelihood(seen, loss)
        number = int(np.ravel_multi_index(np.atleast_1d(index), self.shape, "wrap"))
        numbers = self.numbers.nth(number)
        best = _bands.at_data(self.problem, seen, numbers)
        result = Fit(
            problem=self.problem,
            observed=seen,
            method=method_from(
                loss, own["options"], own["absolute_sigma"], own["covariance"]
            ),
            numbers=numbers._replace(best=best),
            together=self.together,
        )
        if not result.success:
            raise FitError(_report.failure(result), result)
        return result

    def outliers(self, level: float = 0.01) -> Bool[np.ndarray, "..."]:
        """Which points are too far from their curve, a mask of the shape of Y.

        As `Fit.outliers`, with the level for the points of each data set; none of a
        fit that failed.
        """
        return _outliers.batch_outliers(self, level)

    def draws(self, number: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Draws of all parameters of every fit, by name: (..., number).

        As `Fit.draws`. What data sets share is drawn once for all, (number,), and each
        has the others given that. NaN where a parameter has no finite error, or nearly
        all draws lie outside of the bounds.
        """
        return _draws.batch_draws(self, number, seed)

    def __str__(self) -> str:
        return _report.batch(self)

    def __repr__(self) -> str:
        return f"<BatchFit of {self.model.label}, {self.shape}>"

    def to_xarray(self) -> Any:
        """Maps of values, errors and status as an xarray Dataset.

        Variables are the names, `<name>_stderr`, `status`, `chi_square` and so on; the
        dimensions are those of the DataArray that was fitted, or `dim_0`, `dim_1`.
        """
        return _tables.batch_dataset(self)

    def to_dataframe(self) -> Any:
        """One row for each fit as a pandas DataFrame."""
        return _tables.batch_dataframe(self)

    def plot(self, names: Iterable[str] | None = None, *, errors: bool = False) -> Any:
        """A map of each parameter, or a line for one leading dimension, and the status.

        Args:
            names: parameters and derived quantities; None: the parameters.
            errors: draw their standard errors in their place.
        """
        return _plot_batch.maps(self, names, errors)

    def plot_status(self) -> Any:
        """A map of how the fits ended."""
        return _plot_batch.status(self)

    def plot_fits(
        self, indices: Iterable[Any] | None = None, *, xscale: str = "linear"
    ) -> Any:
        """Points and curves of some fits: by default nine, evenly chosen.

        Args:
            indices: of the leading dimensions.
            xscale: "linear" or "log".
        """
        return _plot_batch.several(self, indices, xscale)
