"""Peaks beside each other: what they look like together, and one step to better places.

A peak is a centre and a full width at half maximum here, whatever its kind. Heights and
background are at their optimum wherever the peaks are (Golub and Pereyra, SIAM J.
Numer. Anal. 10, 1973), and a step of Levenberg and Marquardt moves centres and widths.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxfit._numpy.either import (
    Scalar,
    Values,
    array_like,
    chosen,
    is_numpy,
    solved,
    xp,
)
from jaxfit.models._projection import Remainder, extent, with_known, without

WIDTHS = 9  # of windows, from a few points to a third of the range
NARROW = 0.5  # power of the width by which narrow windows are preferred
WINDOW = 1.7  # a peak's full width at half maximum, in half windows that suit it best
RIDGE = 1e-5  # on heights, so that none cancels another's
DIFFERENCE = 1e-4  # of centre and width, in widths, for derivatives
LONGEST = 0.7  # step of a centre, in widths, and of a logarithm of a width


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """Peaks that differ in their numbers alone."""

    shaped: Callable  # (center, fwhm) -> parameters (S,), but for the linear one
    function: Callable  # (x, **parameters) -> values
    linear: str
    known: tuple[str, ...]  # parameters that have values, each peak its own

    @functools.cached_property
    def shapes(self) -> int:
        """How many shapes of one width it has."""
        parameters = self.shaped(xp.zeros(()), xp.ones(()))
        return len(next(iter(parameters.values())))

    def unit(self, x: Any, **parameters: Any) -> Any:
        """The values of a peak whose linear parameter is 1."""
        return self.function(x, **{self.linear: 1.0}, **parameters)

    def parameters(
        self, known: Mapping[str, Any], center: Scalar, fwhm: Scalar, shape: Any
    ) -> dict[str, Any]:
        """The parameters of one peak, but for its height."""
        shapes = with_known(self.shaped(center, fwhm), known)
        return {
            name: array_like(shape, values)[shape]
            for name, values in shapes.items()
            if name != self.linear
        }


class Places(NamedTuple):
    """Where all peaks are."""

    center: Float[Any, " n"]
    fwhm: Float[Any, " n"]
    shape: Int[Any, " n"]  # which of those that its kind has for one width
    used: Bool[Any, " n"]  # false for one that has no place yet


class State(NamedTuple):
    """Places with the normal equations there, for heights, centres and widths."""

    places: Places
    columns: Float[Any, "n m"]  # the peaks, at right angles to the basis, of size 1
    inverse: Float[Any, "n n"]  # of their Gram
    heights: Float[Any, " n"]  # of the columns
    scale: Float[Any, " n"]  # a column in peaks of height 1
    gram: Float[Any, "3n 3n"]
    gradient: Float[Any, " 3n"]
    cost: Scalar
    damping: Scalar

    @property
    def use(self) -> Float[Any, " n"]:
        """What the data lose without each peak."""
        return self.heights**2 / xp.diagonal(self.inverse)


class Windows(NamedTuple):
    """Windows of several widths about every point, in which a peak may be."""

    widths: Float[Any, " w"]
    before: Int[Any, "w m"]  # where the window about each point begins
    behind: Int[Any, "w m"]  # and ends
    weight: Float[Any, "w m"]  # of a window's sum squared, for what it explains

    def sums(self, rows: Float[Any, "k m"]) -> Float[Any, "k w m"]:
        """The sums of rows over all windows."""
        return _sums(rows, self.before, self.behind)


class Crowd(NamedTuple):
    """What is the same wherever the peaks are placed."""

    rest: Remainder
    y: Values  # at right angles to the basis
    low: Scalar
    span: Scalar
    least: Scalar  # distance of points
    windows: Windows
    known: dict[str, Float[Any, " n"]]  # zero where not known
    kinds: tuple[Kind, ...]  # of the peaks


def crowd_of(
    kinds: tuple[Kind, ...], known: Sequence[Mapping[str, Any]], rest: Remainder
) -> Crowd:
    """Peaks in what is left of the data.

    Args:
        kinds: of each peak.
        known: values by name, of each peak.
    """
    y = rest.orthogonal
    low, span = extent(rest.x)
    least = span / max(len(rest.x) - 1, 1)
    windows = _windows(rest, span, least)
    zero = xp.zeros((), y.dtype)
    table = {
        name: xp.stack([xp.asarray(values.get(name, zero)) for values in known])
        for name in sorted({name for values in known for name in values})
    }
    return Crowd(rest, y, low, span, least, windows, table, kinds)


def _windows(rest: Remainder, span: Scalar, least: Scalar) -> Windows:
    narrowest = xp.maximum(1.5 * least, span / 128)
    widths = xp.geomspace(narrowest, xp.maximum(span / 3, 2 * narrowest), WIDTHS)
    edges = rest.x + xp.stack([-widths, widths])[..., None] / WINDOW
    before = xp.searchsorted(rest.x, edges[0], side="left")
    behind = xp.searchsorted(rest.x, edges[1], side="right")

    # the square of a window at right angles to the basis: what its sum is judged by
    rows = xp.concatenate([rest.factor[None], rest.basis]) * rest.factor
    sums = _sums(rows, before, behind)
    squares = sums[0] - xp.sum(sums[1:] ** 2, axis=0)
    counts = squares > 0.05 * sums[0]
    weight = xp.where(counts, 1 / xp.where(counts, squares, 1), 0)
    weight = weight * (span / widths[:, None]) ** NARROW
    return Windows(widths, before, behind, weight)


def _sums(
    rows: Float[Any, "k m"], before: Int[Any, "w m"], behind: Int[Any, "w m"]
) -> Float[Any, "k w m"]:
    zero = xp.zeros((len(rows), 1), rows.dtype)
    sums = xp.concatenate([zero, xp.cumsum(rows, axis=1)], axis=1)
    return sums[:, behind] - sums[:, before]


def nowhere(crowd: Crowd) -> State:
    """A state without peaks, at which nothing was computed: any trial is accepted."""
    n, m, dtype = len(crowd.kinds), len(crowd.y), crowd.y.dtype
    zeros = xp.zeros(n, dtype)
    places = Places(
        center=crowd.known.get("center", zeros),
        fwhm=zeros + 1,
        shape=xp.zeros(n, int),
        used=xp.zeros(n, bool),
    )
    return State(
        places=places,
        columns=xp.zeros((n, m), dtype),
        inverse=xp.eye(n, dtype=dtype),
        heights=zeros,
        scale=zeros,
        gram=xp.eye(3 * n, dtype=dtype),
        gradient=xp.zeros(3 * n, dtype),
        cost=xp.asarray(np.inf, dtype),
        damping=xp.asarray(0.01, dtype),
    )


# Steps


def step(crowd: Crowd, state: State) -> State:
    """One trial, accepted if it leaves less of the data."""
    n, places = len(crowd.kinds), state.places

    # damped normal equations, in columns of size 1
    size = xp.sqrt(xp.diagonal(state.gram))
    size = xp.where(size > 0, size, 1)
    damping = xp.where(xp.arange(3 * n) < n, 1e-8, state.damping)
    matrix = state.gram / size / size[:, None] + xp.diag(damping)
    move = solved(matrix, state.gradient / size) / size
    move = xp.clip(xp.nan_to_num(move), -LONGEST, LONGEST)

    # centres and widths, not far beyond the data
    reach = 0.2 * crowd.span
    center = places.center + move[n : 2 * n] * places.fwhm
    low, high = crowd.low - reach, crowd.low + crowd.span + reach
    center = xp.clip(center, low, high)
    fwhm = places.fwhm * xp.exp(move[2 * n :])
    fwhm = xp.clip(fwhm, 0.8 * crowd.least, 0.6 * crowd.span)

    trial = places._replace(center=center, fwhm=fwhm)
    there = _normal_equations(crowd, trial, 0.3 * state.damping)
    here = state._replace(damping=5 * state.damping)
    return chosen(state.gram, there.cost < state.cost, there, here)


def _normal_equations(crowd: Crowd, places: Places, damping: Scalar) -> State:
    """Normal equations for heights, centres and widths, and what is left of y."""
    n, m = len(crowd.kinds), len(crowd.y)

    # the peaks and their differences by centre and width, at right angles to the basis
    near = jax.tree.map(
        lambda *leaves: xp.stack(leaves),
        places,
        places._replace(center=places.center + DIFFERENCE * places.fwhm),
        places._replace(fwhm=places.fwhm * (1 + DIFFERENCE)),
    )
    columns = _profiles(crowd, near)
    columns = xp.concatenate([columns[:1], (columns[1:] - columns[0]) / DIFFERENCE])
    columns = without(crowd.rest.basis, columns)

    # in units in which each peak has the size 1; one without a place has none
    size = xp.sqrt(xp.sum(columns[0] ** 2, axis=1))
    counts = places.used & (size > 0)
    scale = xp.where(counts, 1 / xp.where(counts, size, 1), 0)
    columns = (scale[:, None] * columns).reshape(3 * n, m)

    # heights at their optimum, and the derivatives there
    gram, images = xp.matmul(columns, columns.T), xp.matmul(columns, crowd.y)
    eye = xp.eye(n, dtype=size.dtype)
    inverse = solved(gram[:n, :n] + RIDGE * eye, eye)
    heights = xp.matmul(inverse, images[:n])
    along = xp.concatenate([xp.ones_like(heights), heights, heights])
    ridge = xp.where(np.arange(3 * n) < n, RIDGE, 0)
    return State(
        places=places,
        columns=columns[:n],
        inverse=inverse,
        heights=heights,
        scale=scale,
        gram=gram * along * along[:, None] + xp.diag(ridge),
        gradient=along * (images - xp.matmul(gram[:, :n], heights)),
        cost=xp.sum(crowd.y**2) - xp.sum(heights * images[:n]),
        damping=damping,
    )


def _profiles(crowd: Crowd, places: Places) -> Float[Any, "v n m"]:
    """All peaks of height 1, at several places each, (v, n)."""
    profiles_of = _profiles_in_numpy if is_numpy(crowd.y) else _profiles_in_jax
    rows: list = []
    order: list[int] = []
    for kind in dict.fromkeys(crowd.kinds):
        alike = np.array([k for k, other in enumerate(crowd.kinds) if other is kind])
        center, fwhm, shape = (leaf[:, alike] for leaf in places[:3])
        rows.append(profiles_of(crowd, kind, alike, center, fwhm, shape))
        order.extend(alike)
    values = xp.concatenate(rows, axis=1)
    if len(rows) > 1:
        values = values[:, np.argsort(order)]
    return xp.where(xp.isfinite(values), values * crowd.rest.factor, 0)


def _parameters(
    crowd: Crowd, kind: Kind, k: Any, center: Scalar, fwhm: Scalar, shape: Any
) -> dict[str, Any]:
    """The parameters of the k-th peak at a place, but for its height."""
    known = {name: crowd.known[name][k] for name in kind.known}
    return kind.parameters(known, center, fwhm, shape)


def _profiles_in_numpy(
    crowd: Crowd,
    kind: Kind,
    alike: Int[Any, " l"],
    center: Float[Any, "v l"],
    fwhm: Float[Any, "v l"],
    shape: Int[Any, "v l"],
) -> Float[Any, "v l m"]:
    places = (p.ravel() for p in np.broadcast_arrays(alike, center, fwhm, shape))
    each = [_parameters(crowd, kind, *place) for place in zip(*places, strict=True)]
    together = {
        name: np.array([parameters[name] for parameters in each]) for name in each[0]
    }
    size = *center.shape, 1
    together = {name: values.reshape(size) for name, values in together.items()}
    return kind.unit(crowd.rest.x, **together)


def _profiles_in_jax(
    crowd: Crowd,
    kind: Kind,
    alike: Int[Any, " l"],
    center: Float[Any, "v l"],
    fwhm: Float[Any, "v l"],
    shape: Int[Any, "v l"],
) -> Float[Any, "v l m"]:
    def profile(*place: Any) -> Values:
        return kind.unit(crowd.rest.x, **_parameters(crowd, kind, *place))

    return jax.vmap(jax.vmap(profile), (None, 0, 0, 0))(alike, center, fwhm, shape)
