"""FitBenchmarking's parser of problems of CUTEst, as sif2jax has them.

A problem file has two lines, "# CUTEst" and the problem's name.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import sif2jax
from fitbenchmarking.parsing.base_parser import Parser
from fitbenchmarking.parsing.fitting_problem import FittingProblem


class CutestParser(Parser):
    """Equations F(p) = 0 as a fit of the values F to zeros.

    F and its exact Jacobian are programs that JAX compiled once, and every solver
    calls these.
    """

    def parse(self):
        """The problem, with bounds where it has some."""
        name = self.file.read().split()[-1]
        problem, values, jacobian = programs(name)
        start = np.asarray(problem.y0, float)
        zeros = np.zeros(len(values(start)))
        fitting = FittingProblem(self.options)
        fitting.name, fitting.format = problem.name, "cutest"
        fitting.equation = fitting.description = problem.name
        fitting.data_x, fitting.data_y = np.arange(len(zeros), dtype=float), zeros
        fitting.data_e = np.ones(len(zeros))
        fitting.starting_values = [{f"p{i}": float(p) for i, p in enumerate(start)}]
        fitting.function = lambda x, *p: _called(values, p)
        fitting.jacobian = lambda x, p: np.asarray(jacobian(np.asarray(p, float)))
        if problem.bounds is not None:
            limits = np.transpose(np.broadcast_arrays(*problem.bounds, start)[:2])
            fitting.value_ranges = [tuple(pair) for pair in limits.tolist()]
        return fitting


@functools.cache
def programs(name: str):
    """The problem, its values and their Jacobian: once, however often it is parsed."""
    problem = getattr(sif2jax.cutest, name)()

    def values(p):
        return problem.constraint(p)[0]

    return problem, jax.jit(values), jax.jit(jax.jacfwd(values))


def _called(values, p):
    """Values in NumPy, unless JAX traces."""
    if any(isinstance(one, jax.core.Tracer) for one in p):
        return values(jnp.stack(p))
    return np.asarray(values(np.asarray(p, float)))


def names(largest: int) -> list[str]:
    """Problems with more values than parameters, of which there are at most `largest`.

    NIST's are left out.
    """
    chosen = []
    for problem in sif2jax.nonlinear_equations_problems:
        size = problem.y0.size
        if size > largest or "NIST" in (type(problem).__doc__ or ""):
            continue
        shape, inequalities = jax.eval_shape(problem.constraint, problem.y0)
        if inequalities is None and shape.size > size:
            chosen.append(problem.name)
    return chosen
