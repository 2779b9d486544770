"""A fit of many blocks of rows: parameters x that all share, and u of each block alone.

    while the fit runs:
        each block to its minimum over u, at the trial point x      (`blocks.py`)
        what is left of its rows when u follows x, added up         (`sweep.py`)
        accept -> new_region -> judge -> propose, as in `solve`     (`_core/trip.py`)

The cost as a function of x alone, at the minimum over all u, is what is fitted: the
"separable" problem of Golub and Pereyra where u enters linearly, and the same where it
does not. Global fits over many data sets, variable projection and errors in x are this.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from jaxfit._core.derivative import (
    differentiable,
)
from jaxfit._core.options import (
    DEFAULTS,
    Options,
    check_arguments,
    check_callable,
    check_known_scale,
    without_callable,
)
from jaxfit._joint.fit import (
    JointRequest,
    JointSetup,
    joint_solution,
    run_joint,
    set_up_joint,
    tables,
)
from jaxfit._joint.solution import JointSolution
from jaxfit._programs.arrays import ordinary
from jaxfit._programs.call import Static
from jaxfit._programs.compiled import compiled
from jaxfit._programs.errors import explained
from jaxfit._programs.spread import is_explicit
from jaxfit._rows.devices import on_each_device
from jaxfit._rows.linearization import Kind
from jaxfit._rows.predictions import RowNumbers, kind_of
from jaxfit._rows.table import split_rows
from jaxfit._rows.ways import Chunked, Sharded, Whole, distributed
from jaxfit.losses import Likelihood, Loss


def solve_joint(
    fn: Callable[[PyTree, PyTree, PyTree], PyTree],
    x0: PyTree,
    u0: PyTree,
    data: PyTree,
    *,
    bounds: tuple[PyTree, PyTree] | None = None,
    local_bounds: tuple[PyTree, PyTree] | None = None,
    weights: PyTree | None = None,
    loss: Loss | Likelihood | None = None,
    options: Options | None = None,
    rows: Whole | Chunked | Sharded | None = None,
    linear: bool = False,
) -> JointSolution:
    """Fit parameters that all blocks of data share, and others of each block alone.

    Global fits over many data sets, separable problems (variable projection), and
    errors in x are of this kind. The cost grows linearly with the number of blocks, and
    no matrix is larger than the parameters of one block. Pure, and differentiable, as
    `solve` is.

    Args:
        fn: residuals of one block, of (x, u, data of the block): an array or a pytree
            of arrays.
        x0: the start of the shared parameters; a pytree.
        u0: the starts of the local ones: a pytree whose leaves have a leading axis of
            blocks, or `Shared(leaf)`, the same for all blocks.
        data: every leaf has a leading axis of blocks; what has not is wrapped,
            `Shared(leaf)`, and reaches `fn` unwrapped. Blocks of different length are
            filled up with rows of weight zero.
        bounds: of x, as in `solve`.
        local_bounds: of u: (lower, upper), each a number or a pytree that matches or
            prefixes the u of one block.
        weights: None, or those of the residuals of every block, with a leading axis of
            blocks, or `Shared`. A block of weight zero does not count, and its local
            parameters have infinite errors.
        loss, options: see `solve`. Tolerances are those of the fits of single blocks
            too; `x_scale` is that of x.
        rows: how blocks are visited: None, as many at once as is good; `Whole()`,
            `Chunked(blocks)`, or `Sharded(mesh, axis, blocks)`.
        linear: `fn` is affine in u. Its minimum over u is then found exactly at each x,
            the numbers in `u0` do not matter, and fewer steps are needed from worse
            starts. Not with `local_bounds`, nor with a robust loss.

    Returns:
        A `JointSolution`. Nothing is raised for what only the numbers show; its
        `message` names the blocks that could not be fitted.

    Raises:
        ValueError, TypeError: at trace time, for arguments of the wrong kind or shape;
            for `linear=True` where `fn` is not affine in u.
    """
    request = joint_request(
        fn, x0, u0, data, bounds, local_bounds, weights, loss, options, rows, linear
    )
    if not isinstance(rows, Sharded):
        with explained(fn):
            return compiled(_solve_joint, request)
    _, u0, table = tables(request)
    both = request.data, u0
    rows, (data, u0), weights = distributed(rows, both, request.weights)
    request = request._replace(rows=rows, u0=u0, data=data, weights=weights)
    with explained(fn):
        solution = compiled(_solve_joint, request)
    return _of_first_blocks(solution, table.number)


def joint_request(
    fn: Any,
    x0: PyTree,
    u0: PyTree,
    data: PyTree,
    bounds: Any,
    local_bounds: Any,
    weights: PyTree,
    loss: Loss | Likelihood | None,
    options: Options | None,
    rows: Any,
    linear: bool,
) -> JointRequest:
    """The arguments of a joint fit, checked."""
    check_callable(fn, "fn", "a function (x, u, data) -> residuals of one block")
    options = DEFAULTS if options is None else options
    check_arguments(loss, options, rows)
    _, jac = without_callable(options)
    if callable(jac):
        raise ValueError(
            "Options(jac=...) is a function, which a joint fit has no use for. Leave "
            "it out, or give 'fwd' or 'rev'; a derivative of one's own is a "
            "jax.custom_jvp."
        )
    check_known_scale(loss, "a joint fit")
    if linear and local_bounds is not None:
        raise ValueError(
            "linear=True finds the local parameters without bounds, and local_bounds "
            "are given. Leave out linear=True: the fit then keeps them inside."
        )
    if linear and kind_of(loss) is not Kind.SQUARES:
        raise ValueError(
            f"linear=True is plain least squares, and loss is {loss!r}. Leave out "
            "linear=True: the fit then finds the local parameters step by step."
        )
    x0, data, bounds, weights = ordinary((x0, data, bounds, weights))
    own = RowNumbers.of(loss)
    if own is not None:
        fn, loss, data = own.given_to(fn), own.loss, (data, own.numbers)
    u0, local_bounds = ordinary((u0, local_bounds), ("u0", "local_bounds"))
    return JointRequest(
        fn=fn,
        x0=x0,
        u0=u0,
        data=data,
        bounds=bounds,
        local_bounds=local_bounds,
        weights=weights,
        loss=loss,
        options=options,
        rows=rows,
        is_affine=Static(linear),
    )


def _solve_joint(request: JointRequest) -> JointSolution:
    """`solve_joint` without its compilation."""
    rows = request.rows
    if isinstance(rows, Sharded) and rows.mesh is not None:
        return _on_mesh(request, rows, rows.mesh)
    setup = set_up_joint(request)
    arrays, rest = eqx.partition(setup, eqx.is_array)

    def rebuilt(arrays: PyTree) -> JointSetup:
        return eqx.combine(arrays, rest)

    outcome = differentiable(
        lambda arrays: run_joint(rebuilt(arrays)),
        lambda arrays: rebuilt(arrays).differentiable,
    )(arrays)
    return joint_solution(setup, outcome)


def _on_mesh(request: JointRequest, rows: Sharded, mesh: Mesh) -> JointSolution:
    """The same fit on all devices, each with blocks of its own."""
    table = split_rows((request.data, request.u0), request.weights)
    shared = request._replace(fn=None, u0=None, data=None, weights=None, rows=None)

    def fit(
        both: PyTree, weights: PyTree, counts: Array | None, shared: JointRequest
    ) -> JointSolution:
        data, u0 = both
        own_rows = Sharded(None, rows.axis, rows.size, counts)
        return _solve_joint(
            shared._replace(
                fn=request.fn, u0=u0, data=data, weights=weights, rows=own_rows
            )
        )

    def shapes(data: PyTree, u0: PyTree, weights: PyTree) -> JointSolution:
        placed = {"data": data, "u0": u0, "weights": weights}
        return _solve_joint(request._replace(rows=Whole(), **placed))

    without_places = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)),
        (request.data, request.u0, request.weights),
    )
    example = jax.eval_shape(shapes, *without_places)
    specs = jax.tree.map_with_path(
        lambda path, _: P(rows.axes) if _is_of_blocks(path) else P(), example
    )
    return on_each_device(
        mesh, rows.axes, rows.counts, fit, table, shared, out_specs=specs
    )


def _is_of_blocks(path: tuple) -> bool:
    """Whether a leaf of a `JointSolution` has a leading axis of blocks."""
    return path[0].name in ("local", "local_status", "factors")


def _of_first_blocks(solution: JointSolution, number: int) -> JointSolution:
    """The solution without the blocks that filled up the devices."""

    def cut(path: tuple, leaf: Array) -> Array:
        if not _is_of_blocks(path) or len(leaf) == number:
            return leaf
        if is_explicit(leaf):  # which has no part of another length
            sharding = jax.typeof(leaf).sharding
            leaf = jax.reshard(leaf, NamedSharding(sharding.mesh, P()))
        return leaf[:number]

    return jax.tree.map_with_path(cut, solution)
