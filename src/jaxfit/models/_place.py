"""Where peaks stand in one spectrum, all of them together.

A peak that is sought alone takes its neighbour for a part of itself: the widest one
that explains most reaches over both, and what it leaves has no place for the other. So
the peaks are placed several times, each time all with one width, from the widest
feature of the data down to a quarter of it, upwards and downwards. A few steps of
Levenberg and Marquardt move centres and widths of each placing, with heights and
background at their optimum (Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973), and the
one that leaves least of the data is refined. Then the least useful peak is tried in
other places, as long as that pays.

A peak is a centre and a full width at half maximum here, whatever its kind, and the
program does not grow with their number.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float, Int

from jaxfit.models._start import (
    Remainder,
    Values,
    beside,
    extent,
    orthonormal,
    project,
    with_known,
    without,
)

if TYPE_CHECKING:
    from jaxfit.models._peaks import Peak

WIDTHS = 9  # of windows, from a few points to a third of the range
COMMON = 1.0, 0.7, 0.5, 0.35, 0.25  # widths of all, in that of the largest feature
WINDOW = 1.7  # a peak's full width at half maximum, in half windows that suit it best
RIDGE = 1e-5  # on heights, so that none cancels another's
DIFFERENCE = 1e-4  # of centre and width, in widths, for derivatives
LONGEST = 0.7  # step of a centre, in widths, and of a logarithm of a width
MOVES = 4  # for each peak beyond two


class Places(NamedTuple):
    """Where all peaks are."""

    center: Float[Array, " n"]
    fwhm: Float[Array, " n"]
    shape: Int[Array, " n"]  # which of those that its kind has for one width


class State(NamedTuple):
    """Places with the normal equations there, for heights, centres and widths."""

    places: Places
    gram: Float[Array, "3n 3n"]
    gradient: Float[Array, " 3n"]
    cost: Array
    damping: Array


class Crowd(NamedTuple):
    """What is the same wherever the peaks are placed."""

    rest: Remainder
    y: Values  # at right angles to the basis
    low: Array
    span: Array
    least: Array  # distance of points
    widths: Float[Array, " w"]
    before: Int[Array, "w m"]  # where the window about each point begins
    behind: Int[Array, "w m"]  # and ends
    known: dict[str, Float[Array, " n"]]  # zero where not known


def placed(peaks: Sequence["Peak"], rest: Remainder, known: Mapping[str, Any]):
    """The parameters of all peaks, with the prefixes."""
    peaks = sorted(peaks, key=lambda peak: not peak._known(known))  # these come first
    kinds = _kinds(peaks, known)
    crowd = _crowd(peaks, rest, known)
    places = _best(crowd, kinds)
    columns = _profiles(crowd, kinds, places)
    heights, _ = project(beside(rest.basis, columns), crowd.y)
    if len(set(kinds)) == 1:
        order = _largest_first(crowd, kinds, heights, columns)
        places, heights = jax.tree.map(lambda leaf: leaf[order], (places, heights))
    found = {}
    for k, peak in enumerate(peaks):
        one = _parameters(peak, peak._known(known), *(leaf[k] for leaf in places))
        one |= {peak.linear[0]: heights[k]} | peak._known(known)
        found |= {peak.prefix + name: value for name, value in one.items()}
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """Peaks that differ in their numbers alone."""

    peak: "Peak"
    known: tuple[str, ...]


def _kinds(peaks, known) -> tuple[Kind, ...]:
    """The kind of each peak, by one peak that stands for all."""
    first: dict[Any, Kind] = {}
    kinds = []
    for peak in peaks:
        names = tuple(peak._known(known))
        is_plain = len(dataclasses.fields(peak)) == 1  # nothing but a prefix
        key = type(peak) if is_plain else id(peak), names
        kinds.append(first.setdefault(key, Kind(peak, names)))
    return tuple(kinds)


def _crowd(peaks, rest, known) -> Crowd:
    low, span = extent(rest.x)
    least = span / max(len(rest.x) - 1, 1)
    narrowest = jnp.maximum(1.5 * least, span / 128)
    widths = jnp.geomspace(narrowest, jnp.maximum(span / 3, 2 * narrowest), WIDTHS)
    reach = widths[:, None] / WINDOW
    before, behind = (
        jnp.searchsorted(rest.x, rest.x + way * reach, side=side)
        for way, side in ((-1, "left"), (1, "right"))
    )
    zero = jnp.zeros((), rest.y.dtype)
    names = {name for peak in peaks for name in peak._known(known)}
    table = {
        name: jnp.stack(
            [jnp.asarray(peak._known(known).get(name, zero)) for peak in peaks]
        )
        for name in sorted(names)
    }
    return Crowd(rest, rest.orthogonal, low, span, least, widths, before, behind, table)


def _parameters(peak, known, center, fwhm, shape) -> dict[str, Array]:
    """The parameters of one peak, but for its height."""
    shapes = with_known(peak.shaped(center, fwhm), known)
    own = {n: jnp.asarray(v) for n, v in shapes.items() if n not in peak.linear}
    return {name: value[shape] for name, value in own.items()}


def _profile(crowd: Crowd, kind: Kind, k, center, fwhm, shape) -> Values:
    """The k-th peak of height 1."""
    known = {name: crowd.known[name][k] for name in kind.known}
    others = _parameters(kind.peak, known, center, fwhm, shape)
    values = kind.peak.columns(crowd.rest.x, **others)[0] * crowd.rest.factor
    return jnp.where(jnp.isfinite(values), values, 0)


def _profiles(crowd: Crowd, kinds, places: Places) -> Float[Array, "n m"]:
    """All peaks of height 1."""
    rows: list = []
    order: list[int] = []
    for kind in dict.fromkeys(kinds):
        mine = np.array([k for k, other in enumerate(kinds) if other is kind])
        one = functools.partial(_profile, crowd, kind)
        rows.append(jax.vmap(one)(mine, *(leaf[mine] for leaf in places)))
        order.extend(mine)
    return jnp.concatenate(rows)[np.argsort(order)]


# Jobs: where they start


def _best(crowd: Crowd, kinds) -> Places:
    """The places that leave least of the data, after all jobs."""
    n = len(kinds)
    ways = [
        (sign, part) for sign in (1.0, -1.0) for part in COMMON[: 5 if n > 1 else 1]
    ]
    orders = _orders(kinds)
    moves = MOVES * max(n - 2, 0)
    shaped = any(_number_of_shapes(kind) > 1 for kind in kinds)
    jobs = [
        *[(0, way, 2) for way in range(len(ways))],
        *[(1, move, 3) for move in range(moves)],
        *[(2, order, 3) for order in range(len(orders) - 1)],
        *[(3, 0, 4)] * (2 if shaped else 0),
        (4, 0, 5 if n > 1 else 2),
    ]
    what, which, steps = (jnp.asarray(column) for column in np.array(jobs).T)

    def job(j, states):
        places, costs = states
        best = jax.tree.map(lambda leaf: leaf[jnp.argmin(costs)], places)
        start = lax.switch(
            what[j],
            [
                lambda: _in_turn(
                    crowd, kinds, *jnp.asarray(ways)[which[j] % len(ways)]
                ),
                lambda: _moved(crowd, kinds, best, which[j]),
                lambda: _exchanged(best, jnp.asarray(orders)[which[j] % len(orders)]),
                lambda: _reshaped(crowd, kinds, best),
                lambda: best,
            ],
        )
        end = lax.fori_loop(
            0, steps[j] + 1, lambda _, s: _step(crowd, kinds, s), _unknown(start)
        )
        return jax.tree.map(
            lambda table, row: table.at[j].set(row), states, (end.places, end.cost)
        )

    table = jax.tree.map(
        lambda leaf: jnp.zeros((len(jobs), *leaf.shape), leaf.dtype),
        _anywhere(crowd, n),
    )
    costs = jnp.full(len(jobs), jnp.inf, crowd.y.dtype)
    places, costs = lax.fori_loop(0, len(jobs), job, (table, costs))
    return jax.tree.map(lambda leaf: leaf[jnp.argmin(costs)], places)


def _number_of_shapes(kind: Kind) -> int:
    return len(next(iter(kind.peak.shaped(jnp.zeros(()), jnp.ones(())).values())))


def _orders(kinds) -> list[tuple[int, ...]]:
    """Exchanges of up to three peaks of several kinds; the first changes nothing."""
    free = [k for k, kind in enumerate(kinds) if not kind.known]
    if len({kinds[k] for k in free}) < 2 or len(free) > 3:
        return [tuple(range(len(kinds)))]
    found: dict[Any, tuple[int, ...]] = {}
    for order in itertools.permutations(free):
        whole = list(range(len(kinds)))
        for k, other in zip(free, order, strict=True):
            whole[k] = other
        found.setdefault(tuple(kinds[k] for k in np.argsort(whole)), tuple(whole))
    return list(found.values())


def _anywhere(crowd: Crowd, n: int) -> Places:
    zeros = jnp.zeros(n, crowd.y.dtype)
    return Places(zeros, zeros + 1, jnp.zeros(n, int))


def _exchanged(places: Places, order) -> Places:
    return Places(places.center[order], places.fwhm[order], 0 * places.shape)


def _scores(crowd: Crowd, basis, y, sign) -> Float[Array, "w m"]:
    """What a window about each point would explain of y, with the sign it must have."""
    factor = crowd.rest.factor

    def one(before, behind):
        def inside(values):
            zero = jnp.zeros((*values.shape[:-1], 1), values.dtype)
            sums = jnp.concatenate([zero, jnp.cumsum(values, axis=-1)], axis=-1)
            return sums[..., behind] - sums[..., before]

        image, total = sign * inside(factor * y), inside(factor**2)
        own = total - jnp.sum(inside(factor * basis) ** 2, axis=0)
        fine = (own > 0.05 * total) & (image > 0)
        return jnp.where(fine, image**2 / jnp.where(fine, own, 1), 0)

    return jax.vmap(one)(crowd.before, crowd.behind)


def _in_turn(crowd: Crowd, kinds, sign, part) -> Places:
    """One peak after the other, each where it explains most, all of one width."""
    basis, n = crowd.rest.basis, len(kinds)
    explained = jnp.max(_scores(crowd, basis, crowd.y, sign), axis=1)
    wanted = part * crowd.widths[jnp.argmax(explained)]
    w = jnp.argmin(jnp.abs(jnp.log(crowd.widths / wanted)))
    one_width = crowd._replace(
        before=crowd.before[w][None], behind=crowd.behind[w][None]
    )
    different = list(dict.fromkeys(kinds))
    kind_of = jnp.asarray([different.index(kind) for kind in kinds])
    is_known = jnp.asarray(["center" in kind.known for kind in kinds])
    centers = crowd.known.get("center", jnp.zeros(n, crowd.y.dtype))

    def place(k, state):
        basis, left, places = state
        best = jnp.argmax(_scores(one_width, basis, left, sign)[0])
        center = jnp.where(is_known[k], centers[k], crowd.rest.x[best])
        places = places._replace(
            center=places.center.at[k].set(center),
            fwhm=places.fwhm.at[k].set(crowd.widths[w]),
        )
        at = [leaf[k] for leaf in places]
        branches = [
            functools.partial(_profile, crowd, kind, k, *at) for kind in different
        ]
        column = beside(basis, lax.switch(kind_of[k], branches)[None])
        column = orthonormal(without(basis, column))[0]
        basis = basis.at[len(crowd.rest.basis) + k].set(column)
        return basis, left - jnp.sum(column * left) * column, places

    room = jnp.zeros((n, len(crowd.y)), crowd.y.dtype)
    state = jnp.concatenate([basis, room]), crowd.y, _anywhere(crowd, n)
    return lax.fori_loop(0, n, place, state)[2]


def _moved(crowd: Crowd, kinds, places: Places, turn) -> Places:
    """The least useful peak elsewhere: where most is left, or as half of a wide one."""
    n, basis = len(kinds), crowd.rest.basis
    columns = _unit(beside(basis, _profiles(crowd, kinds, places)))
    gram = jnp.matmul(columns, columns.T) + RIDGE * jnp.eye(n)
    inverse = cho_solve((jnp.linalg.cholesky(gram), True), jnp.eye(n))
    heights = jnp.matmul(inverse, jnp.matmul(columns, crowd.y))
    loss = heights**2 / jnp.diagonal(inverse)
    worst = jnp.argmin(jnp.where(jnp.isfinite(loss), loss, 0))
    is_worst = jnp.arange(n) == worst

    def to_what_is_left():
        held = orthonormal(jnp.where(is_worst[:, None], 0, columns))
        beside_it = jnp.concatenate([basis, held])
        left = without(held, crowd.y)
        scores = _scores(crowd, beside_it, left, jnp.sign(jnp.sum(heights)))
        top = jnp.argmax(scores)
        m = len(crowd.y)
        return places._replace(
            center=jnp.where(is_worst, crowd.rest.x[top % m], places.center),
            fwhm=jnp.where(is_worst, crowd.widths[top // m], places.fwhm),
        )

    def to_a_half():
        order = jnp.argsort(jnp.where(is_worst, -jnp.inf, places.fwhm), descending=True)
        wide = order[(turn // 2) % max(n - 1, 1)]
        is_wide, center, fwhm = (
            jnp.arange(n) == wide,
            *(leaf[wide] for leaf in places[:2]),
        )
        halves = jnp.where(is_wide, center - 0.4 * fwhm, center + 0.4 * fwhm)
        either = is_wide | is_worst
        return places._replace(
            center=jnp.where(either, halves, places.center),
            fwhm=jnp.where(either, 0.6 * fwhm, places.fwhm),
        )

    return lax.cond(turn % 2 == 0, to_what_is_left, to_a_half)


def _reshaped(crowd: Crowd, kinds, places: Places) -> Places:
    """The best shape of each peak for its width, one peak after the other."""
    different = list(dict.fromkeys(kinds))
    kind_of = jnp.asarray([different.index(kind) for kind in kinds])

    def reshape(k, places):
        others = jnp.where(
            (jnp.arange(len(kinds)) == k)[:, None], 0, _profiles(crowd, kinds, places)
        )
        held = orthonormal(beside(crowd.rest.basis, others))
        basis = jnp.concatenate([crowd.rest.basis, held])
        left = without(held, crowd.y)

        def best(kind):
            shapes = np.arange(_number_of_shapes(kind))
            one = functools.partial(
                _profile, crowd, kind, k, places.center[k], places.fwhm[k]
            )
            columns = _unit(beside(basis, jax.vmap(one)(shapes)))
            return jnp.argmax(jnp.matmul(columns, left) ** 2)

        shape = lax.switch(
            kind_of[k], [functools.partial(best, kind) for kind in different]
        )
        return places._replace(shape=places.shape.at[k].set(shape))

    return lax.fori_loop(0, len(kinds), reshape, places)


def _unit(columns):
    size = jnp.sqrt(jnp.sum(columns**2, axis=1, keepdims=True))
    return columns / jnp.where(size > 0, size, 1)


def _largest_first(crowd: Crowd, kinds, heights, columns):
    """The order of the peaks in which the higher come first, behind those known."""
    size = jnp.abs(heights) * jnp.max(jnp.abs(columns), axis=1)
    return jnp.argsort(-size) if not kinds[0].known else np.arange(len(kinds))


# Jobs: steps


def _unknown(places: Places) -> State:
    """A state at which nothing was computed: any trial is accepted."""
    n, dtype = len(places.center), places.center.dtype
    nothing = jnp.zeros(3 * n, dtype)
    return State(
        places,
        jnp.eye(3 * n, dtype=dtype),
        nothing,
        jnp.asarray(jnp.inf, dtype),
        jnp.asarray(0.01, dtype),
    )


def _step(crowd: Crowd, kinds, state: State) -> State:
    """One trial, accepted if it leaves less of the data."""
    n, places = len(kinds), state.places
    size = jnp.sqrt(jnp.diagonal(state.gram))
    size = jnp.where(size > 0, size, 1)
    damping = jnp.where(jnp.arange(3 * n) < n, 1e-8, state.damping)
    matrix = state.gram / size / size[:, None] + jnp.diag(damping)
    step = cho_solve((jnp.linalg.cholesky(matrix), True), state.gradient / size) / size
    step = jnp.clip(jnp.nan_to_num(step), -LONGEST, LONGEST)
    reach = 0.2 * crowd.span
    trial = places._replace(
        center=jnp.clip(
            places.center + step[n : 2 * n] * places.fwhm,
            crowd.low - reach,
            crowd.low + crowd.span + reach,
        ),
        fwhm=jnp.clip(
            places.fwhm * jnp.exp(step[2 * n :]), 0.8 * crowd.least, 0.6 * crowd.span
        ),
    )
    gram, gradient, cost = _normal(crowd, kinds, trial)
    is_better = cost < state.cost
    there = State(trial, gram, gradient, cost, 0.3 * state.damping)
    here = state._replace(damping=5 * state.damping)
    return jax.tree.map(lambda a, b: jnp.where(is_better, a, b), there, here)


def _normal(crowd: Crowd, kinds, places: Places):
    """Normal equations for heights, centres and widths, and what is left of y."""
    n, basis = len(kinds), crowd.rest.basis
    near = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        places,
        places._replace(center=places.center + DIFFERENCE * places.fwhm),
        places._replace(fwhm=places.fwhm * (1 + DIFFERENCE)),
    )
    columns = jax.vmap(lambda places: _profiles(crowd, kinds, places))(near)
    columns = jnp.concatenate([columns[:1], (columns[1:] - columns[0]) / DIFFERENCE])
    columns = without(basis, columns.reshape(3 * n, -1))
    gram, images = jnp.matmul(columns, columns.T), jnp.matmul(columns, crowd.y)
    size = jnp.sqrt(jnp.diagonal(gram)[:n])
    size = jnp.where(size > 0, size, 1)
    matrix = gram[:n, :n] / size / size[:, None] + RIDGE * jnp.eye(n, dtype=size.dtype)
    heights = cho_solve((jnp.linalg.cholesky(matrix), True), images[:n] / size)
    left = jnp.sum(crowd.y**2) - jnp.sum(heights * images[:n] / size)
    scale = jnp.concatenate([1 / size, heights / size, heights / size])
    ridge = jnp.where(np.arange(3 * n) < n, RIDGE, 0)
    gram = gram * scale * scale[:, None] + jnp.diag(ridge)
    at = jnp.concatenate([heights, jnp.zeros(2 * n, heights.dtype)])
    return gram, images * scale - jnp.matmul(gram, at), left
