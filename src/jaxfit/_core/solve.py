"""One fit as one `lax.while_loop`: bounded Trust Region Reflective least squares.

The method is that of Branch, Coleman and Li (SIAM J. Sci. Comput. 21, 1999), which
SciPy's `trf` implements with an inner loop that shrinks the trust region until a step
is accepted. Here the loop is flat. One trip evaluates one trial point, accepts or
refuses it, adjusts the region, asks whether the fit is over, and proposes the next
point:

    while_loop(linearize -> accept -> new_region -> judge -> propose)

The start is the first trial point, so that the user's function stands in the program
once. Read on in `fit.py` (what is set up, and the loop), `trip.py` (one trip),
`bounds.py` (the derivation, and the step) and `rules.py`; then `certificate.py`, what a
success is, and `derivative.py`, what a solution's derivative is.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jaxfit._core.auto_scale import Fit as AutoFit
from jaxfit._core.auto_scale import (
    Ways,
    has_own_scale,
    number_of_free,
    with_own_scale,
)
from jaxfit._core.derivative import differentiable
from jaxfit._core.fit import Request, Setup, run, set_up, solution, whole_outcome
from jaxfit._core.options import (
    DEFAULTS,
    Options,
    check_arguments,
    check_callable,
    without_callable,
)
from jaxfit._core.solution import Solution
from jaxfit._programs.arrays import ordinary
from jaxfit._programs.compiled import compiled, lean_first, specialised
from jaxfit._programs.errors import explained
from jaxfit._rows.devices import on_each_device
from jaxfit._rows.predictions import RowNumbers
from jaxfit._rows.table import Shared, map_rows, split_rows
from jaxfit._rows.ways import Chunked, Sharded, Whole, distributed
from jaxfit.losses import Likelihood, Loss


def solve(
    fn: Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    data: PyTree = None,
    *,
    bounds: tuple[PyTree, PyTree] | None = None,
    weights: PyTree | None = None,
    loss: Loss | Likelihood | None = None,
    options: Options | None = None,
    rows: Whole | Chunked | Sharded | None = None,
) -> Solution:
    """Minimise half the sum of the squared residuals `fn(x, data)` over x.

    Bounded Trust Region Reflective least squares (Branch, Coleman and Li, 1999) as one
    XLA program. Pure: it works under `jit`, `vmap`, `scan` and `shard_map`; called
    eagerly it is compiled once for each function and each set of shapes. The solution
    has derivatives by the implicit function theorem: see `Options(derivative=...)`.

    Args:
        fn: residuals of (x, data): an array or a pytree of arrays of any shapes.
            Complex residuals count as their real and imaginary parts. With a likelihood
            a `Prediction(mean, observed)` in their place, or a pytree of them; plain
            arrays beside them are residuals of variance 1, such as those of a prior.
        x0: the start: a pytree of real floating arrays or scalars. Their common dtype
            is the dtype of the fit.
        data: passed on to `fn`; a pytree. Masked elements are refused; residuals are
            left out by their weights.
        bounds: None, or (lower, upper), each a number or a pytree that matches or
            prefixes `x0`. Equal bounds fix a parameter at that value.
        weights: None, or non-negative numbers that multiply the squared residuals, such
            as 1/sigma², in the residuals' structure or broadcast to it. A residual of
            weight zero does not count and may be NaN.
        loss: a robust loss from `jaxfit.losses`, of which "auto" ones find their scale
            themselves; or a likelihood, whose cost is half the deviance where it has
            one. Then weights are frequencies, and errors come from the expected
            information, whatever `absolute` is. None is plain least squares.
        options: tolerances, scaling, the Jacobian: see `Options`.
        rows: how residual rows are visited: `Whole()`, which None is too,
            `Chunked(size)`, or `Sharded(mesh, axis)`.

    Returns:
        A `Solution`. Its `success` is a certificate. Nothing is raised for what only
        the numbers show: a start outside its bounds or NaN data is a status.

    Raises:
        ValueError, TypeError: at trace time, for arguments of the wrong kind or shape.
    """
    check_callable(fn, "fn", "a function (x, data) -> residuals")
    options = DEFAULTS if options is None else options
    check_arguments(loss, options, rows)
    options, jac = without_callable(options)
    x0, data, bounds, weights = ordinary((x0, data, bounds, weights))
    if has_own_scale(loss):
        fit = AutoFit(fn, x0, data, weights, bounds, loss, options)
        return with_own_scale(fit, _ways(rows), number_of_free(x0, bounds))
    function, own = fn, RowNumbers.of(loss)
    if own is not None:
        function, jac, loss = own.given_to(fn), own.kept_from(jac), own.loss
        data = data, own.numbers
    if isinstance(rows, Sharded):
        rows, data, weights = distributed(rows, data, weights)
    request = Request(
        fn=function,
        jac=jac,
        x0=x0,
        data=data,
        bounds=bounds,
        weights=weights,
        loss=loss,
        options=options,
        rows=rows,
    )
    with explained(fn):
        if isinstance(rows, Sharded):
            return compiled(specialised(_solve, False), request)
        return lean_first(_solve, request)


def _ways(rows: Whole | Chunked | Sharded | None) -> Ways:
    """How the stages of a fit that finds its scale are run."""

    def solved(fit: AutoFit) -> Solution:
        return solve(
            fit.fn,
            fit.x0,
            fit.data,
            bounds=fit.bounds,
            weights=fit.weights,
            loss=fit.loss,
            options=fit.options,
            rows=rows,
        )

    def weighted(weights: PyTree, factor: Array) -> PyTree:
        if weights is None:
            return Shared(factor)
        return map_rows(lambda weight: jnp.asarray(weight) * factor, weights)

    return Ways(solved, solved, solved, Shared, weighted)


def _solve(is_lean: bool, request: Request) -> Any:
    """`solve` without its compilation; lean with a flag that it is incomplete."""
    rows = request.rows
    if isinstance(rows, Sharded) and rows.mesh is not None:
        return _on_mesh(request, rows, rows.mesh)
    setup = set_up(request, is_lean=is_lean)
    if is_lean:
        outcome, is_incomplete = run(setup, whole_outcome)
        return solution(setup, outcome), is_incomplete
    arrays, rest = eqx.partition(setup, eqx.is_array)

    def rebuilt(arrays: PyTree) -> Setup:
        return eqx.combine(arrays, rest)

    outcome = differentiable(
        lambda arrays: run(rebuilt(arrays), whole_outcome),
        lambda arrays: rebuilt(arrays).differentiable,
    )(arrays)
    return solution(setup, outcome)


def _on_mesh(request: Request, rows: Sharded, mesh: Mesh) -> Solution:
    """The same fit on all devices, each with rows of its own."""
    functions = {"fn": request.fn, "jac": request.jac}  # may close over what is traced
    shared = request._replace(fn=None, jac=None, data=None, weights=None, rows=None)

    def fit(
        data: PyTree, weights: PyTree, counts: Array | None, shared: Request
    ) -> Solution:
        own_rows = Sharded(None, rows.axis, rows.size, counts)
        return _solve(
            False,
            shared._replace(data=data, weights=weights, rows=own_rows, **functions),
        )

    table = split_rows(request.data, request.weights)
    return on_each_device(mesh, rows.axes, rows.counts, fit, table, shared)
