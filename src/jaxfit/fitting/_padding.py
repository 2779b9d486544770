"""Points of weight zero, so that data of few lengths stand for data of all."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._scipy.observations import bucket, padded_points
from jaxfit.fitting._problem import Problem


class Task(NamedTuple):
    """What a program is given of each data set but for x; None for nothing."""

    y: Any
    sigma: Any = None
    weights: Any = None  # zero: does not count
    bounds: Any = None
    x0: Any = None
    known: Any = None  # starts by name, of parameters that are not to be guessed


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
        return self.problem.is_pointwise

    def points(self, x: PyTree) -> PyTree:
        """Coordinates."""
        if not self.is_needed:
            return x
        return padded_points(x, self.shape, self.length)

    def of(self, leaf: Any, fill: Any = None) -> Any:
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

    def each(self, part: Task) -> Task:
        """What is points of a part of the data sets, padded."""
        fills = {"y": None, "sigma": 1, "weights": 0}
        padded = {
            name: np.asarray(self.of(value, fill), float)
            for name, fill in fills.items()
            if (value := getattr(part, name)) is not None
        }
        return part._replace(**padded)


def parted(whole: Task, is_each: Task, pad: Padding) -> tuple[Task, Task]:
    """What differs among the fits, and what they share, padded."""

    def of_kind(is_wanted):
        def part(own, subtree):
            chosen = bool(own) is is_wanted
            return jax.tree.map(lambda leaf: leaf if chosen else None, subtree)

        return jax.tree.map(part, is_each, whole, is_leaf=_is_none)

    return of_kind(True), pad.each(of_kind(False))


def _is_none(node: Any) -> bool:
    return node is None
