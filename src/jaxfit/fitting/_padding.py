"""Points of weight zero, so that data of few lengths stand for data of all."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._scipy.observations import bucket, padded_points
from jaxfit.fitting._problem import Problem


class FitInputs(NamedTuple):
    """What a program is given of each data set but for x; None for nothing."""

    y: Any = None
    sigma: Any = None
    weights: Any = None  # zero: does not count
    bounds: Any = None
    x0: Any = None
    known: Any = None  # starts by name, of parameters that are not to be guessed

    @property
    def axes(self) -> "FitInputs":
        """The axis of each, 0, if these are what differs among the fits."""
        return FitInputs(*(0 if jax.tree.leaves(part) else None for part in self))


EVERYTHING = FitInputs(y=True, sigma=True, weights=True, bounds=True, x0=True)


def padded_length(problem: Problem, points: int, is_for_few: bool) -> int:
    """To how many points data are padded: much for few fits, little for many."""
    if not problem.is_pointwise or points == 0:
        return points
    if is_for_few:
        return bucket(points)
    step = 1 << max(points.bit_length() - 4, 0)
    return -(-points // step) * step


class Padding(NamedTuple):
    """Points of a shape, as so many in a row where each stands for itself."""

    problem: Problem
    shape: tuple[int, ...]
    length: int

    @property
    def is_needed(self) -> bool:
        """Whether there is a row of points."""
        return self.problem.is_pointwise

    @property
    def is_longer(self) -> bool:
        """Whether points are added."""
        return self.length != math.prod(self.shape)

    def points(self, x: PyTree) -> PyTree:
        """The coordinates, padded."""
        if not self.is_needed:
            return x
        return padded_points(x, self.shape, self.length)

    def errors(self, sigma_x: tuple | None) -> tuple | None:
        """The errors of coordinates, padded."""
        return None if sigma_x is None else jax.tree.map(self.of, sigma_x)

    def of(self, leaf: Any, fill: float | None = None) -> Any:
        """One vector of points for each; the last is repeated, or a number."""
        if not self.is_needed:
            return leaf
        leaf = np.asarray(leaf)
        lead = leaf.shape[: max(leaf.ndim - len(self.shape), 0)]
        points = math.prod(self.shape)
        flat = np.broadcast_to(leaf, (*lead, *self.shape)).reshape(*lead, points)
        extra = self.length - flat.shape[-1]
        if extra == 0:
            return flat
        last = flat[..., -1:] if fill is None else np.full_like(flat[..., :1], fill)
        return np.concatenate([flat, np.repeat(last, extra, axis=-1)], axis=-1)

    def each(self, part: FitInputs) -> FitInputs:
        """A part of the data sets, with what is points padded."""
        fills = {"y": None, "sigma": 1.0, "weights": 0.0}
        padded = {
            name: np.asarray(self.of(value, fill), float)
            for name, fill in fills.items()
            if (value := getattr(part, name)) is not None
        }
        return part._replace(**padded)


class Parted(NamedTuple):
    """The inputs of fits, by whether they differ among them; None in the other's."""

    each: FitInputs
    shared: FitInputs

    @classmethod
    def of(cls, whole: FitInputs, is_each: FitInputs, pad: Padding) -> "Parted":
        """The inputs in two; those that are shared are padded."""

        def of_kind(is_wanted: bool) -> FitInputs:
            def part(is_own: Any, subtree: PyTree) -> PyTree:
                chosen = bool(is_own) is is_wanted
                return jax.tree.map(lambda leaf: leaf if chosen else None, subtree)

            return jax.tree.map(part, is_each, whole, is_leaf=lambda node: node is None)

        return cls(of_kind(True), pad.each(of_kind(False)))

    @property
    def whole(self) -> FitInputs:
        """The inputs together."""
        return eqx.combine(self.each, self.shared)
