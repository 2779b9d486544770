"""Data with a likelihood: what `fit` makes of y, and what is told of the result.

A likelihood may have a number for each point, such as the trials of each proportion. It
stands where other data have their standard errors, so that it is padded, cut and passed
on as these are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxfit._programs.call import Static
from jaxfit._programs.host import computed
from jaxfit._rows.predictions import RowNumbers, with_numbers
from jaxfit.fitting._points import Observed
from jaxfit.losses import Likelihood, Loss

Values = Float[np.ndarray, "..."]
Rows = Float[np.ndarray | Array, "..."]


def with_likelihood(
    seen: Observed,
    loss: Loss | Likelihood | None,
    points: tuple[int, ...] | None = None,
) -> Observed:
    """The data, which a likelihood judges if that is the loss.

    Args:
        points: the shape of one data set, where y has many behind leading axes.

    Raises:
        ValueError: for observed values that the likelihood excludes, and what does not
            go with one.
    """
    if not isinstance(loss, Likelihood):
        return seen
    name = type(loss).__name__
    if seen.data.sigma is not None:
        raise ValueError(
            f"loss={name}(...) knows the errors of y by itself, and sigma is given. "
            "Leave out sigma; for a Gaussian readout noise on counts there is "
            "jaxfit.losses.PoissonGaussian(variance)."
        )
    if seen.is_complex:
        raise ValueError(f"loss={name}(...) does not go with complex y.")
    whole = _of_points(loss, seen, points)
    seen = seen._replace(likelihood=whole.likelihood)
    if whole.numbers is not None:
        seen = seen._replace(data=seen.data._replace(sigma=whole.numbers))
    if counted(seen).problem_with(seen.counted(seen.data.y)) is not None:
        y, numbers = seen.data.y, seen.data.sigma
        if seen.valid is not None:
            y = np.where(seen.valid, y, 1.0)  # so that places are those of the user's y
        if numbers is not None:
            numbers = np.broadcast_to(numbers, y.shape)
        wrong = with_numbers(whole.likelihood, numbers).problem_with(y)
        raise ValueError(f"y does not go with its likelihood. {wrong}")
    return seen


def check_exact_x(sigma_x: Any, loss: Loss | Likelihood | None) -> None:
    """Refuse errors in x next to a likelihood."""
    if isinstance(loss, Likelihood) and sigma_x is not None:
        raise ValueError(
            f"sigma_x goes with least squares, and loss is {type(loss).__name__}(...), "
            "which knows errors of y alone. Leave out one or the other."
        )


class _Parts(NamedTuple):
    """A likelihood, and its number for each point, if it has one."""

    likelihood: Likelihood
    numbers: Values | None


def _of_points(
    loss: Likelihood, seen: Observed, points: tuple[int, ...] | None
) -> _Parts:
    """A likelihood in two, its numbers as these broadcast to the data."""
    own = RowNumbers.of(loss)
    if own is None:
        return _Parts(loss, None)
    leaves = jax.tree.leaves(own.numbers)
    if len(leaves) > 1 or seen.shapes is not None:
        why = (
            "several data sets are fitted together"
            if len(leaves) == 1
            else "only one of its numbers may be one for each point"
        )
        raise ValueError(f"loss={type(loss).__name__}(...) has arrays, and {why}.")
    numbers, shape = np.asarray(leaves[0], float), seen.data.y.shape
    try:
        np.broadcast_to(numbers, shape)
    except ValueError as error:
        raise ValueError(
            f"loss={type(loss).__name__}(...) has numbers of the shape "
            f"{numbers.shape}, which do not broadcast to that of y, {shape}."
        ) from error
    trailing = shape if points is None else points
    is_of_each = numbers.ndim > len(trailing)
    return _Parts(
        own.likelihood, np.broadcast_to(numbers, shape if is_of_each else trailing)
    )


def counted(seen: Observed) -> Likelihood:
    """The likelihood of the points that count, flat."""
    numbers = seen.data.sigma
    assert seen.likelihood is not None
    if numbers is None:
        return seen.likelihood
    numbers = np.broadcast_to(numbers, np.shape(seen.data.y))
    return with_numbers(seen.likelihood, seen.counted(numbers))


def as_loss(loss: Any) -> Any:
    """What the solver is given for the loss, where data bring the numbers."""
    own = RowNumbers.of(loss)
    return loss if own is None else own.loss


def out_of_range(seen: Observed, best: Values) -> str | None:
    """The first mean at which a likelihood has no cost, in words; None: all have."""
    if seen.likelihood is None:
        return None
    cost, means = judged(seen, best).cost, seen.counted(best)
    wrong = np.flatnonzero(~np.isfinite(cost))
    if not wrong.size or not np.isfinite(means[wrong[0]]):
        return None
    return (
        f"the model is {means[wrong[0]]:.6g} at point {wrong[0]} of those that count, "
        f"where {seen.counted(seen.data.y)[wrong[0]]:.6g} was observed"
    )


# Of a result


class Judged(NamedTuple):
    """What a likelihood says of the points that count, flat."""

    cost: Rows
    constant: Rows  # cost + constant is minus the log-likelihood
    expected: Rows
    variance: Rows

    def pearson(self, y: Values) -> Values:
        """Pearson's residuals, from what is expected in its standard deviations."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (y - self.expected) / np.sqrt(self.variance)
        return np.where(y == self.expected, 0, ratio)

    def near_normal(self, likelihood: Likelihood, y: Values) -> Values:
        """The roots of deviances with a sign, which few counts are more normal by.

        Pearson's residuals of a likelihood that has no deviance.
        """
        if not likelihood.is_deviance:
            return self.pearson(y)
        return np.copysign(np.sqrt(np.maximum(2 * self.cost, 0)), y - self.expected)

    @property
    def log_likelihood(self) -> float:
        """Of all points."""
        return -float(np.sum(self.cost + self.constant))


def judged(seen: Observed, best: Values) -> Judged:
    """The points that count, with the model's values there."""
    return judged_by(counted(seen), seen.counted(best), seen.counted(seen.data.y))


def judged_by(likelihood: Likelihood, mean: Values, observed: Values) -> Judged:
    """Observed values of any shape, with their means."""
    return Judged(*computed(_judged, likelihood, mean, observed, is_hasty=False))


def _judged(
    likelihood: Likelihood, mean: Float[Array, "..."], observed: Float[Array, "..."]
) -> Judged:
    return Judged(
        cost=likelihood.cost(mean, observed),
        constant=likelihood.constant(observed),
        expected=likelihood.expected(mean) + jnp.zeros_like(mean),
        variance=likelihood.variance(mean) + jnp.zeros_like(mean),
    )


class ExpectedDeviance(NamedTuple):
    """The deviance that a right model would have, and its standard deviation."""

    value: Any  # a number, or a map of many fits
    deviation: Any


def expected_deviance(
    seen: Observed, best: Values, fitted: float
) -> ExpectedDeviance | None:
    """Of a fit; None where it is not known.

    The sum of the rows' expectations at the best fit (Kaastra, A&A 605, A51, 2017),
    less one for each parameter, by which a fit lowers it.

    Args:
        fitted: the number of parameters that varied and are at no bound.
    """
    moments = counted(seen).expected_deviance(seen.counted(best))
    if moments is None:
        return None
    return ExpectedDeviance(
        value=float(np.sum(moments.expectation)) - fitted,
        deviation=float(np.sqrt(np.sum(moments.variance))),
    )


# Drawn anew


def sampled(seen: Observed, best: Values, number: int, seed: int) -> Values:
    """Values of the points that count, (number, points), drawn from the likelihood."""
    return computed(_sampled, counted(seen), best, Static(number), np.uint32(seed))


def _sampled(
    likelihood: Likelihood, mean: Float[Array, " m"], number: Static, seed: Any
) -> Float[Array, "number m"]:
    key = jax.random.key(seed)
    means = jnp.broadcast_to(mean, (number.value, len(mean)))
    return likelihood.sample(key, means)
