"""Numbers about a fit as a whole, and the quantiles that intervals are made of."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float


class Goodness(NamedTuple):
    """How well a model describes data; see the properties of `Fit`."""

    ndata: int
    dof: int
    chi_square: float
    reduced_chi_square: float
    r_squared: float
    log_likelihood: float
    aic: float
    aicc: float
    bic: float

    def within(self, dof: int, reduced_chi_square: float) -> "Goodness":
        """Those of one of many data sets that are fitted together.

        Degrees of freedom and the scale of errors are those of all, and what compares
        models is for the whole fit.
        """
        return self._replace(
            dof=dof,
            reduced_chi_square=reduced_chi_square,
            log_likelihood=math.nan,
            aic=math.nan,
            aicc=math.nan,
            bic=math.nan,
        )

    def judged(self, log_likelihood: float, varied: int) -> "Goodness":
        """Those of data with a likelihood of their own, whose criteria it makes."""
        aic = -2 * log_likelihood + 2 * varied
        return self._replace(
            log_likelihood=log_likelihood,
            aic=aic,
            aicc=aic + self.aicc - self.aic,
            bic=-2 * log_likelihood + self.bic - self.chi_square,
        )


def goodness(
    chi_square: float,
    count: int,
    varied: int,
    absolute: bool,
    y: Float[np.ndarray, " m"],
    residual: Float[np.ndarray, " m"],
    units: list[Float[np.ndarray, " m"]],
    log_sigma: float,
) -> Goodness:
    """The usual measures.

    Args:
        chi_square: twice the cost.
        count: residuals that count, priors among them.
        varied: parameters that varied.
        absolute: sigma is known; otherwise its scale is estimated, and the likelihood
            is the one at the best scale.
        y, residual: the points that count in units of sigma, flat.
        units: what a constant 1 is in these; of complex y one for each part.
        log_sigma: the sum of its logarithms.
    """
    dof = count - varied
    constant = -0.5 * count * math.log(2 * math.pi) - log_sigma
    if absolute:
        fit_term = chi_square
        log_likelihood = constant - 0.5 * chi_square
    else:
        mean = chi_square / count if count else math.nan
        fit_term = count * math.log(mean) if mean > 0 else -math.inf
        log_likelihood = constant - 0.5 * fit_term - 0.5 * count
    aic = fit_term + 2 * varied
    rest = dof - 1
    correction = 2 * varied * (varied + 1) / rest if rest > 0 else math.inf
    return Goodness(
        ndata=len(y),
        dof=dof,
        chi_square=chi_square,
        reduced_chi_square=chi_square / dof if dof > 0 else math.nan,
        r_squared=_r_squared(y, residual, units),
        log_likelihood=log_likelihood,
        aic=aic,
        aicc=aic + correction,
        bic=fit_term + math.log(count) * varied if count else math.nan,
    )


def _r_squared(
    y: Float[np.ndarray, " m"],
    residual: Float[np.ndarray, " m"],
    units: list[Float[np.ndarray, " m"]],
) -> float:
    """1 - SS(residuals) / SS(y about its mean), all in units of sigma."""
    if not len(y):
        return math.nan
    about_mean = y - sum(unit * ((unit @ y) / (unit @ unit)) for unit in units)
    total = float(about_mean @ about_mean)
    return 1 - float(residual @ residual) / total if total > 0 else math.nan


def pattern(residual: Float[np.ndarray, " m"]) -> float:
    """How unlikely the runs of equal signs are: a standard normal number.

    The runs test of Wald and Wolfowitz (Ann. Math. Stat. 11, 1940) on the signs of
    residuals in the order of x; strongly negative where they come in long runs, so that
    the model misses something.
    """
    positive = residual > 0
    above, m = int(positive.sum()), len(residual)
    below = m - above
    if m < 12 or not above or not below:
        return 0.0
    runs = 1 + int(np.count_nonzero(positive[1:] != positive[:-1]))
    expected = 1 + 2 * above * below / m
    variance = (expected - 1) * (expected - 2) / (m - 1)
    return (runs - expected) / math.sqrt(variance) if variance > 0 else 0.0


def quantile(level: float, dof: int | float, absolute: bool) -> float:
    """How many standard errors a two-sided interval of this level reaches.

    Student's t with the degrees of freedom, or the normal quantile where sigma is
    known.
    """
    import scipy.special

    check_level(level)
    tail = 0.5 * (1 + level)
    if absolute:
        return float(scipy.special.ndtri(tail))
    return float(scipy.special.stdtrit(dof, tail)) if dof > 0 else math.inf


def joint_threshold(
    level: float, parameters: int, dof: int | float, absolute: bool
) -> float:
    """How much chi-square / s² rises at the edge of a joint region.

    Chi-square's quantile where sigma is known, and otherwise that of F, times the
    number of parameters (Bates and Watts, Nonlinear Regression Analysis, 1988, 6.1).
    """
    import scipy.special

    check_level(level)
    if absolute:
        return float(scipy.special.chdtri(parameters, 1 - level))
    if dof <= 0:
        return math.inf
    return parameters * float(scipy.special.fdtri(parameters, dof, level))


def check_level(level: Any) -> None:
    """Refuse what is no probability."""
    if not (isinstance(level, (int, float)) and 0 < level < 1):
        raise ValueError(
            f"level is {level!r}; give a probability between 0 and 1, such as 0.95."
        )
