"""A joint fit of more blocks than memory holds: the entrance.

Its passes are those of `passes.py`. What is done in them is told in `joint_passes.py`,
and in `mixed_passes.py` for blocks that differ in their data alone.
"""

import os
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jaxfit._core.options import Options
from jaxfit._core.parameters import Parameters
from jaxfit._joint.fit import JointRequest
from jaxfit._joint.solution import JointSolution
from jaxfit._joint.solve import joint_request
from jaxfit._programs.digest import digest_of_numbers, digest_of_program
from jaxfit._programs.errors import explained
from jaxfit._rows.predictions import check_no_row_numbers, rows_of_loss
from jaxfit._rows.table import RowTable
from jaxfit._stream.feed import Feed, check_source, known_size
from jaxfit._stream.host import HostStarts, check_number
from jaxfit._stream.joint_passes import ITEMS, JointFit
from jaxfit._stream.mixed_passes import MixedFit, first_block, mixed_size
from jaxfit._stream.passes import Report, run
from jaxfit._stream.saved import Identity, Saved, check_every
from jaxfit.losses import Likelihood, Loss

NAN_POLICIES = "raise", "propagate"


def solve_joint_stream(
    fn: Callable[[PyTree, PyTree, PyTree], PyTree],
    x0: PyTree,
    u0: PyTree,
    blocks: Iterable[PyTree],
    *,
    bounds: tuple[PyTree, PyTree] | None = None,
    local_bounds: tuple[PyTree, PyTree] | None = None,
    loss: Loss | Likelihood | None = None,
    options: Options | None = None,
    linear: bool = False,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 16,
    nan_policy: str = "raise",
    progress: bool = False,
) -> JointSolution:
    """Fit shared and local parameters to blocks that are read from a disk, for example.

    The exact answer of `solve_joint` on all blocks but for rounding. Every trial point
    is one pass over all items, and another reports; with `linear=True` two passes are
    enough, or three, where blocks differ in their data alone (fn depends on data by
    terms without x and u, and no block has weights of its own). Memory is that of three
    items, and of the local parameters with what their errors are made of.

    Args:
        fn, x0, bounds, local_bounds, loss, options, linear: see `solve_joint`.
        u0: the starts of local parameters, in NumPy: a pytree whose leaves have a
            leading axis of all blocks (a `numpy.memmap`, for example), or
            `Shared(leaf)`, the same for all.
        blocks: the data: what gives items each time it is iterated over, as in
            `solve_stream`. An item is some of the blocks: a pytree of arrays with a
            leading axis of blocks, or `Weighted(data, weights)`; what all blocks share
            is wrapped, `Shared(leaf)`, and is the same in every item. Items may differ
            in length; a longer one than all before compiles again.
        checkpoint: a file that keeps the state of the fit and the local parameters; see
            `solve_stream`.
        checkpoint_every: items after which the file is written again within a pass.
        nan_policy: "raise" an error for NaN or infinity where the weight is not zero,
            or "propagate", without a check.
        progress: show a line with pass, blocks per second, cost, radius, and the time
            left in the pass.

    Returns:
        A `JointSolution`. What it has of each block is in arrays of NumPy.

    Raises:
        ValueError, TypeError: for arguments of the wrong kind; an item with other
            arrays than the first, or with NaN; another number of blocks than of starts
            in u0; passes that differ; a checkpoint that is damaged or belongs to
            another fit.
        RuntimeError: if an item could not be read. Errors name the item, and the
            checkpoint stays valid.
    """
    check_source(blocks)
    check_policy(nan_policy)
    check_no_row_numbers(loss)
    check_every(checkpoint_every)
    request = joint_request(
        fn=fn,
        x0=x0,
        u0=u0,
        data=None,
        bounds=bounds,
        local_bounds=local_bounds,
        weights=None,
        loss=loss,
        options=options,
        rows=None,
        linear=linear,
    )
    starts, size = HostStarts.of(request.x0, request.u0), known_size(blocks, ITEMS)
    if size["rows"] is not None:
        check_number(starts, size["rows"], at_end=True)
    identity = _identity(request, starts, size)
    request = request._replace(x0=starts.x0, u0=starts.example)
    with explained(fn):
        saved = Saved(identity, checkpoint, checkpoint_every)
        feed = Feed(blocks, nan_policy == "raise", ITEMS)
        fit = _way(request, starts, feed, saved, size["rows"])
        report = Report(fit, size["rows"] or starts.number) if progress else None
        return run(fit, feed, saved, report)


def _way(
    request: JointRequest,
    starts: HostStarts,
    feed: Feed,
    saved: Saved,
    number: int | None,
) -> JointFit | MixedFit:
    """How the fit is done: its first item tells, or its checkpoint."""
    size = saved.saved.get("mixed", None if request.is_affine.value else 0)
    example = None
    if size is None:
        example = first_block(feed.first())
        size = mixed_size(request, example, starts.number or number)
    saved.description["mixed"] = size
    if size == 0:
        return JointFit(request, starts)
    return MixedFit(request, starts, size, feed, example)


def _identity(
    request: JointRequest, starts: HostStarts, size: dict[str, int | None]
) -> Identity:
    """What the fit is, for a checkpoint."""
    numbers = "x0", "u0", "bounds", "local_bounds", "loss", "options"
    description = {
        **size,
        **{name: digest_of_numbers(getattr(request, name)) for name in numbers},
        "entrance": "solve_joint_stream",
        "linear": request.is_affine.value,
        "x64": jax.dtypes.canonicalize_dtype(np.float64) == np.float64,
    }
    x, u = Parameters(starts.x0), starts.parameters

    def programs(table: RowTable) -> list[str]:
        """What the functions compute, by one block."""

        def of_vectors(x_flat: Array, u_flat: Array, rows: list) -> PyTree:
            data = table.with_rows(rows)[0]
            return request.fn(x.unravel(x_flat), u.unravel(u_flat), data)

        flat = [jax.ShapeDtypeStruct((p.size,), u.dtype) for p in (x, u)]
        rows = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in table.rows]
        found = [digest_of_program(of_vectors, *flat, rows)]
        if request.loss is not None:
            found.append(digest_of_program(*rows_of_loss(request.loss, flat[0])))
        return found

    return Identity(description, (request.fn,), programs)


def check_policy(nan_policy: str) -> None:
    """Refuse what does not say what becomes of NaN."""
    if nan_policy == "omit":
        raise ValueError(
            "nan_policy is 'omit', which leaves out rows of data, and the rows of an "
            "item are whole blocks. Give the residuals with NaN weight zero by "
            "Weighted(data, weights)."
        )
    if nan_policy not in NAN_POLICIES:
        raise ValueError(f"nan_policy is {nan_policy!r}; give one of {NAN_POLICIES}.")
