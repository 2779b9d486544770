"""Where fits by name start: guesses by NumPy for few data sets, else by a program."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxfit._batch.parts import in_parts, size_on_cpu
from jaxfit._programs.backend import is_eager_on_cpu
from jaxfit._programs.host import double_precision
from jaxfit._programs.memory import Budget, budget
from jaxfit._scipy.observations import Points
from jaxfit.fitting._padding import FitInputs, Padding, Parted, padded_length
from jaxfit.fitting._points import Axes, DataSet
from jaxfit.fitting._problem import Numeric, Problem, traced_function
from jaxfit.fitting._programs import BLOCK_NUMBERS, start_vector
from jaxfit.models._guess import is_for_numpy

# Points for which starts are guessed at a time by a program, on a CPU and elsewhere.
GUESSES = Budget(2**17, 1, 2**12), Budget(2**25, 1, 2**16)


def start_vectors(
    problem: Problem, data_sets: DataSet, axes: Axes
) -> Float[np.ndarray, "N n"]:
    """Where the fits start: what is given, and guesses for the rest."""
    number = axes.number(data_sets)
    if all(name in data_sets.starts for name in problem.varied):
        starts = [data_sets.starts[name] for name in problem.varied]
        return np.stack(np.broadcast_arrays(*starts, np.zeros(number))[:-1], axis=1)
    with double_precision(traced_function(problem.model)):
        points = np.size(data_sets.data.y) // (1 if axes.shared else max(number, 1))
        if is_for_numpy(problem.model, number, points):
            with np.errstate(all="ignore"):
                vectors = [
                    np.asarray(start_vector(problem, axes.nth(data_sets, k)))
                    for k in range(number)
                ]
            return np.stack(vectors) if vectors else np.zeros((0, len(problem.varied)))
        return _by_program(problem, data_sets, axes)


def _by_program(
    problem: Problem, data_sets: DataSet, axes: Axes
) -> Float[np.ndarray, "N n"]:
    shape, number = axes.shape(data_sets), axes.number(data_sets)
    is_on_cpu = is_eager_on_cpu(data_sets)
    length = padded_length(problem, math.prod(shape), is_for_few=False)
    pad = Padding(problem, shape, length)
    weights = data_sets.valid
    if weights is None and pad.is_longer:
        weights = np.ones(shape)
    inputs = Parted.of(
        FitInputs(y=data_sets.data.y, weights=weights, known=data_sets.starts),
        FitInputs(y=not axes.shared, weights=axes.valid == 0, known=True),
        pad,
    )
    size = size_on_cpu(length) if is_on_cpu else min(number, BLOCK_NUMBERS // length)
    x = pad.points(data_sets.data.x)

    def arguments(part: FitInputs, idle: np.ndarray) -> tuple:
        return problem, x, inputs.shared, pad.each(part), idle

    return in_parts(_starts, arguments, inputs.each, max(size, 1), is_on_cpu=is_on_cpu)


def _starts(
    problem: Problem,
    x: PyTree,
    shared: FitInputs,
    each: FitInputs,
    idle: Bool[Array, " N"],
) -> Float[Array, "N n"]:
    """`start_vector` of all but idle ones; in chunks, for guesses need memory."""
    number = len(idle)

    def of_one(k: Int[Array, ""]) -> Float[Numeric, " n"]:
        inputs = Parted(jax.tree.map(lambda leaf: leaf[k], each), shared).whole
        valid = None if inputs.weights is None else inputs.weights > 0
        data_set = DataSet(Points(x, inputs.y, None), valid, inputs.known)
        return start_vector(problem, data_set)

    points = shared.y.size if each.y is None else each.y.size // number
    size = max(1, min(number, budget(*GUESSES).holds(8 * max(points, 1))))
    chunks = -(-number // size)
    rows = np.minimum(np.arange(chunks * size), number - 1).reshape(chunks, size)
    rows = jnp.asarray(rows)

    def step(
        k: Int[Array, ""], vectors: Float[Array, "chunks size n"]
    ) -> Float[Array, "chunks size n"]:
        return vectors.at[k].set(jax.vmap(of_one)(rows[k]))

    wanted = -(-jnp.sum(~idle) // size)
    vectors = jnp.zeros((chunks, size, len(problem.varied)))
    vectors = jax.lax.fori_loop(0, wanted, step, vectors)
    return vectors.reshape(-1, len(problem.varied))[:number]
