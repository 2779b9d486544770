"""The posterior density of a fit, for samplers, as a function of what varied."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from jaxfit._programs.host import computed
from jaxfit._rows.visit import ResidualModel, visit
from jaxfit._scipy.observations import Points
from jaxfit.fitting._points import Observed
from jaxfit.fitting._problem import Numeric, Problem, traced_function
from jaxfit.fitting._programs import weights_of
from jaxfit.fitting._record import Record
from jaxfit.losses import Likelihood, Loss

Parameters = Float[Numeric, " n"] | Mapping[str, Any]


class Terms(NamedTuple):
    """What the density is made of; a pytree."""

    problem: Problem
    data: Points
    valid: Any  # which points count; None: all
    loss: Loss | Likelihood | None
    variance: Any  # of residuals in units of sigma
    within: Any  # a place inside the bounds, where derivatives are taken of outside


def log_density(record: Record) -> Partial:
    """The density as a function of parameters, see `Fit.log_density`."""
    problem, valid = record.problem, record.observed.valid
    terms = Terms(
        problem=problem,
        data=_without_gaps(record.observed, problem.is_pointwise),
        valid=valid,
        loss=record.method.loss,
        variance=np.float64(variance_of(record)),
        within=record.numbers.x,
    )
    leaves, structure = jax.tree.flatten(terms)
    arrays, functions = eqx.partition(leaves, eqx.is_array_like)
    return Partial(functools.partial(_log_density, structure, functions), arrays)


def variance_of(record: Record) -> float:
    """That of residuals in units of sigma: 1, or as estimated by chi-square."""
    if record.has_errors_in_x:
        raise ValueError(
            "log_density is a function of the parameters alone, and this fit has "
            "errors in x: the place of each point is unknown too. Sample a model of "
            "your own that has them."
        )
    if record.together is not None:
        raise ValueError(
            f"log_density is that of one fit, and this is one of "
            f"{record.together.number} data sets that share "
            f"{', '.join(record.together.shared)}. Fit this one by itself, or several "
            "with lists of x and y and `local` names."
        )
    if record.absolute_sigma:
        return 1.0
    variance = record.reduced_chi_square
    if not 0 < variance < np.inf:
        raise ValueError(
            f"log_density needs the scale of the errors, and reduced chi-square is "
            f"{variance:.3g}, of {record.dof} degrees of freedom. Give sigma and "
            "absolute_sigma=True."
        )
    return variance


def _without_gaps(seen: Observed, is_pointwise: bool) -> Points:
    """The points, finite where they do not count: reverse mode knows no gap."""
    data, valid = seen.data, seen.valid
    if valid is None:
        return data
    of_x = np.asarray(seen.of_points(valid))
    first = np.argmax(of_x.ravel())

    def filled(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray) or leaf.dtype.kind != "f":
            return leaf
        if is_pointwise and leaf.ndim and leaf.shape[-of_x.ndim :] == of_x.shape:
            flat = leaf.reshape(*leaf.shape[: leaf.ndim - of_x.ndim], -1)
            chosen = flat[..., first].reshape(*flat.shape[:-1], *[1] * of_x.ndim)
            return np.where(of_x, leaf, chosen)
        return np.nan_to_num(leaf)

    sigma = data.sigma
    if sigma is not None:
        sigma = np.where(valid, sigma, 1.0)
    return Points(jax.tree.map(filled, data.x), np.where(valid, data.y, 0.0), sigma)


def _log_density(
    structure: Any, functions: list, arrays: list, parameters: Parameters
) -> Any:
    """The density, as a part of a program or by one in double precision.

    Args:
        structure: of `Terms`, whose leaves are arrays, and functions of the user's.
    """

    def terms_of(leaves: list) -> Terms:
        return jax.tree.unflatten(structure, eqx.combine(functions, leaves))

    terms = terms_of(arrays)
    x = _vector(terms.problem.varied, parameters)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((arrays, x))):
        terms = terms_of(jax.tree.map(_fresh, arrays))
        return _density(terms, jnp.stack(x) if isinstance(x, list) else x)
    x, traced = np.asarray(x, float), traced_function(terms.problem.model)
    return computed(_density, terms, x, traced=traced, is_hasty=False)[()]


def _vector(names: tuple[str, ...], parameters: Parameters) -> Any:
    """The parameters that vary, in their order: an array, or a list of numbers."""
    words = f"the parameters that vary are {', '.join(names)}"
    if isinstance(parameters, Mapping):
        if {*parameters} != {*names}:
            raise ValueError(
                f"log_density has the names {', '.join(parameters)}; {words}."
            )
        return [jnp.asarray(parameters[name]).reshape(()) for name in names]
    if np.shape(parameters) != (len(names),):
        raise ValueError(
            f"log_density has parameters of the shape {np.shape(parameters)}; {words}, "
            f"so that ({len(names)},) is expected. For many at once use jax.vmap."
        )
    return parameters


def _density(terms: Terms, x: Float[Array, " n"]) -> Float[Array, ""]:
    """Minus the cost over the variance; minus infinity outside bounds.

    The cost is that of the solver, `Rows.cost`.
    """
    x = jnp.asarray(x).astype(float)
    problem, is_inside = terms.problem, jnp.all(jnp.isfinite(x))
    if problem.lower is not None:
        is_inside &= jnp.all((x >= problem.lower) & (x <= problem.upper))
    at_solver = jnp.asarray(problem.at_solver(jnp.where(is_inside, x, terms.within)))
    model = ResidualModel(problem.function, None, _same, terms.loss)
    weights = weights_of(problem, terms.valid)
    rows = visit(None, model, terms.data, weights, at_solver)
    value = -rows.cost(at_solver) / terms.variance
    is_inside &= problem.ties_hold(at_solver) & ~jnp.isnan(value)
    return jnp.where(is_inside, value, -jnp.inf)


def _same(x: PyTree) -> PyTree:
    return x


def _fresh(leaf: Any) -> Array:
    """A constant of its own for each trace: JAX keeps one, whatever its precision."""
    return jnp.asarray(np.array(leaf) if isinstance(leaf, np.ndarray) else leaf)
