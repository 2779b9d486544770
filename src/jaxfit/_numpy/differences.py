"""Derivatives by differences, of what only NumPy can compute.

SciPy's rules with SciPy's steps, |step| = ε^(1/2) max(1, |p|) for "2-point", ε^(1/3)
max(1, |p|) for "3-point", where ε is that of what the function returns, but with the
size of the start in place of 1 where it is known (Dennis and Schnabel 1983, section
5.4: the typical size of p).
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree, Shaped

EPSILON = float(np.finfo(float).eps)
EXPONENTS = {"2-point": 1 / 2, "3-point": 1 / 3, "cs": 1 / 2}
# A predicted gain below so much of the cost is lost in the noise of differences: it is
# that of a step of 1e-7 standard errors for each root of the number of points.
FTOL = 1e-14


class Differences(NamedTuple):
    """How a model is differentiated that only NumPy can compute."""

    rule: str = "2-point"  # "3-point", "cs"
    relative_step: Any = None  # SciPy's diff_step
    lower: Any = None  # bounds, outside of which nothing is evaluated
    upper: Any = None
    typical: Any = None  # sizes of the parameters
    is_backward: bool = False  # the steps go the other way
    epsilon: float = EPSILON  # of the function's precision

    @property
    def ftol(self) -> float:
        """What of the cost is lost in their noise."""
        return FTOL * self.epsilon / EPSILON

    def linearized(
        self, values: Callable[[np.ndarray], PyTree], p: Float[np.ndarray, " n"]
    ) -> tuple[PyTree, PyTree]:
        """Values at p and, with a last axis, their derivatives; NaN if they are not
        finite."""
        result = values(p)
        at_p = _joined(result)
        matrix = np.full((at_p.size, p.size), np.nan, at_p.dtype)
        if np.isfinite(at_p).all():
            rule = _RULES[self.rule]
            for k, (value, typical, relative, *bounds) in enumerate(self._of_each(p)):
                step = self._step(value, typical, relative)
                room = _Room(bounds[0] - value, bounds[1] - value)
                matrix[:, k] = rule(_along(values, p, k), at_p, step, room)
        return result, _apart(matrix, result)

    def of(self, numbers: list[int], places: list[int]) -> "Differences":
        """For some of the parameters, where they are single numbers.

        Args:
            numbers: the places of all that are, for which it was made.
            places: of those that move.
        """
        if not set(places) <= set(numbers):
            return Differences(self.rule, self.relative_step, epsilon=self.epsilon)
        chosen = [numbers.index(place) for place in places]

        def among(given: Any) -> Any:
            is_each = np.shape(given) == (len(numbers),)
            return np.asarray(given)[chosen] if is_each else given

        return self._replace(
            relative_step=among(self.relative_step),
            lower=among(self.lower),
            upper=among(self.upper),
            typical=among(self.typical),
        )

    def _of_each(self, p: Float[np.ndarray, " n"]) -> Iterator[tuple[float, ...]]:
        """Of each parameter: value, typical size, relative step, bounds."""

        def each(given: Any, otherwise: float) -> Iterator[float]:
            if given is None:
                return itertools.repeat(otherwise)
            array = np.asarray(given, float)
            if array.shape == p.shape:
                return iter(array.tolist())
            return itertools.repeat(otherwise if array.ndim else float(array))

        return zip(
            p.tolist(),
            each(self.typical, 0.0),
            each(self.relative_step, 0.0),
            each(self.lower, -math.inf),
            each(self.upper, math.inf),
            strict=False,
        )

    def _step(self, value: float, typical: float, relative: float) -> float:
        """SciPy's step, away from zero."""
        size = abs(value)
        step = relative * size
        if value + step == value:
            step = self.epsilon ** EXPONENTS[self.rule] * max(typical or 1.0, size)
        step = -step if (value < 0) != self.is_backward else step
        return (value + step) - value  # what it is after rounding


def _along(values: Callable, p: np.ndarray, k: int) -> Callable[[complex], np.ndarray]:
    """The values where one parameter is changed."""

    def changed(change: complex) -> np.ndarray:
        moved = p.astype(type(change))
        moved[k] += change
        return _joined(values(moved))

    return changed


def _joined(tree: PyTree) -> Shaped[np.ndarray, " m"]:
    """All arrays as one vector."""
    if type(tree) is np.ndarray:
        return tree.ravel()
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def _apart(matrix: np.ndarray, like: PyTree) -> PyTree:
    """The rows of a matrix for each of the arrays that were joined."""
    n = matrix.shape[1]
    if type(like) is np.ndarray:
        return matrix.reshape(*like.shape, n)
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = zip(np.split(matrix, ends[:-1]), leaves, strict=True)
    slopes = [part.reshape(*leaf.shape, n) for part, leaf in parts]
    return jax.tree.unflatten(structure, slopes)


class _Room(NamedTuple):
    """How far a parameter may move."""

    below: float
    above: float

    def holds(self, *changes: float) -> bool:
        """Whether all of these changes stay inside."""
        return all(self.below <= change <= self.above for change in changes)

    def fitted(self, step: float, times: int = 1) -> float:
        """The step, turned round or shortened where so many of it would leave it."""
        if self.holds(times * step):
            return step
        if self.holds(-times * step):
            return -step
        larger = self.above if self.above >= -self.below else self.below
        return larger / times or step  # a fixed parameter does not move anyway


def _forward(along: Callable, at_p: np.ndarray, step: float, room: _Room) -> Any:
    step = room.fitted(step)
    return (along(step) - at_p) / step


def _central(along: Callable, at_p: np.ndarray, step: float, room: _Room) -> Any:
    if room.holds(step, -step):
        return (along(step) - along(-step)) / (2 * step)
    step = room.fitted(step, 2)
    return (4 * along(step) - 3 * at_p - along(2 * step)) / (2 * step)


def _complex(along: Callable, at_p: np.ndarray, step: float, room: _Room) -> Any:
    return along(1j * step).imag / step


_RULES = {"2-point": _forward, "3-point": _central, "cs": _complex}
