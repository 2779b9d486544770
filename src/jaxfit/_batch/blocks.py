"""Batches that do not fit on the device: block after block, from the host."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxfit._batch.axes import split
from jaxfit._batch.batch import DeviceLayout, batch_request, run_in_parts
from jaxfit._batch.parts import numbers_of_one, size_on_cpu
from jaxfit._core.options import Options
from jaxfit._core.solution import Solution
from jaxfit._programs.arrays import native, refuse_masks
from jaxfit._programs.backend import is_eager_on_cpu
from jaxfit._rows.table import unwrap_shared
from jaxfit.losses import Likelihood, Loss


def solve_blocks(
    fn: Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    data: PyTree,
    *,
    block: int = 65536,
    progress: bool = False,
    in_axes: tuple = (0, 0),
    bounds: tuple[PyTree, PyTree] | None = None,
    weights: PyTree | None = None,
    loss: Loss | Likelihood | None = None,
    options: Options | None = None,
    lanes: int | None = None,
    mesh: Mesh | None = None,
    axis: str | None = None,
    keep: Callable[[Solution], Any] | None = None,
) -> Any:
    """`solve_batch` for more fits than the device holds.

    The arguments stay on the host, where they may be `numpy.memmap`s, and go to the
    device in blocks; one block is sent while another computes, or on a CPU every core
    has blocks of its own. One program serves all blocks, so that any number of fits
    compiles once. Every fit has the answer that `solve_batch` gives it, bit for bit.

    Args:
        fn, x0, data: those of `solve_batch`, as NumPy arrays.
        block: fits on the device at a time.
        progress: show a bar, by tqdm if that is installed and else as a line of text.
        in_axes, bounds, weights, loss, options, lanes, mesh, axis, keep: see
            `solve_batch`.

    Returns:
        What `solve_batch` returns, in NumPy arrays.

    Raises:
        ValueError, TypeError: for arguments of the wrong kind or shape.
    """
    if not (isinstance(block, int) and block >= 1):
        raise ValueError(f"block is {block!r}; give a whole number of at least 1.")
    request = batch_request(fn, keep, loss, options, DeviceLayout(lanes, mesh, axis))
    arguments = x0, unwrap_shared(data), bounds, weights
    refuse_masks(arguments)
    fits = split(arguments, in_axes, np)
    fits = fits._replace(shared=jax.tree.map(native, fits.shared))
    request = request.of_fits(fits)
    fits = request.fits
    block = max(1, min(block, fits.number))
    is_on_cpu = mesh is None and is_eager_on_cpu((fits.shared, loss, options))
    if is_on_cpu and lanes is None:
        block = min(block, size_on_cpu(numbers_of_one(fits.each)))
    return run_in_parts(request, block, is_on_cpu, progress)
