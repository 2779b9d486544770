"""Robust fits that find the scale of their residuals themselves.

Huber's convex form (Huber and Dutter, COMPSTAT 1974; Huber, Robust Statistics, 1981,
section 7.7): parameters and scale s minimise

    Q(x, s) = sum of s ρ(r / s) + a s,    a = (m - n) E[χ(Z)],    χ(t) = t ρ'(t) - ρ(t)

with ρ(t) = t²/2 up to k and k |t| - k²/2 beyond, so that s is consistent for normal
errors; n are the parameters that are free. Q is a sum over rows in which s is one
parameter more: chunks and devices add it up as they do any cost. A row enters it twice,
along r with the weight of iterated least squares, min(1, k / |t|) / s, and along s with
the expected curvature.

The fit is then done with that scale as it is, from there, which gives the usual
solution. A redescending loss with a free scale has two roots; Tukey's takes Huber's.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxfit._core.options import DEFAULTS, Options
from jaxfit._core.parameters import Parameters
from jaxfit._core.solution import Solution
from jaxfit._rows.linearization import Linearization
from jaxfit._rows.table import unwrap_shared
from jaxfit.losses import Huber, Likelihood, LikelihoodTerms, Loss, Prediction
from jaxfit.losses._likelihood import MOST, Most

LEAST = 1e-10  # of the scale, in that of the residuals at the start

K = Huber.tuning
OUTSIDE = math.erfc(K / math.sqrt(2))  # of a normal distribution, beyond K
INSIDE = 1 - OUTSIDE - 2 * K * math.exp(-K * K / 2) / math.sqrt(2 * math.pi)  # E[Z²]
CHI = 0.5 * (INSIDE + K * K * OUTSIDE)  # E[χ(Z)]


class Fit(NamedTuple):
    """A robust fit, its scale not known."""

    fn: Callable
    x0: PyTree
    data: PyTree
    weights: PyTree
    bounds: Any
    loss: Loss | Likelihood | None
    options: Options | None


class Ways(NamedTuple):
    """How the stages of such a fit are run, alone or for many fits at once."""

    plain: Callable[[Fit], Solution]  # the fit as it is asked
    with_scale: Callable[[Fit], Solution]  # of (x, s), data (data, weights, numbers)
    again: Callable[[Fit], Solution]  # from where another has ended
    number: Callable[[Any], Any]  # one number of each fit, as a leaf of data
    weighted: Callable[[PyTree, Any], PyTree]  # weights times a number of each fit


def with_own_scale(fit: Fit, ways: Ways, free: Any) -> Solution:
    """The solution of a robust fit whose loss has the scale "auto".

    Args:
        free: how many parameters are.
    """
    options = DEFAULTS if fit.options is None else fit.options
    one_trip = dataclasses.replace(options, max_steps=1)
    start = ways.plain(fit._replace(loss=None, options=one_trip))
    cost = jax.lax.stop_gradient(jnp.asarray(start.cost))
    count = jnp.asarray(start.count).astype(cost.dtype)
    size = jnp.sqrt(2 * cost / jnp.maximum(count, 1))
    size = jnp.where(size > 0, size, 1)
    share = CHI * jnp.maximum(1 - free / jnp.maximum(count, 1), 0)
    numbers = ways.number(share), ways.number(size)
    joint = ways.with_scale(
        fit._replace(
            fn=Scaled(fit.fn),
            x0=(fit.x0, jnp.ones((), size.dtype)),
            data=(fit.data, fit.weights, numbers),
            weights=None,
            bounds=_with_scale(fit.bounds),
            loss=RowWithScale(0.0, 0.0),
            options=_options_with_scale(options),
        )
    )
    x, relative = joint.x
    kind: Any = type(fit.loss)
    scale = kind.tuning * size * relative
    last = ways.again(
        fit._replace(
            x0=x,
            weights=ways.weighted(fit.weights, scale**-2),
            loss=kind(1.0),
        )
    )
    ended = jnp.where(joint.status > 0, last.status, joint.status)
    return dataclasses.replace(
        last,
        status=ended,
        steps=joint.steps + last.steps,
        nfev=start.nfev + joint.nfev + last.nfev,
        linearization=_in_units(last.linearization, scale**2),
        loss_scale=scale,
    )


def has_own_scale(loss: Any) -> bool:
    """Whether a loss is to find its scale."""
    return isinstance(loss, Loss) and isinstance(loss.scale, str)


def number_of_free(x0: PyTree, bounds: Any) -> Any:
    """How many parameters of a fit are free."""
    parameters = Parameters(x0)
    flat = parameters.bounds(bounds)
    if flat is None:
        return parameters.size
    return jnp.sum(flat.free).astype(parameters.dtype)


def _options_with_scale(options: Options) -> Options:
    """Options of the fit of (x, s): the derivative of s is known, its size is one."""
    x_scale = options.x_scale
    return dataclasses.replace(
        options,
        x_scale="jac" if x_scale is None else (x_scale, 1.0),
        jac=None if callable(options.jac) else options.jac,
    )


def _with_scale(bounds: Any) -> tuple:
    lower, upper = (-jnp.inf, jnp.inf) if bounds is None else bounds
    return (lower, LEAST), (upper, jnp.inf)


def _in_units(lin: Linearization, factor: Float[Array, "*batch"]) -> Linearization:
    """A linearization, or one of each fit, whose costs are multiplied."""

    def scaled(lin: Linearization, factor: Float[Array, ""]) -> Linearization:
        terms = lin.terms
        assert terms is not None
        assert terms.gram is not None
        terms = dataclasses.replace(
            terms, gram=factor * terms.gram, cost=factor * terms.cost
        )
        return dataclasses.replace(lin, normal=factor * lin.normal, terms=terms)

    for _ in factor.shape:
        scaled = jax.vmap(scaled)
    return scaled(lin, factor)


class Scaled:
    """Residuals and their scale s, as a function of (x, s)."""

    def __init__(self, fn: Callable):
        self.fn = fn

    def __call__(self, point: tuple, data: tuple) -> PyTree:
        (x, s), (data, weights, numbers) = point, data
        share, size = unwrap_shared(numbers)
        residual = jax.tree.map(jnp.asarray, self.fn(x, data))
        if weights is None:
            weights = 1.0
        weights = jax.tree.broadcast(weights, residual)

        def row(r: Array, w: Any) -> Prediction:
            w = jnp.broadcast_to(jnp.asarray(w, s.dtype), r.shape)
            if jnp.issubdtype(r.dtype, jnp.complexfloating):
                r, w = jnp.stack([r.real, r.imag], -1), jnp.stack([w, w], -1)
            counts = w != 0
            r = jnp.where(counts, jnp.sqrt(w) * r.astype(s.dtype) / size, 0)
            mean = jnp.stack([r, jnp.broadcast_to(s, r.shape)], -1)
            flags = jnp.stack([counts, counts], -1).astype(s.dtype)
            likelihood = RowWithScale(flags * share, flags)
            return Prediction(mean, jnp.zeros_like(mean), likelihood)

        return jax.tree.map(row, residual, weights)


class RowWithScale(Likelihood):
    """Q of a row, whose mean is a pair of residual and scale, one after the other.

    Args:
        share: a / m; zero for a row that does not count.
        counts: 1, or 0.
    """

    has_unit: ClassVar[bool] = False
    share: Any
    counts: Any

    def cost(self, mean: Float[Array, " k"], observed: Any) -> Float[Array, " k"]:
        pairs = _Pairs.of(mean, self)
        rho = 0.5 * pairs.psi**2 + K * (jnp.abs(pairs.t) - jnp.abs(pairs.psi))
        cost = pairs.s * rho + pairs.share * pairs.s
        return _joined(jnp.where(pairs.counts, cost, 0), jnp.zeros_like(cost))

    def evaluate(
        self, mean: Float[Array, " k"], observed: Any, most: Most = MOST
    ) -> LikelihoodTerms:
        pairs = _Pairs.of(mean, self)
        weight = K / jnp.maximum(jnp.abs(pairs.t), K)
        root = jnp.sqrt(weight / pairs.s)
        root_of_scale = jnp.sqrt(INSIDE / pairs.s)
        slope = pairs.share - 0.5 * pairs.psi**2
        zero = jnp.zeros_like(root)

        def counted(values: Array) -> Array:
            return jnp.where(pairs.counts, values, zero)

        return LikelihoodTerms(
            cost=self.cost(mean, observed),
            residual=_joined(pairs.psi / root, counted(slope / root_of_scale)),
            root=_joined(counted(root), counted(root_of_scale)),
        )


class _Pairs(NamedTuple):
    """Rows as pairs."""

    s: Array
    t: Array  # r / s
    psi: Array  # t, cut off at K
    share: Array
    counts: Array

    @classmethod
    def of(cls, mean: Float[Array, " k"], row: RowWithScale) -> "_Pairs":
        """The rows of a vector."""
        pairs = jnp.reshape(mean, (-1, 2))
        share, counts = (
            jnp.broadcast_to(jnp.asarray(number, mean.dtype), mean.shape)[::2]
            for number in (row.share, row.counts)
        )
        s = pairs[:, 1]
        t = pairs[:, 0] / s
        return cls(s, t, jnp.clip(t, -K, K), share, counts > 0)


def _joined(first: Array, second: Array) -> Float[Array, " k"]:
    return jnp.reshape(jnp.stack([first, second], axis=-1), -1)
