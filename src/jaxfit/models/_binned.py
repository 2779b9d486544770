"""Models integrated over bins: what a histogram, a detector or a shutter counts.

A model of the library may know its own integral; all else is integrated by Gauss and
Legendre's rule in each bin, which is exact for polynomials of degree 2 k - 1 with k
nodes, and so for any curve whose structure is not much narrower than a bin.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxfit._numpy.either import Real, Values, argsort, erf, erfc, xp
from jaxfit.models._model import Interval, Model, Params

ORDER = 5  # nodes of a bin, for each coordinate

Nodes = tuple[np.ndarray, np.ndarray]  # in (-1, 1), and their weights


@functools.cache
def legendre(order: int) -> Nodes:
    """The nodes of Gauss and Legendre's rule, and their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    return nodes, weights


def by_nodes(function: Callable, lower: Real, upper: Real, order: int = ORDER) -> Real:
    """The integral of a function of one coordinate, by its values at the nodes."""
    nodes, weights = legendre(order)
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    terms = [
        float(weight) * function(middle + float(node) * half)
        for node, weight in zip(nodes, weights, strict=True)
    ]
    return half * functools.reduce(xp.add, terms)


def normal_mass(a: Real, b: Real) -> Real:
    """The integral of exp(-t²) from a to b, a < b, without cancellation.

    By erf, in the tails by erfc of the sizes; and where a and b are so near that these
    cancel by the nodes, whose error is below rounding there.
    """
    is_near = (b - a) * (1 + xp.abs(a + b)) < 0.25
    few = by_nodes(lambda t: xp.exp(-(t**2)), a, xp.where(is_near, b, a))
    above, below = erfc(a) - erfc(b), erfc(-b) - erfc(-a)
    whole = xp.where(a > 0, above, xp.where(b < 0, below, erf(b) - erf(a)))
    return xp.where(is_near, few, 0.5 * math.sqrt(math.pi) * whole)


def decayed(rate: Real, width: Real) -> Real:
    """The integral of exp(-rate t) from 0 to a width, for any rate, also zero."""
    z = rate * width
    is_near = xp.abs(z) < 0.5
    few = by_nodes(lambda t: xp.exp(-t * xp.where(is_near, z, 0)), 0 * z, 0 * z + 1)
    far = xp.where(is_near, 1, z)
    return width * xp.where(is_near, few, -xp.expm1(-far) / far)


class Binned(Model):
    """A model's integrals over bins.

    Its x is (lower, upper), the edges of each bin; of several coordinates (lower1,
    upper1, lower2, upper2, ...), which broadcast to the shape of the bins.

    Args:
        base: the model, a density.
    """

    base: Model

    @property
    def own_names(self) -> tuple[str, ...]:
        return self.base.names

    @property
    def bounds(self) -> dict[str, Interval]:
        return self.base.bounds

    @property
    def label(self) -> str:
        return f"{self.base.label} over bins"

    @property
    def plain(self) -> Any:
        """What an error about tracing should name."""
        return getattr(self.base, "plain", self.base)

    @property
    def parts(self) -> tuple[Model, ...]:
        return tuple(Binned(part) for part in self.base.parts)

    @property
    def starts_from_data(self) -> bool:
        return self.base.starts_from_data

    @property
    def starts_in_numpy(self) -> bool:
        return self.base.starts_in_numpy

    @property
    def is_pointwise(self) -> bool:
        return self.base.is_pointwise

    def evaluate(self, x: PyTree, parameters: Params) -> Any:
        integrals = [_integral(part, x, parameters) for part in self.base.parts]
        return functools.reduce(xp.add, integrals)

    def derived(self, parameters: Params, origin: Any = None) -> dict[str, Any]:
        return self.base.derived(parameters)

    def moved(self, parameters: Params, origin: Any) -> dict[str, Any] | None:
        return None  # edges are counted from where they are

    def guessed_start(self, x: PyTree, y: Values, known: Params) -> dict[str, Any]:
        """That of the model, from the bins' middles and the density in them."""
        shape = np.broadcast_shapes(*map(np.shape, x))
        edges = [xp.ravel(xp.broadcast_to(leaf, shape)) for leaf in x]
        sides = list(zip(edges[::2], edges[1::2], strict=True))
        density = functools.reduce(
            xp.divide, [upper - lower for lower, upper in sides], y
        )
        middles = [0.5 * (lower + upper) for lower, upper in sides]
        if len(middles) > 1:
            return self.base.guessed_start(tuple(middles), density, known)
        order = argsort(middles[0])
        return self.base.guessed_start(middles[0][order], density[order], known)


def points_of(x: Sequence[Any], order: int = ORDER) -> tuple[Any, Any]:
    """Nodes of all bins, a vector for each coordinate, and weights (..., nodes).

    Of one coordinate they ascend as the bins do.
    """
    sides = list(zip(x[::2], x[1::2], strict=True))
    nodes, weights = legendre(order)
    grids = np.meshgrid(*[nodes] * len(sides), indexing="ij")
    shares = np.meshgrid(*[weights] * len(sides), indexing="ij")
    share = functools.reduce(np.multiply, shares).ravel()
    halves = [0.5 * (upper - lower)[..., None] for lower, upper in sides]
    size = functools.reduce(xp.multiply, halves)
    places = [
        0.5 * (lower + upper)[..., None] + half * grid.ravel()
        for (lower, upper), half, grid in zip(sides, halves, grids, strict=True)
    ]
    shape = np.broadcast_shapes(*map(np.shape, places))
    flat = tuple(xp.ravel(xp.broadcast_to(place, shape)) for place in places)
    return (flat[0] if len(flat) == 1 else flat), size * share


def _integral(part: Model, x: Sequence[Any], parameters: Params) -> Any:
    """The integrals of a model over bins: its own, or by nodes."""
    if len(x) == 2 and knows_integral(part):
        return part.integral(*x, **part.without_prefix(parameters))
    points, weights = points_of(x)
    values = xp.asarray(part.evaluate(points, parameters))
    if values.ndim == 0:
        return xp.sum(values * weights, axis=-1)
    return xp.sum(xp.reshape(values, np.shape(weights)) * weights, axis=-1)


def knows_integral(model: Model) -> bool:
    """Whether its integral is that of its function, and not of one it replaced."""
    order = type(model).__mro__

    def depth(name: str) -> int:
        return next(k for k, kind in enumerate(order) if name in vars(kind))

    is_defined = type(model).integral is not Model.integral
    return is_defined and depth("integral") <= depth("function")
