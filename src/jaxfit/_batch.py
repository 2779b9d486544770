"""Many fits of one model, in one program: `solve_batch`.

`_lanes.py` has the algorithm; here are the arguments, the devices and the derivatives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from jaxfit._arrays import ordinary
from jaxfit._compile import Static, compiled
from jaxfit._fits import Fits, split
from jaxfit._implicit import Outcome, derived_from, differentiable_batch
from jaxfit._lanes import Model, is_explicit, model_of, worked_through
from jaxfit._observed import lengthened, unwrap_shared
from jaxfit._options import Options
from jaxfit._solution import Solution
from jaxfit._solve import (
    DEFAULTS,
    check_arguments,
    check_callable,
    without_callable,
)
from jaxfit._words import explained
from jaxfit.losses import Loss


def solve_batch(
    fn: Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    data: PyTree,
    *,
    in_axes: tuple = (0, 0),
    bounds: tuple[PyTree, PyTree] | None = None,
    weights: PyTree | None = None,
    loss: Loss | None = None,
    options: Options | None = None,
    lanes: int | None = None,
    mesh: Mesh | None = None,
    axis: str | None = None,
    keep: Callable[[Solution], Any] | None = None,
) -> Any:
    """Fit the same model to many data: `solve` for each, in one compiled program.

    A fixed number of fits are in flight, and a new one takes the place of each that has
    ended. Under `jax.vmap(solve)` every fit waits for the slowest; here none does, and
    memory does not grow with the number of fits but for data and results.

    Pure: it works under `jit` and inside a `shard_map`, and has the derivatives of
    `solve`. The results do not depend on
    the order of the fits, on their number, or on each other, bit for bit; another
    number of lanes may change their last digits.

    Args:
        fn: residuals of one fit, of (x, data).
        x0: starts; `solve`'s with a batch axis, or one for all.
        data: of all fits; a pytree.
        in_axes: the batch axes of (x0, data) or (x0, data, bounds), as in `jax.vmap`:
            numbers, None for what all fits share, or pytrees of them that prefix the
            argument. Without a third entry bounds are shared.
        bounds, weights, loss, options: see `solve`. Weights have the batch axis of
            `data` if that is one number, and else the first; weights of zero make fits
            of different lengths.
        lanes: fits in flight. None is a number whose rows fit into the cache.
        mesh, axis: spread the fits over the devices along an axis of a mesh. Every
            device works through its own part, and none waits for another.
        keep: what to keep of each fit: a function of its `Solution` that returns a
            pytree of arrays, such as `lambda fit: (fit.x, fit.stderr())`. It runs where
            the fit ends, so that what it drops takes no memory.

    Returns:
        A `Solution` of which every leaf has a leading batch axis, or what `keep`
        returns, likewise.

    Raises:
        ValueError, TypeError: for arguments of the wrong kind or shape; what only the
            numbers show is a status of its fit.
    """
    callables, options = checked_setting(fn, keep, loss, options, lanes)
    arguments = ordinary((x0, unwrap_shared(data), bounds, weights))
    fits = split(arguments, in_axes, jnp)
    return run_batch(callables, fits, loss, options, Placement(lanes, mesh, axis))


class Placement(NamedTuple):
    """Where the fits are computed."""

    lanes: int | None
    mesh: Mesh | None
    axis: str | None


def checked_setting(fn, keep, loss, options, lanes):
    """The user's functions (fn, jac, keep), and options without one."""
    check_callable(fn, "fn", "a function (x, data) -> residuals")
    if keep is not None:
        check_callable(keep, "keep", "a function of a Solution")
    options = DEFAULTS if options is None else options
    check_arguments(loss, options, None)
    if not (lanes is None or (isinstance(lanes, int) and lanes >= 1)):
        raise ValueError(f"lanes is {lanes!r}; give a whole number of at least 1.")
    options, jac = without_callable(options)
    return (fn, jac, keep), options


def run_batch(callables, fits: Fits, loss, options, placement: Placement) -> Any:
    """All fits, by a program that is compiled once for what is alike."""
    with explained(callables[0]):
        return compiled(
            _solve_batch, callables, (fits, loss, options, Static(placement))
        )


def _solve_batch(callables, arguments):
    """`solve_batch` without its compilation."""
    *arguments, placement = arguments
    fits, placement = arguments[0], placement.value
    model = model_of(*callables, *arguments)
    if placement.mesh is not None:
        return _run_on_mesh(model, fits, placement.mesh, placement)
    if placement.axis is not None:
        raise ValueError(f"axis is {placement.axis!r}, and there is no mesh.")
    return _run(model, fits.each, fits.number, placement.lanes)


def _run_on_mesh(model: Model, fits: Fits, mesh: Mesh, placement: Placement):
    """One queue for each device along an axis of the mesh."""
    axis = placement.axis
    if axis is None and len(mesh.axis_names) == 1:
        axis = mesh.axis_names[0]
    if axis not in mesh.axis_names:
        raise ValueError(
            f"axis is {axis!r}; give one of the axes of the mesh, {mesh.axis_names}."
        )
    number, devices = fits.number, mesh.shape[axis]
    size = -(-number // devices)  # of each device's part
    extra = size * devices - number
    numbers, rest = eqx.partition(model, eqx.is_array)

    def part(each, numbers):
        count = jnp.clip(number - size * lax.axis_index(axis), 0, size)
        return _run(eqx.combine(numbers, rest), each, count, placement.lanes)

    def run(each, numbers):
        each = jax.tree.map(lambda leaf: lengthened(leaf, extra), each)
        parts = jax.shard_map(
            part,
            mesh=None if explicit else mesh,
            in_specs=(P(axis), P()),
            out_specs=P(axis),
            check_vma=False,
        )
        return jax.tree.map(lambda leaf: leaf[:number], parts(each, numbers))

    arguments = fits.each, numbers
    explicit = any(map(is_explicit, jax.tree.leaves(arguments)))
    if not explicit:
        mesh = Mesh(mesh.devices, mesh.axis_names)
        return run(*arguments)
    out = NamedSharding(mesh, P() if extra else P(axis))
    arguments = jax.reshard(arguments, NamedSharding(mesh, P()))
    return jax.sharding.auto_axes(run, out_sharding=out)(*arguments)


def _run(model: Model, each: PyTree, count, lanes: int | None):
    """Work through the first `count` fits, with derivatives.

    Those of what is kept are those of `keep` on whole outcomes.
    """
    arrays, rest = eqx.partition((model, count), eqx.is_array)

    def outcomes(each, arrays):
        model, count = eqx.combine(arrays, rest)
        return worked_through(model, each, count, lanes, _outcome)

    def posed(each, arrays):
        model, _ = eqx.combine(arrays, rest)
        return model.posed(each)

    def reports(all):
        each, arrays = all
        model, _ = eqx.combine(arrays, rest)
        found, trips = differentiable_batch(outcomes, posed)(each, arrays)
        _, own = jax.vmap(model.start)(each)
        return jax.vmap(model.report)(found, own, trips)

    def kept(all):
        each, arrays = all
        model, count = eqx.combine(arrays, rest)
        return worked_through(model, each, count, lanes, Model.report)

    return derived_from(kept, reports)((each, arrays))


def _outcome(_, found: Outcome, own, trips):
    """All that derivatives need."""
    return found, trips
