"""`BatchFit`: maps of what was found in many data sets."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Inexact, PyTree

from jaxfit.fitting._batch_record import BatchRecord
from jaxfit.fitting._dates import Dated
from jaxfit.fitting._fit import fit
from jaxfit.fitting._result import Fit
from jaxfit.fitting.inference import _bands
from jaxfit.fitting.output import _plot_batch, _report, _tables


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
    """

    def predict(self, x: PyTree = None) -> Inexact[np.ndarray, "..."]:
        """The fitted curves at other points, or at the data."""
        return _bands.curves(self, x)

    def fit(self, index: Any, **settings: Any) -> Fit:
        """The whole `Fit` of one data set, in the same manner; from where it ended.

        Args:
            index: a number, or a tuple for several leading dimensions.
            **settings: of `fit`, in place of the batch's.

        Raises:
            FitError: that fit did not succeed.
        """
        problem, values = self.problem, self._of_parameters(self.numbers.values)
        untied = [name for name in self.names if name not in problem.ties]
        ended = {name: values[name][index] for name in untied}
        if problem.origin is not None:  # an amplitude at x = 0 may be beyond any number
            ended = {name: v for name, v in ended.items() if np.isfinite(v)}
        same = {**self.settings, "p0": ended, "nan_policy": "omit"}
        if same["sigma"] is not None:
            same["sigma"] = np.broadcast_to(same["sigma"], self.y.shape)[index]
        x = Dated(self.x, self.dates)
        return fit(problem.model, x, self.y[index], **(same | settings))

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
