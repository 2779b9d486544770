"""Many fits of one model, in one program: `solve_batch`.

`_programs/many.py` and `_core/lanes.py` go from fit to fit; here are the arguments, the
devices and the derivatives.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, PyTree

from jaxfit._batch.axes import BatchArguments, split
from jaxfit._batch.own_scale import batch_with_own_scales
from jaxfit._batch.parts import (
    NotNumbers,
    in_parts,
    lean_first_in_parts,
    numbers_of_one,
    size_on_cpu,
    to_device,
)
from jaxfit._batch.row_numbers import with_row_numbers
from jaxfit._core.auto_scale import Fit as AutoFit
from jaxfit._core.auto_scale import has_own_scale
from jaxfit._core.derivative import (
    Differentiable,
    Outcome,
    derived_from,
    differentiable_batch,
)
from jaxfit._core.fit import (
    Request,
    Setup,
    outcome_at_start,
    run,
    set_up,
    solution,
    whole_outcome,
)
from jaxfit._core.options import (
    DEFAULTS,
    Options,
    check_arguments,
    check_callable,
    without_callable,
)
from jaxfit._core.solution import Solution
from jaxfit._linalg.seldom import note, reporting
from jaxfit._programs.arrays import ordinary
from jaxfit._programs.backend import is_eager_on_cpu
from jaxfit._programs.call import Static
from jaxfit._programs.compiled import compiled, specialised
from jaxfit._programs.errors import explained
from jaxfit._programs.hoist import hoisted
from jaxfit._programs.one_function import can_be_one_function
from jaxfit._programs.spread import is_explicit
from jaxfit._rows.predictions import RowNumbers
from jaxfit._rows.table import lengthened, unwrap_shared
from jaxfit.losses import Likelihood, Loss


def solve_batch(
    fn: Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    data: PyTree,
    *,
    in_axes: tuple = (0, 0),
    bounds: tuple[PyTree, PyTree] | None = None,
    weights: PyTree | None = None,
    loss: Loss | Likelihood | None = None,
    options: Options | None = None,
    lanes: int | None = None,
    mesh: Mesh | None = None,
    axis: str | None = None,
    keep: Callable[[Solution], Any] | None = None,
    progress: bool = False,
) -> Any:
    """Fit the same model to many data: `solve` for each, in one compiled program.

    On a CPU the fits are done one after the other, by the program of a single fit. On
    an accelerator a number of them, the lanes, are in flight, and a new one takes the
    place of each that has ended. Memory does not grow with the number of fits but for
    data and results.

    Pure: it works under `jit` and inside a `shard_map`, and has the derivatives of
    `solve`. Called eagerly on a CPU it uses all cores. The results do not depend on
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
        lanes: fits in flight, on any device. None is a loop over the fits on CPUs, and
            elsewhere as many as keep the device busy.
        mesh, axis: spread the fits over the devices along an axis of a mesh. Every
            device works through its own part, and none waits for another.
        keep: what to keep of each fit: a function of its `Solution` that returns a
            pytree of arrays, such as `lambda fit: (fit.x, fit.stderr())`. It runs where
            the fit ends, so that what it drops takes no memory.
        progress: show a bar, by tqdm if that is installed and else as a line of text.

    Returns:
        A `Solution` of which every leaf has a leading batch axis, or what `keep`
        returns, likewise.

    Raises:
        ValueError, TypeError: for arguments of the wrong kind or shape; what only the
            numbers show is a status of its fit.
    """
    layout = DeviceLayout(lanes, mesh, axis)
    if has_own_scale(loss):
        fit = AutoFit(fn, x0, unwrap_shared(data), weights, bounds, loss, options)
        way = {"lanes": lanes, "mesh": mesh, "axis": axis, "progress": progress}
        known = functools.partial(solve_batch, **way)
        solutions = batch_with_own_scales(known, fit, in_axes)
        return solutions if keep is None else jax.vmap(keep)(solutions)
    request = batch_request(fn, keep, loss, options, layout)
    arguments = ordinary((x0, unwrap_shared(data), bounds, weights))
    by_itself = layout == DeviceLayout(None, None, None)
    if by_itself and is_eager_on_cpu((request, arguments)):
        request = request.of_fits(split(arguments, in_axes, np))
        size = size_on_cpu(numbers_of_one(request.fits.each))
        with contextlib.suppress(NotNumbers):
            return to_device(
                run_in_parts(request, size, is_on_cpu=True, progress=progress)
            )
    if progress:
        raise ValueError(
            "progress is shown where fits are done part by part: called eagerly on a "
            "CPU, without lanes or mesh. Leave it out, or use solve_blocks."
        )
    request = request.of_fits(split(arguments, in_axes, jnp))
    with explained(fn):
        return compiled(specialised(_solve_batch, False), request)


class DeviceLayout(NamedTuple):
    """The place where fits are computed."""

    lanes: int | None
    mesh: Mesh | None
    axis: str | None


class BatchRequest(NamedTuple):
    """What is asked of a batch: the arguments of `solve_batch`, checked; a pytree."""

    fn: Any
    jac: Any  # of `Options`, apart
    keep: Any
    fits: BatchArguments
    loss: Loss | Likelihood | None
    options: Options
    layout: Static  # a `DeviceLayout`

    def of_fits(self, fits: BatchArguments) -> "BatchRequest":
        """The request with its fits, whose data bring all that is one for each row."""
        own = RowNumbers.of(self.loss)
        if own is None:
            return self._replace(fits=fits)
        return self._replace(
            fn=own.given_to(self.fn),
            jac=own.kept_from(self.jac),
            fits=with_row_numbers(fits, own, self.fn),
            loss=own.loss,
        )


NO_FITS = BatchArguments(None, None)


def batch_request(
    fn: Any,
    keep: Any,
    loss: Loss | Likelihood | None,
    options: Options | None,
    layout: DeviceLayout,
) -> BatchRequest:
    """A request but for its fits."""
    check_callable(fn, "fn", "a function (x, data) -> residuals")
    if keep is not None:
        check_callable(keep, "keep", "a function of a Solution")
    options = DEFAULTS if options is None else options
    check_arguments(loss, options, None)
    lanes = layout.lanes
    if not (lanes is None or (isinstance(lanes, int) and lanes >= 1)):
        raise ValueError(f"lanes is {lanes!r}; give a whole number of at least 1.")
    options, jac = without_callable(options)
    return BatchRequest(fn, jac, keep, NO_FITS, loss, options, Static(layout))


def batch_of_fits(
    fn: Callable,
    x0: PyTree,
    data: PyTree,
    in_axes: tuple,
    idle: Bool[Array, " N"] | None,
    *,
    bounds: PyTree,
    weights: PyTree,
    loss: Loss | Likelihood | None,
    options: Options | None,
    mesh: Mesh | None = None,
    keep: Callable[[Solution], Any],
    is_lean: bool,
) -> Any:
    """`solve_batch` in a program of this library, for all fits but idle ones.

    A batch of one is a single fit. Lean ones give a pair, with flags of which are
    incomplete.
    """
    layout = DeviceLayout(None, mesh, None)
    fits = split((x0, data, bounds, weights), in_axes, jnp)._replace(idle=idle)
    request = batch_request(fn, keep, loss, options, layout).of_fits(fits)
    batch = batch_of(request, is_lean)
    if fits.number > 1:
        return _laid_out(batch, fits, layout)
    one = run(batch.setup(jax.tree.map(_first, fits.each)), batch.keep)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], one)


def run_in_parts(
    request: BatchRequest, size: int, is_on_cpu: bool, progress: bool
) -> Any:
    """All fits, from arrays on the host to arrays on the host, so many at a time."""
    each = request.fits.each

    def arguments(part: PyTree, idle: np.ndarray) -> tuple[BatchRequest]:
        fits = request.fits._replace(each=part, idle=idle)
        return (request._replace(fits=fits),)

    with explained(request.fn):
        if is_on_cpu and request.layout.value.lanes is None:
            return lean_first_in_parts(
                _solve_batch, arguments, each, size, progress=progress
            )
        return in_parts(
            specialised(_solve_batch, False),
            arguments,
            each,
            size,
            is_on_cpu=is_on_cpu,
            progress=progress,
        )


class Keep(NamedTuple):
    """What is kept of each fit; a report of `run`."""

    # (solution, *constants) -> (what is kept, flags of lean fits); None: all
    function: Callable | None
    constants: list

    def __call__(self, setup: Setup, outcome: Outcome) -> Any:
        whole = solution(setup, outcome)
        if self.function is None:
            return whole
        kept, flags = self.function(whole, *self.constants)
        for flag in flags:  # of a lean fit
            note(flag)
        return kept


class Batch(NamedTuple):
    """Fits of one model: a pytree of arrays and of what is none."""

    first: Setup  # the model, traced; each fit has arrays of its own
    shared: PyTree  # of `BatchArguments`
    keep: Keep

    def setup(self, each: PyTree) -> Setup:
        """One fit."""
        return self.first.of_others(*BatchArguments(each, self.shared).one(each))


def _solve_batch(is_lean: bool, request: BatchRequest) -> Any:
    """`solve_batch` without its compilation; lean with flags of what is incomplete."""
    batch = batch_of(request, is_lean)
    return _laid_out(batch, request.fits, request.layout.value)


def _laid_out(batch: Batch, fits: BatchArguments, layout: DeviceLayout) -> Any:
    """What is kept of all fits, wherever they are computed."""
    if layout.mesh is not None:
        return _on_mesh(batch, fits, layout.mesh, layout.axis, layout.lanes)
    if layout.axis is not None:
        raise ValueError(f"axis is {layout.axis!r}, and there is no mesh.")
    return _fitted(batch, fits.each, fits.idle, layout.lanes)


def batch_of(request: BatchRequest, is_lean: bool = False) -> Batch:
    """The batch, its functions traced at the first fit."""
    fits = request.fits
    x0, data, bounds, weights = fits.one(jax.tree.map(_first, fits.each))
    setup = set_up(
        Request(
            fn=request.fn,
            jac=request.jac,
            x0=x0,
            data=data,
            bounds=bounds,
            weights=weights,
            loss=request.loss,
            options=request.options,
        ),
        is_lean=is_lean,
    )
    batch = Batch(setup, fits.shared, Keep(None, []))
    if request.keep is None:
        return batch
    example = jax.eval_shape(lambda: solution(setup, outcome_at_start(setup)))

    def noting(result: Solution) -> tuple[Any, list]:
        with reporting(is_lean) as flags:
            return request.keep(result), flags

    function, constants, jaxpr = hoisted(noting, example)
    batch = batch._replace(keep=Keep(function, constants))
    if can_be_one_function(jaxpr, 1):
        return batch
    return batch._replace(first=setup._replace(is_one_function=False, in_parts=False))


def _first(leaf: Array) -> Array:
    """What one fit looks like: the first, if it can be had."""
    if len(leaf) and not is_explicit(leaf):
        return leaf[0]
    return jnp.zeros(leaf.shape[1:], leaf.dtype)


def _on_mesh(
    batch: Batch, fits: BatchArguments, mesh: Mesh, axis: str | None, lanes: int | None
) -> Any:
    """The fits in equal parts on the devices along an axis of the mesh."""
    if axis is None and len(mesh.axis_names) == 1:
        axis = mesh.axis_names[0]
    if axis not in mesh.axis_names:
        raise ValueError(
            f"axis is {axis!r}; give one of the axes of the mesh, {mesh.axis_names}."
        )
    number = fits.number
    extra = -number % mesh.shape[axis]
    numbers, rest = eqx.partition(batch, eqx.is_array)

    def part(each: tuple, numbers: PyTree) -> Any:
        arrays, idle = each
        return _fitted(eqx.combine(numbers, rest), arrays, idle, lanes)

    arguments = (fits.each, fits.idle), numbers
    explicit = any(map(is_explicit, jax.tree.leaves(arguments)))

    def on_all(each: tuple, numbers: PyTree) -> Any:
        each = jax.tree.map(lambda leaf: lengthened(leaf, extra), each)
        parts = jax.shard_map(
            part,
            mesh=None if explicit else mesh,
            in_specs=(P(axis), P()),
            out_specs=P(axis),
            check_vma=False,
        )
        return jax.tree.map(lambda leaf: leaf[:number], parts(each, numbers))

    if not explicit:
        mesh = Mesh(mesh.devices, mesh.axis_names)
        return on_all(*arguments)
    out = NamedSharding(mesh, P() if extra else P(axis))
    arguments = jax.reshard(arguments, NamedSharding(mesh, P()))
    return jax.sharding.auto_axes(on_all, out_sharding=out)(*arguments)


def _fitted(batch: Batch, each: PyTree, idle: Any, lanes: int | None) -> Any:
    """What is kept of all fits, with derivatives.

    These are those of `keep` on whole outcomes.
    """
    arrays, rest = eqx.partition(batch, eqx.is_array)

    def reported(each: PyTree, arrays: PyTree, report: Callable) -> Any:
        batch = eqx.combine(arrays, rest)

        def of_one(one: PyTree, idle: Any) -> Any:
            return run(batch.setup(one), report(batch), lanes, idle)

        return jax.vmap(of_one)(each, idle)

    def outcomes(each: PyTree, arrays: PyTree) -> Outcome:
        return reported(each, arrays, lambda _: whole_outcome)

    def differentiable(one: PyTree, arrays: PyTree) -> Differentiable:
        return eqx.combine(arrays, rest).setup(one).differentiable

    def kept_of_outcomes(both: tuple) -> Any:
        outcome, batch = differentiable_batch(outcomes, differentiable)(*both), both[1]
        batch = eqx.combine(batch, rest)

        def kept_of_one(one: PyTree, outcome: Outcome) -> Any:
            return batch.keep(batch.setup(one), outcome)

        return jax.vmap(kept_of_one)(both[0], outcome)

    def kept(both: tuple) -> Any:
        each, arrays = both
        return reported(each, arrays, lambda batch: batch.keep)

    if batch.first.setting.is_lean:
        return kept((each, arrays))
    return derived_from(kept, kept_of_outcomes)((each, arrays))
