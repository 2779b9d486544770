"""Better starts for fits of many rows, from few of them at a time."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jaxfit._core.options import Options, check_callable, check_loss
from jaxfit._core.parameters import Parameters
from jaxfit._core.solve import solve
from jaxfit._linalg.kernels import identity
from jaxfit._programs.arrays import ordinary, refuse_masks
from jaxfit._programs.call import Static
from jaxfit._programs.compiled import compiled
from jaxfit._programs.errors import explained
from jaxfit._rows.chunks import index_dtype
from jaxfit._rows.linearization import Frame
from jaxfit._rows.table import RowTable, split_rows
from jaxfit._rows.visit import ResidualModel, trace_rows
from jaxfit.losses import Likelihood, Loss

if TYPE_CHECKING:
    import optax


def warm_start(
    fn: Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    data: PyTree,
    *,
    optimizer: "optax.GradientTransformation | None" = None,
    steps: int = 1000,
    batch_rows: int = 256,
    key: Array | None = None,
    loss: Loss | Likelihood | None = None,
    bounds: tuple[PyTree, PyTree] | None = None,
    weights: PyTree | None = None,
) -> PyTree:
    """Descend the cost on random rows: a start for a fit that would start too far away.

    Stochastic gradient descent of the cost that `solve` minimises, divided by the
    number of rows, in one `lax.scan`. Each step costs `batch_rows` rows, so that a
    thousand of them may be cheaper than a single pass, and the noise of the batches
    carries it over dents of the cost that hold a trust region. It comes near to the
    solution and stays there; `solve` takes it from there to all digits.

    Args:
        fn, x0, data, loss, bounds, weights: see `solve`; data and weights as for
            `Chunked`. Bounds hold after every step.
        optimizer: from optax; None is `optax.adam(0.01)`. It sees parameters in the
            structure of `x0`. Its step is in units of the parameters: scale them, or
            the optimizer, so that a step is small for each.
        steps: how many.
        batch_rows: rows of a batch, drawn anew for each step.
        key: of `jax.random`; None is `jax.random.key(0)`.

    Returns:
        a start in the structure of `x0`. Steps whose gradient is not finite are left
        out.

    Raises:
        ValueError, TypeError: for arguments of the wrong kind or shape.
    """
    if optimizer is None:
        import optax

        optimizer = optax.adam(0.01)
    check_callable(fn, "fn", "a function (x, data) -> residuals")
    check_loss(loss)
    _check_positive("steps", steps)
    _check_positive("batch_rows", batch_rows)
    key = jax.random.key(0) if key is None else key
    x0, data, bounds, weights = ordinary((x0, data, bounds, weights))
    problem = _Descent(fn, optimizer, x0, data, weights, bounds, loss)
    with explained(fn):
        return compiled(_descended, problem, key, Static(steps), Static(batch_rows))


class _Descent(NamedTuple):
    """What is descended, and how; a pytree."""

    fn: Callable
    optimizer: Any
    x0: PyTree
    data: PyTree
    weights: PyTree
    bounds: Any
    loss: Loss | Likelihood | None


def _descended(problem: _Descent, key: Array, steps: Static, rows: Static) -> PyTree:
    parameters, optimizer = Parameters(problem.x0), problem.optimizer
    x, bounds = parameters.ravel(problem.x0, "x0"), parameters.bounds(problem.bounds)
    table = split_rows(problem.data, problem.weights)
    model = ResidualModel(problem.fn, "fwd", parameters.unravel, problem.loss)
    size = min(rows.value, table.number)
    batch = trace_rows(model, table, x, size)
    eye = identity(x)
    frame = Frame(eye, eye)

    def step(carry: tuple, key: Array) -> tuple:
        x, memory = carry
        sample = _sample(table, key, size)
        lin = batch._replace(table=sample).linearize(x, frame)
        gradient = lin.gradient / jnp.maximum(lin.count, 1)
        current = parameters.unravel(x)
        with jax.numpy_dtype_promotion("standard"):  # which optax needs
            updates, after = optimizer.update(
                parameters.unravel(gradient), memory, current
            )
        moved = parameters.ravel(jax.tree.map(jnp.add, current, updates), "an update")
        if bounds is not None:
            moved = bounds.project(moved)
        fine = jnp.all(jnp.isfinite(gradient)) & jnp.all(jnp.isfinite(moved))
        new = jax.tree.map(
            lambda new, old: jnp.where(fine, new, old), (moved, after), (x, memory)
        )
        return new, None

    start = x, optimizer.init(parameters.unravel(x))
    (x, _), _ = lax.scan(step, start, jax.random.split(key, steps.value))
    return parameters.unravel(x)


def subsample_start(
    fn: Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    data: PyTree,
    *,
    sample_rows: int = 10_000,
    key: Array | None = None,
    bounds: tuple[PyTree, PyTree] | None = None,
    weights: PyTree | None = None,
    loss: Loss | Likelihood | None = None,
    options: Options | None = None,
) -> PyTree:
    """A full fit of some random rows: a start that is a few passes from the solution.

    A sample of k of m rows gives the solution to about sqrt(m / k) standard errors of
    the whole, and every trip of its fit costs k rows instead of m.

    Args:
        fn, x0, data, bounds, weights, loss, options: see `solve`; data and weights as
            for `Chunked`. Of NumPy arrays, `numpy.memmap`s for example, only the
            sampled rows are read.
        sample_rows: how many, drawn with replacement.
        key: of `jax.random`; None is `jax.random.key(0)`.

    Returns:
        a start in the structure of `x0`: the `x` of that fit.

    Raises:
        ValueError, TypeError: for arguments of the wrong kind or shape.
    """
    _check_positive("sample_rows", sample_rows)
    refuse_masks((x0, data, bounds, weights))
    table = split_rows(data, weights)
    key = jax.random.key(0) if key is None else key
    sample = _sample(table, key, min(sample_rows, table.number))
    data, weights = sample.marked(sample.rows, sample.shared)
    return solve(
        fn, x0, data, bounds=bounds, weights=weights, loss=loss, options=options
    ).x


def _sample(table: RowTable, key: Array, number: int) -> RowTable:
    """Random rows."""
    most = table.number
    chosen = jax.random.randint(key, (number,), 0, most, index_dtype(most))

    def rows(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray) and not isinstance(chosen, Tracer):
            return leaf[np.asarray(chosen)]
        return jnp.take(leaf, chosen, axis=0)

    return table._replace(rows=[rows(leaf) for leaf in table.rows])


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; give a whole number of at least 1.")
