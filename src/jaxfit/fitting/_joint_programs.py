"""What is computed for data sets that share parameters, as functions of arrays.

`_joint_fit.py` has where such a fit starts, and the program that this is part of.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxfit._core.covariance import degrees_of_freedom
from jaxfit._joint.affine import is_affine, used_inputs
from jaxfit._joint.solution import JointSolution
from jaxfit._joint.solve import solve_joint
from jaxfit._programs.call import Static
from jaxfit._programs.host import pack
from jaxfit._rows.table import Shared
from jaxfit._rows.visit import ResidualModel, visit
from jaxfit._scipy.observations import Points
from jaxfit.fitting._joint_sandwich import Covariances, RowsAt, joint_sandwich
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._priors import names_of_rows
from jaxfit.fitting._problem import Method, Problem
from jaxfit.fitting._programs import finished
from jaxfit.losses import Linear

AT_ONCE = 2**22  # residuals and derivatives of data sets that are described at once


class Split(NamedTuple):
    """The places in the solver's vector of what is shared, and of what each has."""

    shared: tuple[int, ...]
    local: tuple[int, ...]

    @classmethod
    def of(cls, problem: Problem, names: tuple[str, ...]) -> "Split":
        """The places of some names, and of all others."""
        places = enumerate(problem.varied)
        flags = {place: name in names for place, name in places}
        return cls(
            tuple(place for place, is_shared in flags.items() if is_shared),
            tuple(place for place, is_shared in flags.items() if not is_shared),
        )

    @property
    def order(self) -> np.ndarray:
        """Where the solver's vector has its elements in shared and local ones."""
        return np.argsort([*self.shared, *self.local])

    def joined(self, x: Float[Array, " s"], u: Float[Array, " l"]) -> Array:
        """The solver's vector."""
        values = dict(zip((*self.shared, *self.local), [*x, *u], strict=True))
        return jnp.stack([values[place] for place in range(len(values))])


class JointInputs(NamedTuple):
    """What a program is given of data sets that share parameters; a pytree."""

    problem: Problem
    split: Static  # a `Split`
    points: Points  # y, and sigma where each has its own, with a leading axis
    weights: dict[str, Any] | None  # of the residuals, likewise
    x0: Float[Any, " s"]
    u0: Float[Any, "B l"]
    bounds: tuple[Any, Any] | None  # of x
    local_bounds: tuple[Any, Any] | None
    method: Method

    def residuals(self, x: Any, u: Any, data: Points) -> dict[str, Any]:
        """The residuals of one data set."""
        split, names = self.split.value, self.problem.varied
        places = *split.shared, *split.local
        by_name = {names[k]: v for k, v in zip(places, [*x, *u], strict=True)}
        return self.problem.residuals(by_name, data)

    @property
    def has_sigmas(self) -> bool:
        """Whether each data set has its own sigma."""
        sigma, y = self.points.sigma, self.points.y
        return sigma is not None and np.ndim(sigma) == np.ndim(y)

    @property
    def is_linear(self) -> bool:
        """Whether the local parameters are found at once: seen when this is traced."""
        loss = self.method.loss
        if self.local_bounds is not None or not (loss is None or type(loss) is Linear):
            return False
        x, sigma = self.points.x, self.points.sigma
        first = Points(x, self.points.y[0], sigma[0] if self.has_sigmas else sigma)
        u0 = jnp.asarray(self.u0[0])
        return is_affine(lambda u: self.residuals(self.x0, u, first), u0)


class JointEnd(NamedTuple):
    """What came of a joint fit."""

    vectors: Float[Array, "B k"]  # `Numbers` of each data set, packed
    cost: Any
    count: Any  # integers, as those below
    dof: Any
    status: Any
    nfev: Any


def joint_fit(inputs: JointInputs) -> JointEnd:
    """The joint fit, and the numbers of each data set."""
    points, method = inputs.points, inputs.method
    sigma = points.sigma if inputs.has_sigmas else _shared(points.sigma)
    solution = solve_joint(
        inputs.residuals,
        inputs.x0,
        inputs.u0,
        Points(_shared(points.x), points.y, sigma),
        bounds=inputs.bounds,
        local_bounds=inputs.local_bounds,
        weights=inputs.weights,
        loss=method.loss,
        options=method.options,
        linear=inputs.is_linear,
    )
    lin, free = solution.linearization, jnp.asarray(solution.free)
    return JointEnd(
        vectors=_vectors(inputs, solution),
        cost=solution.cost,
        count=jnp.asarray(solution.count),
        dof=degrees_of_freedom(lin, free),
        status=solution.status,
        nfev=jnp.asarray(solution.nfev),
    )


def single_names(problem: Problem, split: Split) -> tuple[str, ...]:
    """All quantities that depend on shared parameters, and on these alone."""
    varied, shared = problem.varied, {*split.shared}

    def quantities(*values: Array) -> dict[str, Any]:
        by_name = dict(zip(varied, values, strict=True))
        return problem.parameters(by_name) | problem.derived(by_name)

    ones = jnp.ones(len(varied))
    names = *problem.names, *problem.derived_names

    def is_single(name: str) -> bool:
        used = used_inputs(lambda *values: quantities(*values)[name], *ones)
        return bool(used) and used <= shared

    return tuple(filter(is_single, names))


def _shared(tree: PyTree) -> PyTree:
    return jax.tree.map(Shared, tree)


# The numbers of each data set


class _Each(NamedTuple):
    """What there is of each data set after a fit."""

    y: Any
    sigma: Any  # None: that of all
    weights: Any
    u: Float[Array, "*B l"]
    status: Int[Array, "*B"]
    active: Int[Array, "*B l"]
    determined: Bool[Array, "*B l"]
    covariances: Any  # `Covariances` of it alone; None for those that are shared


def _vectors(inputs: JointInputs, solution: JointSolution) -> Float[Array, "B k"]:
    method, problem = inputs.method, inputs.problem
    split, of_all = inputs.split.value, solution.uncertainty(method.absolute)
    covariances = Covariances(
        shared=of_all.covariance,
        cross=jnp.asarray(solution.cross_covariance(method.absolute)),
        local=jnp.asarray(solution.local_covariance(method.absolute)),
    )
    each = _Each(
        y=inputs.points.y,
        sigma=inputs.points.sigma if inputs.has_sigmas else None,
        weights=inputs.weights,
        u=solution.local,
        status=_status_of_each(solution),
        active=solution.local_active,
        determined=solution.local_determined(),
        covariances=None,
    )
    size = AT_ONCE // (inputs.points.y[0].size * (len(problem.varied) + 2)) + 1

    def rows_of(one: _Each) -> RowsAt:
        return _rows(inputs, solution.x, one)

    if method.is_sandwich:
        rows = mapped(lambda one: rows_of(one).sums(), each, size)
        covariances = joint_sandwich(rows, covariances, solution)
    each = each._replace(covariances=covariances._replace(shared=None))

    def vector(one: _Each) -> Float[Array, " k"]:
        rows = rows_of(one)
        own = one.covariances._replace(shared=covariances.shared)
        part = rows.part(_is_own(inputs))
        places = split.order
        end = Numbers(
            x=split.joined(solution.x, one.u),
            covariance=own.whole[places][:, places],
            determined=jnp.concatenate([of_all.determined, one.determined])[places],
            active=jnp.concatenate([solution.active, one.active])[places],
            cost=part.cost,
            optimality=solution.optimality,
            status=one.status,
            nfev=solution.nfev,
            count=part.number,
            gradient=jnp.full(len(places), jnp.nan),  # of it alone, which is not fitted
        )
        return pack(finished(problem, end))

    return mapped(vector, each, size)


def _is_own(inputs: JointInputs) -> Bool[np.ndarray, " m"]:
    """Which residuals of a data set are its own: not the priors of what is shared."""
    problem = inputs.problem
    shared = {problem.varied[place] for place in inputs.split.value.shared}
    return np.concatenate(
        [
            np.ones(inputs.points.y[0].size, bool),
            np.array([n not in shared for n in names_of_rows(problem.prior)], bool),
        ]
    )


def _rows(inputs: JointInputs, x: Float[Array, " s"], one: _Each) -> RowsAt:
    """The residuals of a data set where a fit has ended."""
    sigma = inputs.points.sigma if one.sigma is None else one.sigma
    data, number = Points(inputs.points.x, one.y, sigma), len(x)

    def function(both: Float[Array, " n"], data: Points) -> PyTree:
        return inputs.residuals(both[:number], both[number:], data)

    both = jnp.concatenate([x, one.u])
    model = ResidualModel(function, None, lambda both: both, inputs.method.loss)
    return RowsAt(visit(None, model, data, one.weights, both), both)


def _status_of_each(solution: JointSolution) -> Int[Array, " B"]:
    """How the whole fit has ended; of a failure those data sets that are its cause."""
    own = solution.local_status
    return jnp.where((solution.status <= 0) & (own < 0), own, solution.status)


def mapped(function: Callable, each: PyTree, size: int) -> PyTree:
    """A function of everything with a leading axis, so many at once."""
    number = len(jax.tree.leaves(each)[0])
    if number <= size:
        return jax.vmap(function)(each)
    return jax.lax.map(function, each, batch_size=size)
