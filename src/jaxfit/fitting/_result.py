"""`Fit`: parameters by name, and all that a scientist asks of a fit."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jax.tree_util import Partial
from jaxtyping import Inexact, PyTree

from jaxfit.fitting import _several
from jaxfit.fitting._record import Record
from jaxfit.fitting.inference import (
    _bands,
    _bootstrap,
    _draws,
    _intervals,
    _outliers,
    _posterior,
)
from jaxfit.fitting.inference._bands import Band
from jaxfit.fitting.inference._bootstrap import Bootstrap
from jaxfit.fitting.inference._intervals import (
    SIGMAS,
    Contour,
    Intervals,
    Level,
    Profile,
)
from jaxfit.fitting.output import (
    _interactive,
    _plot,
    _plot_inference,
    _report,
    _save,
    _tables,
    _warnings,
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Fit(Record):
    """The result of `fit`.

    Attributes:
        problem: the model, and what became of each parameter.
        observed: the data, and which points count.
        method: loss, options, and what the errors mean.
        numbers: what was computed, as NumPy arrays.
        minima: of several starts, the minima as (cost, how many ended there).
        remarks: sentences about how it came to its end.
        together: of one of many data sets that share parameters, the whole fit.
    """

    # Curves; of several data sets `data_set` says which, from 1

    def predict(self, x: PyTree = None, data_set: int | None = None) -> Any:
        """The model's values at other points, or at the data.

        Args:
            x: points as those of the fit: of a fit to dates also dates, or numbers in
                its unit; of a fit to bins the edges of others. They are taken as exact,
                also where those of the fit have errors: then `predict()` is at x as
                given, `best_fit` at x as corrected.
            data_set: of several, which, from 1; None for `x` None: a list of all.
        """
        if x is None and data_set is None and self.observed.shapes is not None:
            return self.best_fit
        return _bands.predicted(_several.view(self, data_set), x)

    def confidence_band(
        self,
        x: PyTree = None,
        level: float = 0.95,
        data_set: int | None = None,
    ) -> Band:
        """Where the curve is, with this probability at each point.

        By the derivative of the model and the covariance, times Student's t. Of a
        complex curve real and imaginary parts are the bands of the parts.
        """
        return _bands.confidence(_several.view(self, data_set), x, level)

    def prediction_band(
        self,
        x: PyTree = None,
        level: float = 0.95,
        data_set: int | None = None,
    ) -> Band:
        """Where a further observation falls, with this probability.

        The confidence band with the scatter of single points added, that of sigma = 1
        scaled, or of the data's own sigma where `x` is None. With a likelihood the
        scatter is its own; of Poisson counts the band ends at whole numbers.
        """
        return _bands.prediction(_several.view(self, data_set), x, level)

    def components(
        self, x: PyTree = None, data_set: int | None = None
    ) -> dict[str, Inexact[np.ndarray, "..."]]:
        """The values of the parts of a sum by their labels."""
        return _bands.components(_several.view(self, data_set), x)

    # Intervals

    def intervals(
        self, kind: str = "wald", level: Level = 0.95, **settings: Any
    ) -> Intervals:
        """Confidence intervals.

        Args:
            kind: "wald", symmetric, from standard errors and Student's t; "profile",
                where chi-square rises by the square of that, right also where the model
                is curved, not symmetric; "bootstrap", percentiles of refits.
            level: one or several probabilities.
            **settings: of `bootstrap`: number, resample, seed.

        Returns:
            `Intervals`, of the varied parameters, and for Wald and bootstrap of tied
            and derived quantities too.
        """
        return _intervals.intervals(self, kind, level, **settings)

    def profile(
        self, names: str | Iterable[str] | None = None, points: int = 25
    ) -> list[Profile]:
        """Chi-square along each parameter, with the others fitted anew at every point.

        Args:
            names: varied parameters; None: all.
            points: for each, over three standard errors on either side.
        """
        return _intervals.profile(self, names, points)

    def bootstrap(
        self, number: int = 2000, resample: str | None = None, seed: int = 0
    ) -> Bootstrap:
        """Refits of resampled data, all in one batch.

        Args:
            number: of refits.
            resample: "residual", the fitted curve and residuals drawn among all;
                "case", points drawn with their errors, right also where errors are not
                alike, and the only one with errors in x; "parametric", the fitted curve
                and normal errors, or draws from the likelihood of the data. None is
                "residual", with a likelihood "parametric".
            seed: of the random numbers.
        """
        return _bootstrap.bootstrap(self, number, resample, seed)

    def contour(
        self,
        a: str,
        b: str,
        level: Level = SIGMAS,
        points: int = 64,
    ) -> Contour:
        """The edges of joint confidence regions of two parameters, by profiles.

        In every direction the place is found where chi-square, minimised over all other
        parameters, has risen by its threshold (for unknown sigma by the F
        distribution).

        Args:
            a, b: names of varied parameters.
            level: one probability or several.
            points: of each edge.
        """
        return _intervals.contour(self, a, b, level, points)

    def outliers(self, level: float = 0.01) -> Any:
        """Which points are too far from the curve, a mask of the shape of y.

        Residuals are divided by their standard deviations, with what the curve takes
        from them, and compared with what the largest of so many is by chance: of m
        points each has the level 1 - (1 - level)^(1/m). Where sigma is known
        (`absolute_sigma`) they are normal; otherwise the scale is that of the other
        points, without those far out, and they have Student's distribution. Points that
        do not count are no outliers. With a covariance of y each point is compared with
        what the others say of it; of complex y a point is one if one of its parts is;
        with errors in x distances from the curve count.

        An outlier also draws the curve to itself. With a robust loss it does not, so
        that several are found beside each other.

        Args:
            level: the probability of a mask that is not empty, for normal errors.
        """
        return _outliers.outliers(self, level)

    # The posterior

    @functools.cached_property
    def log_density(self) -> Partial:
        """The log posterior density of the varied parameters, for samplers.

        A pure function for JAX: `jax.jit(fit.log_density)`, `jax.grad`, `jax.vmap`, and
        what BlackJAX, NumPyro and emcee do with it. Its argument is a vector in the
        order of `fit.varied`, or the numbers by name. Up to a constant it is minus half
        of chi-square, under the loss and with the priors, over the variance of
        residuals in units of sigma: 1 where sigma is known (`absolute_sigma`), else the
        reduced chi-square, as in the covariance. Bounds, also those of what is tied,
        are flat priors: minus infinity outside, where its derivative is zero.

        Called by itself it computes in float64; in your own `jit`, `grad` or `vmap` in
        JAX's precision. Chi-square of many points needs `jax_enable_x64` there.
        """
        return _posterior.log_density(self)

    def draws(self, number: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Draws of all parameters from what the fit says of them, by name, (number,).

        Laplace's approximation of the posterior: what varied is drawn from the normal
        distribution of estimate and covariance, and draws outside of bounds are drawn
        again; what is tied or derived is computed from each draw, and what is fixed
        stays. So errors go through any function of yours: np.std(f(**draws)).

        Args:
            number: of draws.
            seed: of the random numbers.

        Raises:
            ValueError: a parameter has no finite error, or nearly all draws lie
                outside of the bounds.
        """
        return _draws.draws(self, number, seed)

    # For people

    def __str__(self) -> str:
        return _report.short(self)

    def __repr__(self) -> str:
        return _report.one_line(self)

    def _repr_html_(self) -> str:
        return _report.html(self)

    def report(self) -> str:
        """The long form: bounds and starts, 95 % intervals, correlations, criteria."""
        return _report.long(self)

    def warnings(self) -> list[str]:
        """Sentences about what deserves a look, each with what to do."""
        return _warnings.warnings(self)

    # Tables and files

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain Python: what `json` takes; NaN and infinity are None."""
        return _tables.dictionary(self)

    def to_dataframe(self) -> Any:
        """Parameters and derived quantities as a pandas DataFrame."""
        return _tables.dataframe(self)

    def to_xarray(self) -> Any:
        """Values, errors and covariance as an xarray Dataset."""
        return _tables.dataset(self)

    def save(self, path: Any) -> None:
        """Write the fit to one npz file, of arrays and JSON, without pickles.

        A library's model is stored by name. A plain function is not: `Fit.load` then
        asks for it, and for ties. A loss of one's own and a function as
        `Options(jac=...)` are refused.
        """
        _save.save(self, path)

    @staticmethod
    def load(
        path: Any, model: Any = None, tie: Mapping[str, Any] | None = None
    ) -> "Fit":
        """A fit that was saved; see `save`."""
        return of_record(_save.load(path, model, tie))

    # Pictures

    def plot(
        self,
        *,
        level: float = 0.95,
        components: bool = True,
        residuals: bool = True,
        xscale: str = "linear",
        xlabel: str | None = None,
        ylabel: str = "y",
        title: str | None = None,
    ) -> Any:
        """Points with error bars, the curve and its band, components, and residuals.

        For an image: data, model and residuals side by side. With errors in x the bars
        are those of both directions, and the residuals `orthogonal_residuals`; with a
        likelihood there are no bars, and the residuals are `deviance_residuals`.

        Args:
            level: of the confidence band.
            components: draw the parts of a sum.
            residuals: a panel of residuals below.
            xscale: "linear" or "log".
            xlabel, ylabel, title: texts; None: what the fit knows.

        Returns:
            The matplotlib figure.
        """
        return _plot.fit(
            self,
            level=level,
            components=components,
            residuals=residuals,
            xscale=xscale,
            xlabel=xlabel,
            ylabel=ylabel,
            title=title,
        )

    def plot_residuals(self, *, xlabel: str | None = None) -> Any:
        """Standardised residuals against x, and against normal quantiles (Q-Q).

        With errors in x `orthogonal_residuals`, with a likelihood `deviance_residuals`.
        """
        return _plot.standardized_residuals(self, xlabel)

    def plot_profile(self, names: str | Iterable[str] | None = None) -> Any:
        """ζ against each parameter: straight where the errors are good intervals.

        The straight line is what the standard error says, and the marks are the ends of
        the intervals of one and two standard deviations, 68.3 % and 95.4 %.
        """
        return _plot_inference.profiles(self, names)

    def plot_contour(
        self,
        a: str,
        b: str,
        level: Level = SIGMAS,
        *,
        axes: Any = None,
    ) -> Any:
        """Joint confidence regions of two parameters, by profile likelihood.

        The dashed ellipses are what the covariance says.

        Args:
            a, b: names of varied parameters.
            level: one probability or several.
            axes: matplotlib axes to draw into; None makes a figure.
        """
        return _plot_inference.regions(self, a, b, level, axes)

    def plot_corner(
        self, names: Iterable[str] | None = None, number: int = 2000
    ) -> Any:
        """Bootstrap refits of each pair of parameters, with their histograms."""
        return _plot_inference.corner(self, names, number)

    def interactive(self, *, xscale: str = "linear") -> _interactive.Panel:
        """A panel for a notebook: a slider for each start, and the fit that follows.

        Every move of a slider fits anew from there. Its attribute `fit` is the latest
        fit, `starts` where it began. A fit that found no solution has it too:
        `error.fit.interactive()` of a `FitError`. It needs ipywidgets, the extra
        `notebook`.

        Args:
            xscale: "linear" or "log".
        """
        return _interactive.Panel(self, xscale)


def of_record(record: Record) -> Fit:
    """A record with what can be asked of it."""
    fields = dataclasses.fields(record)
    return Fit(**{field.name: getattr(record, field.name) for field in fields})
