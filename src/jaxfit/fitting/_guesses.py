"""Where fits by name start: guesses by NumPy for few data sets, else by a program."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxfit._batch.parts import in_parts, size_on_cpu
from jaxfit._programs.backend import is_eager_on_cpu
from jaxfit._programs.host import double_precision
from jaxfit._programs.memory import Budget, budget
from jaxfit._scipy.observations import Points
from jaxfit.fitting._padding import Padding, Task, padded_length, parted
from jaxfit.fitting._problem import Problem
from jaxfit.fitting._programs import BLOCK_NUMBERS, Axes, Case, named, start_vector
from jaxfit.models._guess import is_for_numpy

# Points for which starts are guessed at a time by a program, on a CPU and elsewhere.
GUESSES = Budget(2**17, 1, 2**12), Budget(2**25, 1, 2**16)


def run_starts(problem: Problem, cases: Case, axes: Axes) -> Float[np.ndarray, "N n"]:
    """Where the fits start: what is given, and guesses for the rest."""
    number = axes.number(cases)
    if all(name in cases.starts for name in problem.varied):
        given = [cases.starts[name] for name in problem.varied]
        return np.stack(np.broadcast_arrays(*given, np.zeros(number))[:-1], axis=1)
    with double_precision(named(problem.model)):
        points = np.size(cases.data.y) // (1 if axes.shared else max(number, 1))
        if is_for_numpy(problem.model, number, points):
            with np.errstate(all="ignore"):
                found = [
                    np.asarray(start_vector(problem, axes.nth(cases, k)))
                    for k in range(number)
                ]
            return np.stack(found) if found else np.zeros((0, len(problem.varied)))
        return _starts_by_program(problem, cases, axes)


def _starts_by_program(problem: Problem, cases: Case, axes: Axes) -> np.ndarray:
    number, x, y = axes.number(cases), cases.data.x, cases.data.y
    shape = np.shape(y) if axes.shared else np.shape(y)[1:]
    is_on_cpu = is_eager_on_cpu(cases)
    length = padded_length(problem, math.prod(shape), is_for_few=False)
    pad = Padding(problem, shape, length)
    weights = cases.valid
    if weights is None and length != math.prod(shape):
        weights = np.ones(shape)
    is_each = Task(y=not axes.shared, weights=axes.valid == 0, known=True)
    task = Task(y, weights=weights, known=cases.starts)
    each, shared = parted(task, is_each, pad)
    size = size_on_cpu(length) if is_on_cpu else min(number, BLOCK_NUMBERS // length)
    x = pad.points(x)

    def arguments(part, idle):
        return problem, x, shared, pad.each(part), idle

    return in_parts(_starts, arguments, each, max(size, 1), is_on_cpu=is_on_cpu)


def _starts(problem, x, shared, each, idle):
    """`start_vector` of all cases but idle ones; in chunks, for guesses need memory."""
    number = len(idle)

    def of_one(k):
        own = jax.tree.map(lambda leaf: leaf[k], each)
        task: Task = eqx.combine(own, shared)
        valid = None if task.weights is None else task.weights > 0
        return start_vector(problem, Case(Points(x, task.y, None), valid, task.known))

    points = shared.y.size if each.y is None else each.y.size // number
    size = max(1, min(number, budget(*GUESSES).holds(8 * max(points, 1))))
    chunks = -(-number // size)
    rows = np.minimum(np.arange(chunks * size), number - 1).reshape(chunks, size)
    rows = jnp.asarray(rows)

    def step(k, found):
        return found.at[k].set(jax.vmap(of_one)(rows[k]))

    wanted = -(-jnp.sum(~idle) // size)
    found = jnp.zeros((chunks, size, len(problem.varied)))
    found = jax.lax.fori_loop(0, wanted, step, found)
    return found.reshape(-1, len(problem.varied))[:number]
