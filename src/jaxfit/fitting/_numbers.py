"""The numbers of a fit, and of many: what a program gives, as NumPy arrays."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxfit._programs.host import unpack
from jaxfit.fitting._problem import Problem


class AtSolver(NamedTuple):
    """A solution as the solver has it, for x from the problem's origin."""

    x: Any  # (n,)
    covariance: Any  # (n, n)


class Numbers(NamedTuple):
    """What was computed of a fit; None for what was not.

    Of many fits all have a leading axis.
    """

    x: Any  # (n,) the varied parameters
    covariance: Any  # (n, n)
    determined: Any  # (k,) whether the data say anything about it; Booleans
    active: Any  # (n,) -1 at a lower bound, 1 at an upper one; integers
    cost: Any
    optimality: Any
    status: Any  # an integer, as the next two
    nfev: Any
    count: Any  # of the residuals that count
    gradient: Any  # (n,) of the cost
    values: Any = None  # (k,) of all parameters, and then of what is derived from them
    errors: Any = None  # (k,) their standard errors
    start: Any = None  # (n,)
    best: Any = None  # (points,) the model at the data
    moved: Any = None  # (k, points) corrections of the k coordinates with errors
    solver_x: Any = None  # (n,) where the problem has an origin, as the next
    solver_covariance: Any = None  # (n, n)

    @classmethod
    def shapes(
        cls, problem: Problem, points: int | None, corrections: int = 0
    ) -> "Numbers":
        """What a program gives for a fit, `best` at so many points, as shapes."""
        n, k = len(problem.varied), len(problem.names) + len(problem.derived_names)
        has_origin = problem.origin is not None
        return cls(
            x=(n,),
            covariance=(n, n),
            determined=(k,),
            active=(n,),
            cost=(),
            optimality=(),
            status=(),
            nfev=(),
            count=(),
            gradient=(n,),
            values=(k,),
            errors=(k,),
            best=None if points is None else (points,),
            moved=(corrections, points) if corrections and points is not None else None,
            solver_x=(n,) if has_origin else None,
            solver_covariance=(n, n) if has_origin else None,
        )

    @classmethod
    def unpacked(
        cls, vectors: Float[np.ndarray, "N k"], shapes: "Numbers"
    ) -> "Numbers":
        """The numbers of many fits, from a vector of each."""
        numbers = unpack(vectors, shapes)
        return numbers._replace(
            determined=numbers.determined.astype(bool),
            active=numbers.active.astype(int),
            status=numbers.status.astype(int),
            nfev=numbers.nfev.astype(int),
            count=numbers.count.astype(int),
        )

    def nth(self, k: int) -> "Numbers":
        """The numbers of one of many fits, single ones as Python has them."""

        def of_one(values: np.ndarray) -> Any:
            part = values[k]
            return part if part.ndim else part.item()

        return jax.tree.map(of_one, self)

    @property
    def success(self) -> Any:
        """Whether it ended well."""
        return self.status > 0

    @property
    def at_solver(self) -> AtSolver:
        """The solution as the solver has it: see `Problem.origin`."""
        if self.solver_x is None:
            return AtSolver(self.x, self.covariance)
        return AtSolver(self.solver_x, self.solver_covariance)
