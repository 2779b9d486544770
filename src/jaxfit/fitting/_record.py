"""What a fit gives: a `Record` of what was fitted and what came of it.

The functions in `inference/` and `output/` take a `Record`; `Fit` has their methods.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxfit.fitting._fitted import FittedParameters
from jaxfit.fitting._likelihood import (
    ExpectedDeviance,
    Judged,
    expected_deviance,
    judged,
)
from jaxfit.fitting._together import parameters_of_each
from jaxfit.fitting.inference._statistics import Goodness, goodness


class SumsOfSquares(NamedTuple):
    """Of residuals in units of their errors, by their direction."""

    y: float
    x: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Record(FittedParameters):
    """All that came of a fit, of its data as of its parameters."""

    @functools.cached_property
    def judged(self) -> Judged:
        """What it says of the points that count, flat."""
        return judged(self.observed, self.numbers.best)

    # The fit as a whole

    @functools.cached_property
    def goodness(self) -> Goodness:
        """Chi-square and what is computed from it."""
        observed = self.observed
        if self.is_judged:
            return self._goodness_of_likelihood

        def counted(values: np.ndarray) -> np.ndarray:
            return observed.counted(observed.standardized(values))

        measures = goodness(
            chi_square=2 * self.numbers.cost,
            count=int(self.numbers.count),
            varied=len(self.varied),
            absolute=self.absolute_sigma,
            y=counted(observed.data.y),
            residual=observed.counted(self.distances),
            units=list(map(counted, observed.constants)),
            log_sigma=observed.log_sigma,
        )
        if self.together is None:
            return measures
        return measures.within(self.together.dof, self.together.reduced_chi_square)

    @property
    def _goodness_of_likelihood(self) -> Goodness:
        """Deviance, the true likelihood and what is computed from them."""
        observed, numbers = self.observed, self.numbers
        measures = goodness(
            chi_square=2 * numbers.cost,
            count=int(numbers.count),
            varied=len(self.varied),
            absolute=True,
            y=observed.counted(observed.data.y),
            residual=observed.counted(observed.data.y) - self.judged.expected,
            units=list(map(observed.counted, observed.constants)),
            log_sigma=0.0,
        )
        if self.together is not None:
            return measures.within(self.together.dof, self.together.reduced_chi_square)
        priors = numbers.cost - float(np.sum(self.judged.cost))
        return measures.judged(self.judged.log_likelihood - priors, len(self.varied))

    @property
    def deviance(self) -> float:
        """Twice the cost of a likelihood: 0 for a model that meets every point.

        Of a likelihood without such a model, as Rice's, minus twice its logarithm. It
        is `chi_square`, which for normal errors is the deviance.
        """
        return self.chi_square

    @property
    def expected_deviance(self) -> ExpectedDeviance | None:
        """The deviance that a right model would have, and its standard deviation.

        The sum of what is expected of each point at the best fit (Kaastra, A&A 605,
        A51, 2017), less one for each parameter that varied and is at no bound: of few
        counts it is far from the degrees of freedom. What data sets share counts in
        parts. None where it is not known: without a likelihood, with priors, and of one
        of your own that does not say.
        """
        if not self.is_judged or self.problem.prior:
            return None
        share = parameters_of_each(self.varied, self.together)
        fitted = float(np.sum(share * (self.numbers.active == 0)))
        return expected_deviance(self.observed, self.numbers.best, fitted)

    @property
    def ndata(self) -> int:
        """Points that count."""
        return self.goodness.ndata

    @property
    def dof(self) -> int:
        """Degrees of freedom: points and priors less varied parameters.

        Of one of many data sets that share parameters those of all, as is the next but
        one; there are no likelihood and no criteria of one alone.
        """
        return self.goodness.dof

    @property
    def chi_square(self) -> float:
        """Twice the cost: the sum of ((y - model) / sigma)², under the loss.

        With a likelihood the deviance, see `deviance`.
        With errors in x also that of (x_corrections / sigma_x)².
        """
        return self.goodness.chi_square

    @property
    def reduced_chi_square(self) -> float:
        """Chi-square for each degree of freedom."""
        return self.goodness.reduced_chi_square

    @property
    def r_squared(self) -> float:
        """The part of the variance of y that the model explains.

        With errors in x what it leaves is the distance of points from the curve.
        """
        return self.goodness.r_squared

    @property
    def log_likelihood(self) -> float:
        """The likelihood of normal errors: of sigma as given, or at its best scale.

        Or that of the data's own likelihood, with all its constants.
        """
        return self.goodness.log_likelihood

    @property
    def aic(self) -> float:
        """Akaike's criterion, m log(chi²/m) + 2 n, or chi² + 2 n for a known sigma.

        That is -2 log-likelihood + 2 n up to a number that depends on the data alone;
        with a likelihood of the data it is just that.
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
    def best_fit(self) -> Any:
        """The model's values at the data, in their shape; a list for several.

        With errors in x the data are those at x + `x_corrections`.
        """
        observed = self.observed
        return observed.shown(self.numbers.best.reshape(np.shape(observed.data.y)))

    @property
    def residuals(self) -> Any:
        """y - model, in the shape of the data; NaN for points that do not count."""
        return self.observed.shown(self.real_residuals)

    @property
    def real_residuals(self) -> Float[np.ndarray, "..."]:
        """The residuals as `observed.data` has y: complex ones in two parts."""
        valid, y = self.observed.valid, self.observed.data.y
        residuals = y - self.numbers.best.reshape(np.shape(y))
        return residuals if valid is None else np.where(valid, residuals, np.nan)

    @property
    def standardized_residuals(self) -> Any:
        """Residuals over their standard deviation: about 1 in size.

        That is sigma, scaled to a reduced chi-square of 1 unless it is known. For a
        covariance L Lᵀ of y they are L⁻¹ (y - model), which are uncorrelated. With
        errors in x they are smaller, since points move in both directions: see
        `orthogonal_residuals`. With a likelihood they are Pearson's: the distance from
        what is expected over its standard deviation.
        """
        return self.observed.shown(self.in_errors / self._scale)

    @property
    def in_errors(self) -> Float[np.ndarray, "..."]:
        """`standardized_residuals` in units of the errors as they were given."""
        observed = self.observed
        if not self.is_judged:
            return observed.standardized(self.real_residuals)
        y = observed.counted(observed.data.y)
        return observed.spread(self.judged.pearson(y))

    @property
    def deviance_residuals(self) -> Any:
        """The root of each point's deviance, with the sign of y - model.

        Nearer to a normal distribution than Pearson's where counts are few. Without a
        likelihood, and with one that has no deviance, they are the standardised ones.
        """
        observed, likelihood = self.observed, self.observed.likelihood
        if likelihood is None:
            return self.standardized_residuals
        y = observed.counted(observed.data.y)
        roots = self.judged.near_normal(likelihood, y)
        return observed.shown(observed.spread(roots))

    @property
    def _scale(self) -> float:
        """What errors are to be multiplied by: 1 where they are known."""
        return 1.0 if self.absolute_sigma else float(np.sqrt(self.reduced_chi_square))

    @property
    def has_errors_in_x(self) -> bool:
        """Whether the coordinates were given errors, see `fit(sigma_x=...)`."""
        return self.observed.sigma_x is not None

    @property
    def x_corrections(self) -> Any:
        """What was added to x, in the structure of x; zero where x is exact.

        NaN for points that do not count; None without errors in x.
        """
        return self._of_coordinates(self.numbers.moved)

    @property
    def standardized_x_corrections(self) -> Any:
        """`x_corrections` over the errors of x, scaled as `standardized_residuals`."""
        ratio = self._ratios
        return self._of_coordinates(None if ratio is None else ratio / self._scale)

    @property
    def orthogonal_residuals(self) -> Float[np.ndarray, "..."]:
        """Distances of points from the curve in units of their errors, with a sign.

        The root of the sum of squares of `standardized_residuals` and
        `standardized_x_corrections`; positive for points above the curve.
        """
        return self.observed.shown(self.distances / self._scale)

    @property
    def distances(self) -> Float[np.ndarray, "..."]:
        """`orthogonal_residuals` in units of the errors as they were given."""
        along_y, along_x = self.in_errors, self._ratios
        if along_x is None:
            return along_y
        distance = np.sqrt(along_y**2 + np.sum(along_x**2, axis=0))
        return np.copysign(distance, along_y)

    @property
    def sums_of_squares(self) -> "SumsOfSquares":
        """The parts of chi-square along y and along x, without priors and loss."""
        along_y = self.in_errors
        along_x = np.zeros(0) if self._ratios is None else self._ratios
        return SumsOfSquares(
            y=float(np.nansum(along_y**2)), x=float(np.nansum(along_x**2))
        )

    @property
    def _ratios(self) -> Float[np.ndarray, "k ..."] | None:
        """Corrections of each coordinate in units of its error; NaN: does not count."""
        observed, moved = self.observed, self.numbers.moved
        if moved is None:
            return None
        errors = observed.errors_in_x
        ratio = np.where(errors > 0, moved / np.where(errors > 0, errors, 1), 0)
        return (
            ratio if observed.valid is None else np.where(observed.valid, ratio, np.nan)
        )

    def _of_coordinates(self, values: Float[np.ndarray, "k ..."] | None) -> Any:
        """Values of each coordinate that has errors, in the structure of x."""
        return None if values is None else self.observed.like_x(values)
