"""Fits with errors in x, by orthogonal distance regression.

Each point i may move along x by a correction δ_i, at a cost: the sum over all points of

    ((f(x_i + δ_i; p) - y_i) / σ_i)² + (δ_i / σ_xi)²

is minimised over p and all δ (Boggs, Byrd and Schnabel, SIAM J. Sci. Stat. Comput. 8,
1987). A correction belongs to one point alone: points are the blocks of `solve_joint`,
and δ_i their local parameters, in units of σ_xi. Where that is zero the correction is
zero too, and of the two rows and the one parameter that such a point has, the row of y
is what is left. The covariance of p is (JᵀWJ)⁻¹ over p and all δ, of which the part of
p is taken, times the sum over n points / (n - p) unless sigma is known: the convention
of ODRPACK (Boggs, Byrd, Rogers and Schnabel, NISTIR 4834, 1992, section 4.B).

The ordinary fit is near, and the fit by effective variance, σ² + (f' σ_x)², is nearer:
the fit starts there.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jaxfit._batch.parts import in_parts, size_on_cpu
from jaxfit._joint.solution import JointSolution
from jaxfit._joint.solve import solve_joint
from jaxfit._programs.backend import is_eager_on_cpu
from jaxfit._programs.host import double_precision, pack
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._padding import FitInputs, Padding, padded_length
from jaxfit.fitting._points import Axes, DataSet
from jaxfit.fitting._problem import Method, Problem, traced_function
from jaxfit.fitting._programs import ending, finished

TOGETHER = 1e-6  # relative: by how much a model may differ for points taken one by one

Errors = tuple[Any, ...]  # of the leaves of x; None: exact
Corrections = tuple[Any, ...]  # likewise, in units of the errors


class Point(NamedTuple):
    """One point, or with a leading axis many."""

    at: PyTree  # the coordinates, from the problem's origin
    sigma_x: Errors
    y: Any
    sigma: Any

    def moved(self, corrections: Corrections) -> PyTree:
        """The coordinates of a point, corrected, as those of a data set of one."""
        leaves, structure = jax.tree.flatten(self.at)
        moved = [
            leaf if error is None else leaf + error * correction
            for leaf, error, correction in zip(
                leaves, self.sigma_x, corrections, strict=True
            )
        ]
        return jax.tree.unflatten(structure, [leaf[..., None] for leaf in moved])


def number_of_corrections(sigma_x: Errors, shape: tuple[int, ...]) -> int:
    """How many coordinates of each point have errors; points have a shape."""
    leading = [np.shape(e)[: np.ndim(e) - len(shape)] for e in sigma_x if e is not None]
    return sum(int(np.prod(lead)) for lead in leading)


def value_at(
    problem: Problem, x: Float[Array, " n"], point: Point, corrections: Corrections
) -> Float[Array, ""]:
    """The model at a point that is corrected."""
    return jnp.asarray(problem.values_about(x, point.moved(corrections), (1,)))[0]


def residuals(
    problem: Problem, x: Float[Array, " n"], corrections: Corrections, point: Point
) -> dict[str, Any]:
    """Those of one point, along y and along x, and the priors."""
    value = value_at(problem, x, point, corrections)
    rows: dict[str, Any] = {"data": (value - point.y) / point.sigma}
    rows["x"] = corrections
    if problem.prior:
        rows["prior"] = problem.of_priors(x)
    return rows


def points_first(
    at: PyTree, sigma_x: Errors, y: Float[Array, " m"], sigma: Any
) -> Point:
    """Points with their axis, which is the last of coordinates, before all others."""

    def first(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return jnp.moveaxis(leaf, -1, 0) if leaf.ndim else jnp.full(y.shape, leaf)

    return Point(
        at=jax.tree.map(first, at),
        sigma_x=jax.tree.map(first, sigma_x),
        y=y,
        sigma=jnp.broadcast_to(sigma, y.shape),
    )


# The fits


def fits(
    with_values: bool,
    is_on_cpu: bool,
    is_lean: bool,
    common: Any,
    each: FitInputs,
    idle: Bool[Array, " N"],
) -> Any:
    """The numbers of fits, (N, k), as those of ordinary ones; if lean with flags.

    On a CPU one after the other, elsewhere all at once.
    """

    def of_one(own: FitInputs) -> Float[Array, " k"]:
        inputs = jax.tree.map(
            lambda a, b: b if a is None else a,
            own,
            common.shared,
            is_leaf=lambda node: node is None,
        )
        numbers = _fit(common.problem, common.x, common.sigma_x, inputs, common.method)
        return pack(numbers if with_values else numbers._replace(best=None, moved=None))

    if not is_on_cpu:
        vectors = jax.vmap(of_one)(each)
    else:
        vectors = _one_by_one(of_one, each, idle)
    return (vectors, jnp.zeros(idle.shape, bool)) if is_lean else vectors


def _one_by_one(
    of_one: Any, each: FitInputs, idle: Bool[Array, " N"]
) -> Float[Array, "N k"]:
    """The vectors of all but the last ones, which are idle."""

    def at(k: Any) -> Float[Array, " k"]:
        return of_one(jax.tree.map(lambda leaf: leaf[k], each))

    def step(k: Any, vectors: Float[Array, "N k"]) -> Float[Array, "N k"]:
        return vectors.at[k].set(at(k))

    one = jax.eval_shape(at, 0)
    vectors = jnp.zeros((len(idle), *one.shape), one.dtype)
    return jax.lax.fori_loop(0, jnp.sum(~idle), step, vectors)


def _fit(
    problem: Problem, x: PyTree, sigma_x: Errors, inputs: FitInputs, method: Method
) -> Numbers:
    """All numbers of one fit."""
    points = points_first(problem.points(x), sigma_x, inputs.y, inputs.sigma)
    number = len(points.y)
    weights = inputs.weights
    counts = jnp.ones(number) if weights is None else jnp.asarray(weights, float)
    blocks, with_prior = _with_priors(problem, points, counts)
    solution = solve_joint(
        jax.tree_util.Partial(residuals, problem),
        inputs.x0,
        _none(blocks),
        blocks,
        bounds=inputs.bounds,
        weights=with_prior,
        options=method.options,
    )
    corrections = jax.tree.map(lambda leaf: leaf[:number], solution.local)
    best = jax.vmap(value_at, (None, None, 0, 0))(
        problem, solution.x, points, corrections
    )
    end = ending(solution, method.absolute)
    end = end._replace(
        count=_counted(solution, blocks),
        best=best,
        moved=_in_units_of_x(points, corrections),
    )
    return finished(problem, end)


def _none(points: Point) -> Corrections:
    """No correction of any point."""
    return jax.tree.map(jnp.zeros_like, points.sigma_x)


def _with_priors(
    problem: Problem, points: Point, counts: Float[Array, " m"]
) -> tuple[Point, dict[str, Any]]:
    """The blocks, and the weights of their residuals.

    A point that does not count keeps the row of its correction, which is then zero and
    determines it. Priors are rows of a block of their own, without a y that counts.
    """
    is_point = jnp.ones_like(counts)
    if problem.prior:
        points = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[-1:]]), points)
        counts = jnp.concatenate([counts, jnp.zeros(1)])
        is_point = jnp.concatenate([is_point, jnp.zeros(1)])
    along_x = jax.tree.map(
        lambda error: jnp.broadcast_to(
            jnp.where(counts > 0, counts, 1).reshape(-1, *[1] * (error.ndim - 1)),
            error.shape,
        ),
        points.sigma_x,
    )
    weights: dict[str, Any] = {"data": counts, "x": along_x}
    if problem.prior:
        shape = len(counts), problem.rows_of_priors
        weights["prior"] = jnp.broadcast_to(1 - is_point[:, None], shape)
    return points, weights


def _counted(solution: JointSolution, blocks: Point) -> Any:
    """The residuals that count, without as many as there are corrections."""
    corrections = sum(leaf.size for leaf in jax.tree.leaves(blocks.sigma_x))
    return jnp.asarray(solution.count) - corrections


def _in_units_of_x(points: Point, corrections: Corrections) -> Float[Array, "k m"]:
    """The corrections of all coordinates that have errors, one after the other."""
    moved = jax.tree.map(jnp.multiply, points.sigma_x, corrections)
    number = len(points.y)
    return jnp.concatenate(
        [leaf.reshape(number, -1).T for leaf in jax.tree.leaves(moved)]
    )


# Where they start


class Slopes(NamedTuple):
    """What the errors of x are worth along y, for each data set."""

    sigma: Any  # (N, m), of effective variance
    apart: Any  # (N,) by how much the model differs for points one by one, relative


class _Each(NamedTuple):
    """The data sets at which slopes are taken."""

    sigma: Any  # (N, m)
    x: Any  # (N, n)


def effective_sigma(
    problem: Problem, data_sets: DataSet, axes: Axes, x: Float[np.ndarray, "N n"]
) -> Float[np.ndarray, "N ..."]:
    """The roots of σ² + (f' σ_x)², of the shape of the points of each data set.

    Raises:
        ValueError: the model does not treat each point by itself.
    """
    shape = axes.shape(data_sets)
    points = int(np.prod(shape))
    pad = Padding(problem, shape, padded_length(problem, points, is_for_few=True))
    sigma = np.broadcast_to(pad.of(data_sets.data.sigma), (len(x), pad.length))
    at, sigma_x = pad.points(data_sets.data.x), pad.errors(data_sets.sigma_x)

    def arguments(part: _Each, idle: np.ndarray) -> tuple:
        return problem, at, sigma_x, part

    size = min(size_on_cpu(pad.length), 1 << (len(x) - 1).bit_length())
    with double_precision(traced_function(problem.model)):
        slopes = in_parts(
            _slopes,
            arguments,
            _Each(sigma, x),
            size,
            is_on_cpu=is_eager_on_cpu(x),
            is_hasty=True,
        )
    if (apart := np.max(slopes.apart)) > TOGETHER:
        raise ValueError(
            f"The model {problem.model.label} does not treat each point by itself: for "
            "all points at once it has other values than for one after the other, by "
            f"{apart:.1g} of the largest. sigma_x needs a function of the x of "
            "one point and of parameters."
        )
    return slopes.sigma[:, :points].reshape(len(x), *shape)


def _slopes(
    problem: Problem,
    x: PyTree,
    sigma_x: Errors,
    each: _Each,
) -> Slopes:
    at = problem.points(x)

    def of_one(x: Float[Array, " n"], sigma: Float[Array, " m"]) -> Slopes:
        points = points_first(at, sigma_x, jnp.zeros_like(sigma), sigma)

        def of_point(point: Point) -> tuple[Array, Array]:
            def value(corrections: Corrections) -> Array:
                return value_at(problem, x, point, corrections)

            slopes = jax.jacfwd(value)(_none(point))
            squares = [jnp.sum(slope**2) for slope in jax.tree.leaves(slopes)]
            return value(_none(point)), sum(squares, 0.0 * x[0])

        values, squares = jax.vmap(of_point)(points)
        together = problem.values_about(x, at, sigma.shape)
        both = jnp.isfinite(values) & jnp.isfinite(together)
        size = jnp.max(jnp.where(both, jnp.abs(together), 0))
        apart = jnp.max(jnp.where(both, jnp.abs(values - together), 0))
        apart = jnp.where(size > 0, apart / jnp.where(size > 0, size, 1), 0)
        along_x = jnp.sqrt(jnp.where(jnp.isfinite(squares), squares, 0))
        return Slopes(jnp.hypot(sigma, along_x), apart)

    return jax.vmap(of_one)(each.x, each.sigma)
