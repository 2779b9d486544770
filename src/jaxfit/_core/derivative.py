"""The derivative of a solution, by the implicit function theorem.

At a solution x(θ) the gradient of the cost, g(x, θ), vanishes in the directions in
which x is free to move, and so

    H dx = - (∂g/∂θ) dθ,      H = ∂g/∂x, the Hessian of the cost,

over the free parameters; one at an active bound moves with that bound. What was done
to find x does not matter: the loop is never differentiated. The rule consists of
ordinary derivatives of the cost at x, so that forward mode, reverse mode and higher
derivatives follow from it. (Griewank and Walther, Evaluating Derivatives, 2nd ed.,
chapter 15; for bounds, Fiacco, Introduction to Sensitivity and Stability Analysis,
1983.)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Int, PyTree

from jaxfit._core.bounds import Bounds
from jaxfit._core.certificate import Status
from jaxfit._core.state import State
from jaxfit._linalg.branches import batched_in_lanes, branch
from jaxfit._linalg.inverse import pseudo_inverse
from jaxfit._linalg.kernels import (
    Flag,
    Flags,
    Matrix,
    Scalar,
    Vector,
    is_framed,
    matvec,
    transpose,
)
from jaxfit._linalg.rotations import inverse_of
from jaxfit._rows.linearization import Frame, Linearization

BLOCK = 256  # fits whose derivatives are taken at once


class Outcome(NamedTuple):
    """What a fit found."""

    x: Vector
    linearization: Linearization
    status: Int[Array, "*lanes"]
    optimality: Scalar
    steps: Int[Array, "*lanes"]
    nfev: Int[Array, "*lanes"]
    start_cost: Scalar
    certified: Flag
    local: Any = None  # parameters of blocks, where there are any
    local_status: Any = None

    @classmethod
    def of(cls, state: State) -> "Outcome":
        """The outcome that the last state has."""
        point = state.point
        return cls(
            point.x,
            point.linearization,
            state.status,
            point.optimality,
            state.steps,
            state.nfev,
            state.start_cost,
            point.certified,
        )


class Differentiable(NamedTuple):
    """A fit as a function of what can be differentiated.

    Its rows have `linearize` and `slope`; where blocks have local parameters also
    `near`, after which these follow x, and `followed`, what they are.
    """

    rows: Any
    bounds: Bounds | None
    gauss_newton: bool  # instead of the exact Hessian


def differentiable(
    solve: Callable[[PyTree], Outcome], rebuild: Callable[[PyTree], Differentiable]
) -> Callable[[PyTree], Outcome]:
    """`solve` with derivatives.

    Args:
        solve: from arrays to the outcome.
        rebuild: the fit that these arrays make.
    """

    words = Words()

    @jax.custom_jvp
    def solved(arrays: PyTree) -> PyTree:
        return words.of(solve(arrays))

    def rule(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
        (arrays,), (directions,) = primals, tangents
        out, moving = solved(arrays), Moving(arrays, directions)
        moved = tangent(
            lambda values: rebuild(moving.put(values)),
            moving.values,
            moving.directions,
            words.read(out),
        )
        return out, _completed(moved, out)

    solved.defjvp(rule, symbolic_zeros=True)
    return lambda arrays: words.read(solved(arrays))


def differentiable_batch(
    solve: Callable[[PyTree, PyTree], Outcome],
    rebuild: Callable[[PyTree, PyTree], Differentiable],
) -> Callable[[PyTree, PyTree], Outcome]:
    """`differentiable` for many fits, one block after the other.

    Args:
        solve: from arrays with a leading batch axis, and shared ones, to the outcomes.
        rebuild: from the arrays of one fit, and the shared ones.
    """

    words = Words()

    @jax.custom_jvp
    def solved(each: PyTree, shared: PyTree) -> PyTree:
        return words.of(solve(each, shared))

    def rule(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
        each, common = map(Moving, primals, tangents)
        out = solved(*primals)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def of_one(one: tuple) -> PyTree:
            leaves, values, directions, out = one
            return tangent(
                lambda v: rebuild(each.put(v[0], leaves), common.put(v[1])),
                (values, common.values),
                (directions, common.directions),
                words.read(out),
            )

        moved = jax.lax.map(
            of_one,
            (each.leaves, each.values, each.directions, out),
            batch_size=min(BLOCK, max(len(out.x), 1)),
        )
        return out, _completed(moved, out)

    solved.defjvp(rule, symbolic_zeros=True)
    return lambda each, shared: words.read(solved(each, shared))


def derived_from(function: Callable, reference: Callable) -> Callable:
    """A function of arrays with the derivatives of another that has its values."""
    words = Words()

    @jax.custom_jvp
    def derived(arrays: PyTree) -> PyTree:
        return words.of(function(arrays))

    def rule(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
        moving = Moving(primals[0], tangents[0])
        return jax.jvp(
            lambda values: words.of(reference(moving.put(values))),
            (moving.values,),
            (moving.directions,),
        )

    derived.defjvp(rule, symbolic_zeros=True)
    return lambda arrays: words.read(derived(arrays))


class Words:
    """Integers as floats of 16 bits each, and back.

    Integers have tangents of a type of their own, which does not pass a `shard_map`
    that checks what varies: what leaves a rule of derivatives are floats.
    """

    def __init__(self):
        self.kinds: list = []

    def of(self, tree: PyTree) -> PyTree:
        """A tree in which integers and flags are floats, with a last axis of words."""
        leaves, structure = jax.tree.flatten(tree)
        self.kinds = [leaf.dtype for leaf in map(jnp.asarray, leaves)]
        return jax.tree.unflatten(structure, map(self._written, leaves, self.kinds))

    def read(self, tree: PyTree) -> PyTree:
        """The tree that it was."""
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, map(self._read, leaves, self.kinds))

    @staticmethod
    def _written(leaf: Any, kind: Any) -> Any:
        if not _is_whole(kind):
            return leaf
        bits = jnp.asarray(leaf).astype(_unsigned(kind))
        words = [bits >> start & 0xFFFF for start in range(0, _width(kind), 16)]
        return jnp.stack(words, axis=-1).astype(jnp.float32)

    @staticmethod
    def _read(leaf: Any, kind: Any) -> Any:
        if not _is_whole(kind):
            return leaf
        words = jax.lax.stop_gradient(leaf).astype(_unsigned(kind))
        places = range(words.shape[-1])
        parts = [words[..., place] << 16 * place for place in places]
        return functools.reduce(jnp.bitwise_or, parts).astype(kind)


def _is_whole(kind: Any) -> bool:
    return jnp.issubdtype(kind, jnp.integer) or jnp.issubdtype(kind, jnp.bool_)


def _width(kind: Any) -> int:
    return 16 if jnp.issubdtype(kind, jnp.bool_) else max(16, jnp.iinfo(kind).bits)


def _unsigned(kind: Any) -> Any:
    return jnp.dtype(f"uint{_width(kind)}")


class Moving:
    """The leaves of a pytree that have a tangent.

    Args:
        tree: arrays.
        directions: their tangents; `SymbolicZero` where there is none.
    """

    def __init__(self, tree: PyTree, directions: PyTree):
        self.leaves, self.structure = jax.tree.flatten(tree)
        tangents = jax.tree.leaves(directions, is_leaf=_is_zero)
        self.places = [i for i, move in enumerate(tangents) if not _is_zero(move)]
        self.values = [self.leaves[place] for place in self.places]
        self.directions = [tangents[place] for place in self.places]

    def put(self, values: Any, leaves: Any = None) -> Any:
        """The tree, or one of other leaves, with others in these places."""
        leaves = list(self.leaves if leaves is None else leaves)
        for place, value in zip(self.places, values, strict=True):
            leaves[place] = value
        return jax.tree.unflatten(self.structure, leaves)


def _completed(moved: Outcome, out: Outcome) -> Outcome:
    """A tangent with those of the integers, which are words."""

    def completed(leaf: Any, move: Any) -> Any:
        return 0 * leaf if move is None and leaf is not None else move

    return jax.tree.map(completed, out, moved, is_leaf=lambda leaf: leaf is None)


def _is_zero(direction: Any) -> bool:
    """Whether a tangent is known to be zero, or that of an integer."""
    if isinstance(direction, SymbolicZero):
        return True
    return getattr(direction, "dtype", None) == jax.dtypes.float0


def tangent(
    rebuild: Callable[[PyTree], Differentiable],
    values: PyTree,
    directions: PyTree,
    outcome: Outcome,
) -> Outcome:
    """How the outcome of one fit moves; None in the place of integers.

    A fit that failed does not move. Its derivatives may be NaN; they are kept away from
    what other fits share, in reverse mode too, by a gate at either end. A fit that
    succeeded on a kink has no derivative: NaN.

    Args:
        rebuild: the fit as a function of the arrays that move.
        values, directions: these arrays, and how they move.
        outcome: of the fit.
    """
    succeeded, x, local = outcome.status > 0, outcome.x, outcome.local
    if local is not None:
        rebuild = _with_local(rebuild, local)
    proper = jnp.where(outcome.status == jnp.int32(Status.KINK), jnp.nan, 1).astype(
        x.dtype
    )

    def gate(tree: PyTree, factor: Any = 1) -> PyTree:
        return jax.tree.map(lambda t: jnp.where(succeeded, factor * t, 0), tree)

    directions = gate(directions)
    hessian, change = _changes_of_slope(rebuild, values, directions, outcome)
    bounds = rebuild(values).bounds
    if bounds is None:
        free, along = jnp.ones(x.shape, bool), jnp.zeros_like(x)
    else:
        _, moved = jax.jvp(lambda v: rebuild(v).bounds, (values,), (directions,))
        free, along = on_face(x, outcome.linearization.gradient, bounds, moved)
    needed = jnp.where(free, change + matvec(hessian, along), 0)
    dx = gate(along - matvec(pseudo_inverse(hessian, free), needed), proper)
    frame = _same_frame(outcome.linearization)
    _, moved = jax.jvp(
        lambda x, v: rebuild(v).rows.linearize(x, frame), (x, values), (dx, directions)
    )
    moved = eqx.filter(moved, lambda leaf: leaf.dtype != jax.dtypes.float0)
    if local is not None:
        _, local = jax.jvp(
            lambda x, v: rebuild(v).rows.followed(x), (x, values), (dx, directions)
        )
    absent: Any = None  # in the place of integers
    zero = jnp.zeros_like(outcome.optimality)
    return Outcome(
        x=dx,
        linearization=gate(moved, proper),
        status=absent,
        optimality=zero,
        steps=absent,
        nfev=absent,
        start_cost=zero,
        certified=absent,
        local=None if local is None else gate(local, proper),
    )


def _with_local(
    rebuild: Callable[[PyTree], Differentiable], local: Array
) -> Callable[[PyTree], Differentiable]:
    """The fit whose local parameters are known, and follow what moves."""

    def rebuilt(values: PyTree) -> Differentiable:
        fit = rebuild(values)
        return fit._replace(rows=fit.rows.near(local))

    return rebuilt


def _changes_of_slope(
    rebuild: Callable, values: PyTree, directions: PyTree, outcome: Outcome
) -> tuple[Matrix, Vector]:
    """Derivatives of the gradient of the cost: by x, and along the directions."""
    x = outcome.x

    def slope(x: Vector, values: PyTree) -> Vector:
        return rebuild(values).rows.slope(x)

    _, change = jax.jvp(lambda v: slope(x, v), (values,), (directions,))
    if rebuild(values).gauss_newton:
        return outcome.linearization.hessian, change
    hessian = jax.jacfwd(slope)(x, values)
    return 0.5 * (hessian + hessian.T), change


def on_face(
    x: Vector, slope: Vector, bounds: Bounds, moved: Any
) -> tuple[Flags, Vector]:
    """Which parameters are free, and how the others move with their bounds.

    A parameter is held by a bound if it lies there and the gradient pushes outward.
    """
    faces = bounds.faces(x, slope)
    upper = jnp.where(faces.upper, moved.upper, 0)
    return faces.free, jnp.where(faces.lower, moved.lower, upper)


def _same_frame(linearization: Linearization) -> Frame:
    """The frame of a linearization, as a constant."""
    inverse = jax.lax.stop_gradient(linearization.frame)
    most = linearization.believed(is_last=~jnp.asarray(linearization.is_limited))
    return Frame(inverse, transpose(_unframed(inverse)), jax.lax.stop_gradient(most))


@batched_in_lanes
def _unframed(inverse: Matrix) -> Matrix:
    """P from P⁻¹."""
    return branch(is_framed(inverse), inverse_of, lambda inverse: inverse, inverse)
