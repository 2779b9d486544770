"""Blocks of rows with parameters of their own, seen as a function of what they share.

For every point of the shared parameters x each block is fitted: its local parameters u
start where the last step lets them be expected, and go to their minimum by the very
loop of a single fit (`_core/fit.py`), inside their bounds, in a region of their own. If
they enter linearly they are found at once (`linear=True`: variable projection). What is
left of the block's rows, swept, adds up over blocks as rows do over chunks.

A block that must step back, at a bound or in a valley, so does not hold up the others;
and the shared fit sees a function without any local parameters.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxfit._core.bounds import Bounds
from jaxfit._core.certificate import Status
from jaxfit._core.derivative import Outcome, differentiable
from jaxfit._core.fit import Setup, run
from jaxfit._core.trip import no_frame
from jaxfit._joint.block import Block, Factors, Fitted, Local, Own, OwnStarts
from jaxfit._linalg.branches import varying_with
from jaxfit._linalg.kernels import Scalar, Vector
from jaxfit._programs.many import alone_or_many
from jaxfit._rows.chunks import Chunks, Piece
from jaxfit._rows.devices import of_first, over_devices
from jaxfit._rows.linearization import (
    Frame,
    Linearization,
    RunningSum,
    Sums,
    carried,
    sums,
    with_sums,
)
from jaxfit._rows.predictions import kind_of
from jaxfit._rows.table import RowTable, whole_rows

WORDS = 2**14  # so many can be added up in 32 bits


class Blocks(NamedTuple):
    """All blocks: a pytree of arrays and of what is none.

    In the place of `Rows` in derivatives: there the local parameters `u` are known, and
    follow what moves.
    """

    table: RowTable  # a block is a row of it
    template: Setup  # of the own fit of one block
    is_affine: bool  # in the local parameters
    size: int | None = None  # blocks of a chunk; None: all
    valid: Int[Array, ""] | None = None  # how many of the first count; None: all
    axes: tuple[str, ...] | None = None  # of the devices that have the others
    like: Vector | None = None  # varies over devices as the blocks do
    u: Float[Array, "B l"] | None = None

    @property
    def bounds(self) -> Bounds | None:
        """Those of the local parameters of every block."""
        return self.template.setting.bounds

    # During a fit

    def fitted(
        self, x: Vector, frame: Frame, starts: OwnStarts
    ) -> tuple[Linearization, Local]:
        """The sum over all blocks, each at its minimum, and the local parameters."""
        return self._over_blocks(self._fitting, x, frame, starts)

    def fitted_with(
        self, running: RunningSum, x: Vector, frame: Frame, starts: OwnStarts
    ) -> tuple[RunningSum, Local]:
        """A sum over other blocks with these added to it."""
        return self._added_to(running, self._fitting, x, frame, starts)

    @property
    def _fitting(self) -> Callable:
        """One block at its minimum."""

        def of_block(block: Block, starts: OwnStarts) -> tuple[Linearization, Local]:
            return run(starts.better(block.setup), Fitted(block.frame))

        def of_affine(block: Block, _: OwnStarts) -> tuple[Linearization, Local]:
            u = block.minimum()
            swept = block.swept(u, block.free)
            lin = block.linearization(swept)
            is_finite = jnp.isfinite(jnp.sum(lin.normal))
            status = jnp.where(is_finite, Status.COST, Status.NONFINITE_START)
            return lin, block.local(swept, u, status.astype(jnp.int32))

        return self._alone_or_many(of_affine) if self.is_affine else of_block

    def minima(self, x: Vector) -> Float[Array, "B l"]:
        """The local parameters of all blocks, which enter linearly."""

        def of_block(block: Block, _: Own) -> tuple[Scalar, Own]:
            return 0 * block.x[0], block.minimum()

        kernel, nothing = self._alone_or_many(of_block), 0 * x[0]
        u = jnp.zeros((self.table.number, len(self.template.start)), x.dtype)
        return self._visited(kernel, x, no_frame(x), u, nothing, operator.add)[1]

    def agreed(self, joint: Any) -> Any:
        """A joint state, the same on all devices but for its local parameters."""
        if self.axes is None:
            return joint
        return joint._replace(state=of_first(self.axes, joint.state))

    # At the end of it

    def report(
        self, x: Vector, frame: Frame, u: Float[Array, "B l"], is_plain: bool = False
    ) -> tuple[Linearization, Factors]:
        """The sum over all blocks, at parameters that are known.

        Args:
            is_plain: as what derivatives can be taken of.
        """
        kernel = _reported if is_plain else self._alone_or_many(_reported)
        return self._over_blocks(kernel, x, frame, u)

    def reported_with(
        self, running: RunningSum, x: Vector, frame: Frame, u: Float[Array, "B l"]
    ) -> tuple[RunningSum, Factors]:
        """A sum over other blocks with these added to it."""
        kernel = self._alone_or_many(_reported)
        return self._added_to(running, kernel, x, frame, u)

    # Derivatives

    def near(self, u: Float[Array, "B l"]) -> "Blocks":
        """With local parameters that are known."""
        return self._replace(u=u)

    @property
    def _known(self) -> Float[Array, "B l"]:
        assert self.u is not None
        return self.u

    def linearize(self, x: Vector, frame: Frame) -> Linearization:
        """The sum over all blocks."""
        return self.report(x, frame, self.followed(x), is_plain=True)[0]

    def followed(self, x: Vector) -> Float[Array, "B l"]:
        """The local parameters as a function of all that they depend on."""

        def of_block(block: Block, _: Own) -> tuple[Scalar, Own]:
            return 0 * block.x[0], self._following(block)

        return self._visited(
            of_block, x, no_frame(x), self._known, 0 * x[0], operator.add
        )[1]

    def slope(self, x: Vector) -> Vector:
        """The gradient of the cost by x, the local parameters at their minimum."""

        def of_block(block: Block, _: Own) -> tuple[Vector, None]:
            rows = block.across(self._following(block))
            return rows.slope(block.x), None

        slope, _ = self._visited(
            of_block, x, no_frame(x), self._known, jnp.zeros_like(x), operator.add
        )
        return slope if self.axes is None else lax.psum(slope, self.axes)

    def _following(self, block: Block) -> Own:
        """The local parameters of a block, which move with what they depend on."""
        if self.is_affine:
            return block.minimum()
        arrays, rest = eqx.partition(block.setup, eqx.is_array)

        def rebuilt(arrays: PyTree) -> Setup:
            return eqx.combine(arrays, rest)

        def known(arrays: PyTree) -> Outcome:
            setup = rebuilt(arrays)
            u = setup.start
            zero, count = 0 * u[0], jnp.asarray(Status.COST, jnp.int32)
            return Outcome(
                x=u,
                linearization=setup.rows.linearize(u, no_frame(u)),
                status=count,
                optimality=zero,
                steps=count,
                nfev=count,
                start_cost=zero,
                certified=zero == 0,
            )

        return differentiable(known, lambda arrays: rebuilt(arrays).differentiable)(
            arrays
        ).x

    # One block after the other

    def _alone_or_many(self, kernel: Callable) -> Callable:
        """A function of a block as one function of the machine, where it can be."""
        template = self.template

        def of_block(block: Block, own: PyTree) -> Any:
            arrays, rest = eqx.partition((block, own), eqx.is_array)

            def of_arrays(arrays: PyTree) -> Any:
                return kernel(*eqx.combine(arrays, rest))

            def at_once(each: PyTree, shared: PyTree, _: Any, number: int) -> Any:
                one = functools.partial(eqx.combine, shared)
                return jax.vmap(lambda leaf: of_arrays(one(leaf)), axis_size=number)(
                    each
                )

            return alone_or_many(
                of_arrays,
                arrays,
                None,
                in_one_function=template.is_one_function,
                in_parts=template.in_parts,
                lanes=at_once,
                is_lanes=False,
            )

        return of_block

    def _over_blocks(
        self, kernel: Callable, x: Vector, frame: Frame, each: PyTree
    ) -> tuple[Linearization, Any]:
        """The sum of linearizations, and what else a kernel gives of each block."""
        x, frame = varying_with((x, frame), self.like)
        nothing = RunningSum.of_nothing(
            x, frame.inverse, kind_of(self.template.rows.loss), is_swept=True
        )
        running, kept = self._added_to(nothing, kernel, x, frame, each)
        lin = running.total()
        if self.axes is not None:
            lin = over_devices(self.axes, lin)
        return dataclasses.replace(lin, frame=frame.inverse), kept

    def _added_to(
        self,
        running: RunningSum,
        kernel: Callable,
        x: Vector,
        frame: Frame,
        each: PyTree,
    ) -> tuple[RunningSum, Any]:
        """A sum with these blocks added, and what else a kernel gives of each."""
        return self._visited(
            kernel, x, frame, each, running, lambda running, lin: running.plus(lin)
        )

    def _visited(
        self,
        kernel: Callable,
        x: Vector,
        frame: Frame,
        each: PyTree,
        nothing: PyTree,
        plus: Callable,
    ) -> tuple[Any, Any]:
        """A kernel of all blocks: the sum of the first of its results, and the second.

        Args:
            kernel: (a block, what it has of its own) -> what is added up, and what is
                kept of it.
            each: what the blocks have of their own: their local parameters, or
                `OwnStarts` of them, with a leading axis.
        """
        x, frame, nothing = varying_with((x, frame, nothing), self.like)

        def of_block(rows: list, own: PyTree) -> Any:
            u = jax.tree.leaves(own)[0]
            return kernel(Block(self._setup(x, rows, u), frame), own)

        def of_some(amount: PyTree, piece: Piece) -> tuple[PyTree, PyTree]:
            size = len(piece.rows[0])
            own = jax.tree.map(
                lambda leaf: lax.dynamic_slice_in_dim(leaf, piece.first, size), each
            )
            terms, results = jax.vmap(of_block)(piece.rows, own)
            return plus(amount, _total(terms, piece.counts)), results

        number = self.table.number
        chunks = Chunks(self.table, self.size or number, self.valid)
        if chunks.is_one:
            return of_some(nothing, chunks.whole)

        def added(total: tuple, piece: Piece) -> tuple:
            amount, kept = total
            amount, results = of_some(amount, piece)
            kept = jax.tree.map(
                lambda whole, part: lax.dynamic_update_slice_in_dim(
                    whole, part, piece.first, 0
                ),
                kept,
                results,
            )
            return amount, kept

        first = [leaf[0] for leaf in self.table.rows]
        own = jax.tree.map(lambda leaf: leaf[0], each)
        _, shapes = jax.eval_shape(of_block, first, own)
        kept = jax.tree.map(lambda s: jnp.zeros((number, *s.shape), s.dtype), shapes)
        kept = varying_with(kept, self.like)
        return chunks.over(added, (nothing, kept))

    def _setup(self, x: Vector, rows: list, u: Own) -> Setup:
        """The fit of one block's local parameters, from a start."""
        data, weights = self.table.with_rows(rows)
        template = self.template
        table = whole_rows((x, data), weights)
        return template._replace(start=u, rows=template.rows._replace(table=table))


def _reported(block: Block, u: Own) -> tuple[Linearization, Factors]:
    """One block at local parameters that are known."""
    swept = block.swept(u, block.free)
    return block.linearization(swept), Factors.of(swept, u, block.bounds)


def _total(terms: PyTree, counts: Bool[Array, " c"] | None) -> PyTree:
    """The sum over blocks of those that count."""
    if counts is not None:

        def proper(leaf: Array) -> Array:
            flags = counts.reshape(-1, *[1] * (leaf.ndim - 1))
            return jnp.where(flags, leaf, jnp.zeros_like(leaf))

        terms = jax.tree.map(proper, terms)
    if not isinstance(terms, Linearization):
        return jax.tree.map(functools.partial(jnp.sum, axis=0), terms)
    of_all = sums(terms)
    added = Sums(
        tuple(jnp.sum(number, axis=0) for number in of_all.numbers),
        tuple(_total_words(words) for words in of_all.counts),
    )
    influence = 0 * added.numbers[0][0, 0]
    if terms.terms is not None:
        influence = jnp.max(terms.terms.influence, axis=0)
    first = jax.tree.map(lambda leaf: leaf[0], terms)  # in the same frame as all
    return with_sums(first, added, influence)


def _total_words(words: Int[Array, "c 2"]) -> Int[Array, "2"]:
    parts = range(0, len(words), WORDS)
    totals = [
        carried(jnp.sum(words[k : k + WORDS], axis=0, dtype=jnp.int32)) for k in parts
    ]
    return functools.reduce(lambda a, b: carried(a + b), totals)
