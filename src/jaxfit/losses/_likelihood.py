"""Likelihoods: what a prediction costs, given what was observed.

A row of a likelihood is three functions of its mean: the cost, its slope, and the
expectation of its curvature h, which is the Fisher information of the mean. A solver
takes generalised Gauss-Newton steps, that is Fisher scoring: the row enters with
slope / √h for its residual and √h d mean for its row of the Jacobian, so that Jᵀr is
the gradient and JᵀJ the expected information.

The observed curvature is not used. For Poisson it is y / mean², which gives a pixel
without photons no weight at all (Laurence and Chromy, Nature Methods 7, 2010, use it).
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Key, Real

Elements = Float[Array, "*shape"]  # the means of rows
Rows = Float[Array, "..."]  # of what means and observed values broadcast to
Observed = Real[Array | np.ndarray, "..."]
Means = Real[Array | np.ndarray, "..."]  # on the host
Most = Float[Array, ""] | float  # times what a row shows of curvature is believed

MOST = 1e3  # or as many times as there are rows, where these are more


class LikelihoodTerms(NamedTuple):
    """What a solver takes from each row."""

    cost: Rows
    residual: Rows  # slope / root
    root: Rows  # of the expected curvature: the Jacobian is root * d mean
    # where `root` is less than that, the mean being at the edge of its range
    limited: Bool[Array, "..."] | None = None


class ExpectedDeviance(NamedTuple):
    """The moments of each row's deviance, twice its cost, at a given mean."""

    expectation: Float[np.ndarray, "..."]
    variance: Float[np.ndarray, "..."]


class Likelihood(eqx.Module):
    """A likelihood. Subclass it and define `cost` to make your own.

    All methods are elementwise, and compute in the dtype of the mean. What a subclass
    leaves out is derived from `cost` by JAX.

    An own one needs `curvature` too, unless its cost is linear in what was observed, as
    it is in exponential families.
    """

    is_deviance: ClassVar[bool] = True  # the cost is half a deviance: 0 at best
    has_positive_mean: ClassVar[bool] = False  # a mean below zero cannot be
    has_unit: ClassVar[bool] = True  # one is the size of a standard error

    def cost(self, mean: Elements, observed: Observed) -> Rows:
        """Minus the log-likelihood, up to what `observed` alone decides.

        It is half the deviance wherever there is a saturated model. Outside the range
        of the mean it is NaN or infinite, which refuses a step.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define cost(self, mean, observed), minus the "
            "log-likelihood of each row, elementwise."
        )

    def slope(self, mean: Elements, observed: Observed) -> Rows:
        """The derivative of the cost by the mean."""
        ones = jnp.ones_like(mean)
        return jax.jvp(lambda m: self.cost(m, observed), (mean,), (ones,))[1]

    def curvature(self, mean: Elements, observed: Observed) -> Rows:
        """The expectation of the cost's second derivative by the mean.

        By default that derivative is taken where `observed` is the mean, which is its
        expectation wherever the cost is linear in what was observed.
        """
        ones = jnp.ones_like(mean)
        return jax.jvp(lambda m: self.slope(m, mean), (mean,), (ones,))[1]

    def evaluate(
        self, mean: Elements, observed: Observed, most: Most = MOST
    ) -> LikelihoodTerms:
        """Cost, residual and root of each row; residual * root is the slope.

        Where the curvature is not a positive number, the squared slope stands in for
        it, whose expectation it is. Where it is more than `most` times what both
        squared slope and observed curvature are, the mean has come to the edge of its
        range, and no more than that is taken: such a row would hold up a fit as a wall
        does.

        Args:
            most: infinite where the fit is over, and the whole curvature asked for.
        """
        ones = jnp.ones_like(mean)
        slope, second = jax.jvp(lambda m: self.slope(m, observed), (mean,), (ones,))
        curvature = jnp.broadcast_to(self.curvature(mean, observed), slope.shape)
        is_usable = (curvature > 0) & (curvature < jnp.inf)
        expected = jnp.where(is_usable, curvature, 1)
        is_limit = jnp.asarray(most) < jnp.inf
        shown = jnp.maximum(slope * slope, jnp.abs(second))
        seen = jnp.where(is_limit, most, 1).astype(shown.dtype) * shown / expected
        limited = is_usable & (seen < 1) & is_limit
        root = jnp.sqrt(expected * jnp.where(limited, jnp.maximum(seen, 1e-16), 1))
        return LikelihoodTerms(
            cost=self.cost(mean, observed),
            residual=jnp.where(is_usable, slope / root, jnp.sign(slope)),
            root=jnp.where(is_usable, root, jnp.abs(slope)),
            limited=limited,
        )

    def constant(self, observed: Observed) -> Rows:
        """What the cost leaves out: cost + constant is minus the log-likelihood."""
        return jnp.zeros_like(floating(observed))

    def expected(self, mean: Elements) -> Rows:
        """The expectation of what is observed."""
        return mean

    def variance(self, mean: Elements) -> Rows:
        """The variance of what is observed, for Pearson's residuals.

        By default 1 / curvature, which it is in exponential families whose parameter is
        their mean.
        """
        return 1 / self.curvature(mean, mean)

    def expected_deviance(self, mean: Means) -> ExpectedDeviance | None:
        """The moments of twice the cost at that mean, on the host; None: not known."""
        return None

    def sample(self, key: Key[Array, ""] | Array, mean: Elements) -> Rows:
        """Random values that could be observed at that mean."""
        raise NotImplementedError(
            f"{type(self).__name__} must define sample(self, key, mean), which returns "
            "random observed values, to be drawn from."
        )

    def problem_with(self, observed: Observed) -> str | None:
        """A sentence about the first observed value that cannot be; None if all can."""
        observed = np.asarray(observed)
        return told(self, observed, ~np.isfinite(observed), "give finite numbers")


class Prediction(eqx.Module):
    """What a model expects beside what was observed, in place of residuals.

    Args:
        mean: what the model expects, an array of any shape.
        observed: what was observed, of the same shape or one that broadcasts to it.
        likelihood: one whose numbers come with these data, as `Binomial(trials)`;
            None is that passed as `loss=`.
    """

    mean: Any
    observed: Any
    likelihood: Likelihood | None = None


def told(
    likelihood: Likelihood, observed: np.ndarray, is_bad: np.ndarray, advice: str
) -> str | None:
    """A sentence about the first value that is bad, if one is."""
    is_bad = np.asarray(is_bad)
    if not is_bad.any():
        return None
    first = np.unravel_index(int(np.argmax(is_bad)), is_bad.shape)
    place = ", ".join(str(int(index)) for index in first)
    others = int(is_bad.sum()) - 1
    more = f" and {others} more like it" if others else ""
    return (
        f"{type(likelihood).__name__}: observed[{place}] is {observed[first]}{more}; "
        f"{advice}, or mask it."
    )


def judge(
    likelihood: Likelihood, name: str, value: Any, allows_zero: bool = False
) -> None:
    """Raise an error if a number of a likelihood, unless traced, is not positive."""
    if isinstance(value, Tracer):
        return
    numbers = np.asarray(value)
    if numbers.dtype.kind in "iuf":
        is_good = (numbers >= 0 if allows_zero else numbers > 0) & (numbers < np.inf)
        if is_good.all():
            return
        value = numbers[~is_good].flat[0].item()
    least = "of at least zero" if allows_zero else "above zero"
    raise ValueError(
        f"{type(likelihood).__name__}: {name} is {value!r}; give a finite number "
        f"{least}, or an array of them that broadcasts to the rows."
    )


def like(mean: Elements, values: Any) -> Rows:
    """Values as an array of the mean's dtype."""
    return jnp.asarray(values, mean.dtype)


def floating(observed: Observed) -> Rows:
    """Observed values as floating numbers, in their own dtype where they are so."""
    is_floating = jnp.issubdtype(jnp.result_type(observed), jnp.floating)
    return jnp.asarray(observed) if is_floating else jnp.asarray(observed, float)
