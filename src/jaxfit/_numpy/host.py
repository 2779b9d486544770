"""A model that cannot be traced, as a function of JAX: NumPy itself computes it.

One question to the host gives its values and, where they are asked for, its derivatives
by differences.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PyTree

from jaxfit._numpy.differences import EPSILON, Differences
from jaxfit._numpy.either import is_numpy
from jaxfit._numpy.out_shape import OutShape
from jaxfit._programs.outside import Outside
from jaxfit.losses import Prediction

POINTS = 3  # that are remembered


class _Question(NamedTuple):
    """A call: its arguments but for the arrays, and by which of these to derive."""

    structure: Any
    rest: tuple[Any, ...]  # the leaves that are no arrays, None for those that are
    is_array: tuple[bool, ...]
    moving: tuple[bool, ...]  # of the arrays; none: the values alone

    def arguments(self, arrays: Sequence[Any]) -> tuple[tuple, dict]:
        """The arguments of a call."""
        remaining = iter(arrays)
        pairs = zip(self.rest, self.is_array, strict=True)
        leaves = [next(remaining) if is_array else rest for rest, is_array in pairs]
        return jax.tree.unflatten(self.structure, leaves)


class OnHost(Outside):
    """A function of the user's that NumPy computes, as a function of JAX.

    Args:
        function: of arrays of NumPy.
        shape: what its values look like.
        differences: how it is differentiated.
    """

    def __init__(
        self, function: Callable, shape: OutShape, differences: Differences
    ) -> None:
        super().__init__()
        functools.update_wrapper(self, function, updated=())
        self.function, self.shape, self.differences = function, shape, differences
        self._latest: OrderedDict[bytes, AtPoint] = OrderedDict()
        self.first: Any = None  # what it gave when it was looked at, and where
        self.where: bytes = b""

    def __reduce__(self) -> tuple:
        return OnHost, (self.function, self.shape, self.differences)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OnHost):
            return False
        return (self.function, self.shape) == (other.function, other.shape)

    def __hash__(self) -> int:
        return hash((OnHost, self.function, self.shape))

    @property
    def program_key(self) -> Any:
        """A program depends on the shape of the values alone."""
        return self.shape

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        if is_numpy(*leaves):
            return values_of(self.function(*args, **kwargs))
        is_array = tuple(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves)
        pairs = list(zip(leaves, is_array, strict=True))
        arrays = [jnp.asarray(leaf) for leaf, flag in pairs if flag]
        rest = tuple(None if flag else leaf for leaf, flag in pairs)
        nothing = (False,) * len(arrays)
        question = _Question(structure, rest, is_array, nothing)
        shape = self.shape.for_leaves(leaves)
        return self._differentiable(question, shape)(
            jnp.asarray(self.token, float), *arrays
        )

    def _differentiable(
        self, question: _Question, shape: jax.ShapeDtypeStruct
    ) -> Callable:
        """The function of its token and arrays, with a rule for its derivatives."""

        def asked(token: Any, arrays: list, moving: tuple, *shapes: Any) -> list:
            return self._with_token(token).asked(
                question._replace(moving=moving), arrays, shapes
            )

        @jax.custom_jvp
        def values(token: Any, *arrays: Any) -> Array:
            return asked(token, [*arrays], question.moving, shape)[0]

        def rule(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
            token, *arrays = primals
            moving = tuple(not isinstance(t, SymbolicZero) for t in tangents[1:])
            parts = [t for t, m in zip(tangents[1:], moving, strict=True) if m]
            direction = jnp.concatenate([jnp.ravel(jnp.asarray(t)) for t in parts])
            matrix = jax.ShapeDtypeStruct((*shape.shape, direction.size), shape.dtype)
            out, slopes = asked(token, arrays, moving, shape, matrix)
            return out, jnp.matmul(slopes, direction, precision="highest")

        values.defjvp(rule, symbolic_zeros=True)
        return values

    def spread(
        self,
        values: Callable[[np.ndarray], np.ndarray],
        p: Float[np.ndarray, " n"],
        form: str,
    ) -> "AtPoint":
        """As at a point, with slopes that tell how much those of differences vary.

        Forward and backward differences are apart by what both are wrong: noise of the
        function, and its curvature.
        """
        here = self.at_point(values, p, form, is_constant=False)
        back = self.differences._replace(is_backward=not self.differences.is_backward)
        other = back.linearized(values, p)[1]
        return AtPoint(here.values, jax.tree.map(np.subtract, here.slopes, other), form)

    def at_point(
        self,
        values: Callable[[np.ndarray], np.ndarray],
        p: Float[np.ndarray, " n"],
        form: str,
        *,
        is_constant: bool,
    ) -> "AtPoint":
        """What it gives at a point; the last few points are remembered.

        Args:
            values: the function, of parameters alone.
            form: that of `AtPoint`.
            is_constant: whether nobody asks for derivatives.
        """
        key = p.tobytes()
        if key not in self._latest:
            if is_constant:
                self._latest[key] = AtPoint(values(p), None, form)
            else:
                linear = self.differences.linearized(values, p)
                self._latest[key] = AtPoint(*linear, form)
            while len(self._latest) > POINTS:
                self._latest.popitem(last=False)
        return self._latest[key]

    def answer(self, question: _Question, arrays: list[np.ndarray]) -> Sequence[Any]:
        """Its values, and their derivatives by the arrays that move."""
        places = [k for k, moves in enumerate(question.moving) if moves]
        if not places:
            return [self._values(question, arrays)]
        shapes = [arrays[k].shape for k in places]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])

        def at(p: np.ndarray) -> np.ndarray:
            others, parts = list(arrays), np.split(p, ends[:-1])
            for k, part, shape in zip(places, parts, shapes, strict=True):
                others[k] = part.reshape(shape)
            return self._values(question, others)

        p = np.concatenate([arrays[k].ravel() for k in places])
        numbers = [k for k, array in enumerate(arrays) if not array.ndim]
        return self.differences.of(numbers, places).linearized(at, p)

    def _values(self, question: _Question, arrays: Sequence[np.ndarray]) -> np.ndarray:
        copies = [array.copy() if array.ndim else array[()] for array in arrays]
        args, kwargs = question.arguments(copies)
        values = values_of(self.function(*args, **kwargs))
        expected = self.shape.for_leaves(jax.tree.leaves((args, kwargs)))
        if values.shape != expected.shape:
            raise ValueError(
                f"The function returned an array of shape {values.shape}; expected "
                f"{expected.shape}, by what it gave for its first arguments. The shape "
                "of its values must depend on those of its arguments alone."
            )
        return values


class AtPoint(NamedTuple):
    """What a function gave at one point, as a function of JAX near there.

    Args:
        values, slopes: its values, and with a last axis their derivatives; None: it is
            constant.
        form: of the parameters: the first argument is their "vector", or all but the
            first are "numbers".
    """

    values: Any
    slopes: Any
    form: str

    def __call__(self, *args: Any, **_: Any) -> PyTree:
        if self.slopes is None:
            return jax.tree.map(jnp.asarray, self.values)
        p = jnp.asarray(args[0]) if self.form == "vector" else jnp.stack(args[1:])
        moved = p - jax.lax.stop_gradient(p)  # zero
        moved = jnp.where(p > 0, moved, moved)  # it may have a kink, for all we know

        def near(value: Any, slope: Any) -> Any:
            if _is_prediction(value):  # what was observed stays where it is
                mean = near(value.mean, slope.mean)
                return Prediction(mean, value.observed, value.likelihood)
            return value + jnp.sum(slope * moved, axis=-1)  # no call of a library

        return jax.tree.map(near, self.values, self.slopes, is_leaf=_is_prediction)


def _is_prediction(node: Any) -> bool:
    """Whether a node is a `Prediction`, which is a pytree of its own."""
    return isinstance(node, Prediction)


class NotNumbers(TypeError):
    """A function gave what is no array of numbers."""


def fresh(tree: PyTree) -> PyTree:
    """Copies of the arrays: the user's function may write to what it gets."""
    kind = type(tree)
    if kind is np.ndarray:
        return tree.copy()
    if tree is None or kind is float:
        return tree
    if hasattr(kind, "_make"):
        return kind._make(map(fresh, tree))
    return jax.tree.map(lambda leaf: leaf if leaf is tree else fresh(leaf), tree)


def epsilon_of(result: Any) -> float:
    """The ε of what a function of NumPy's gave: single precision is seldom told."""
    dtype = np.dtype(getattr(result, "dtype", float))
    return max(float(np.finfo(dtype).eps), EPSILON) if dtype.kind in "fc" else EPSILON


def values_of(result: Any) -> np.ndarray:
    """What a function of NumPy's gave, as an array of floating numbers.

    Sparse matrices and linear operators of SciPy are dense after that, and what is
    masked is NaN: it is no value of the function.
    """
    if np.ma.is_masked(result):
        result = np.ma.filled(result.astype(float), np.nan)
    if hasattr(result, "toarray"):
        result = result.toarray()
    elif hasattr(result, "matmat"):
        result = result @ np.eye(result.shape[1])
    array = np.asarray(result)
    if array.dtype == object and not any(item is None for item in array.flat):
        try:
            array = array.astype(float)
        except (TypeError, ValueError) as error:
            raise NotNumbers("The function does not return numbers.") from error
    if array.dtype.kind in "uif":
        return array.astype(float)
    if array.dtype.kind != "c":
        raise NotNumbers(f"The function returned an array of {array.dtype}.")
    return array.astype(complex)
