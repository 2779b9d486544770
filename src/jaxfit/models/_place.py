"""Where peaks stand in one spectrum, all of them together.

Matching pursuit with refinement: a peak goes where most is left of the data, and a few
steps of Levenberg and Marquardt then move the centres and widths of all, with heights
and background at their optimum (Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973). A
peak that is sought alone takes its neighbour for a part of itself: what explains most
reaches over both. So narrow places are preferred, and in the end the peaks that explain
least are moved to where most is left, or become one half of another one, as long as
that pays. All is done for peaks, for dips, and for both: where peaks stand on a slope,
the gaps between them look like dips, and no single move makes peaks of these.

A peak is a centre and a full width at half maximum here, whatever its kind, and all is
one loop over such jobs: the program does not grow with the number of peaks.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxfit.models._either import (
    argsort,
    array_like,
    chosen,
    each,
    is_numpy,
    one_of,
    repeated,
    repeated_while,
    solved,
    xp,
)
from jaxfit.models._guess import Remainder, Values, extent, with_known, without

if TYPE_CHECKING:
    from jaxfit.models._peaks import Peak

PLACE, SPLIT, ARRANGE = 0, 1, 2  # moves
SIGNS = 1.0, -1.0, 0.0  # of what is placed; 0 for any
WIDTHS = 9  # of windows, from a few points to a third of the range
NARROW = 0.5  # power of the width by which narrow windows are preferred
WINDOW = 1.7  # a peak's full width at half maximum, in half windows that suit it best
RIDGE = 1e-5  # on heights, so that none cancels another's
DIFFERENCE = 1e-4  # of centre and width, in widths, for derivatives
LONGEST = 0.7  # step of a centre, in widths, and of a logarithm of a width
RANKS = 4  # of peaks that are moved
MORE = 4  # jobs for each peak beyond the first, if some pay
GAIN = 0.01  # of the sum of squares, so that a job pays
NOTHING = 1e-7  # of the data's sum of squares


class Places(NamedTuple):
    """Where all peaks are."""

    center: Float[Array, " n"]
    fwhm: Float[Array, " n"]
    shape: Int[Array, " n"]  # which of those that its kind has for one width
    used: Bool[Array, " n"]  # false for one that has no place yet


class State(NamedTuple):
    """Places with the normal equations there, for heights, centres and widths."""

    places: Places
    columns: Float[Array, "n m"]  # the peaks, at right angles to the basis, of size 1
    inverse: Float[Array, "n n"]  # of their Gram
    heights: Float[Array, " n"]  # of the columns
    scale: Float[Array, " n"]  # a column in peaks of height 1
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
    weight: Float[Array, "w m"]  # of a window's sum squared, for what it explains
    known: dict[str, Float[Array, " n"]]  # zero where not known


class Job(NamedTuple):
    """One change of the best places, and the steps after it."""

    move: Any  # PLACE, SPLIT or ARRANGE
    rank: Any  # of the peak that is moved
    steps: Any
    order: Any  # (n,) of the peaks
    shape: Any  # (n,) added to that of each


class Search(NamedTuple):
    """How far the jobs are done."""

    turn: Array  # the next one
    trips: Array  # how many were done
    best: State


def placed(peaks: Sequence["Peak"], rest: Remainder, known: Mapping[str, Any]):
    """The parameters of all peaks, with the prefixes."""
    peaks = sorted(peaks, key=lambda peak: not peak._known(known))  # these come first
    kinds = _kinds(peaks, known)
    crowd = _crowd(peaks, rest, known)
    state = _best(crowd, kinds)
    table = *state.places[:3], state.heights * state.scale
    if len(set(kinds)) == 1 and not kinds[0].known:  # the largest first
        size = xp.abs(state.heights) * xp.max(xp.abs(state.columns), axis=1)
        table = jax.tree.map(lambda leaf: leaf[argsort(-size)], table)
    found = {}
    for k, (peak, kind) in enumerate(zip(peaks, kinds, strict=True)):
        *place, height = (leaf[k] for leaf in table)
        one = kind.parameters(peak._known(known), *place)
        one |= {kind.linear: height} | peak._known(known)
        found |= {peak.prefix + name: value for name, value in one.items()}
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """Peaks that differ in their numbers alone."""

    peak: "Peak"
    known: tuple[str, ...]

    @functools.cached_property
    def shapes(self) -> int:
        """How many shapes of one width it has."""
        one = self.shaped(xp.zeros(()), xp.ones(()))
        return len(next(iter(one.values())))

    @functools.cached_property
    def shaped(self) -> Callable:
        """That of the peak, which a module makes anew whenever it is asked."""
        return self.peak.shaped

    @functools.cached_property
    def linear(self) -> str:
        """The linear parameter."""
        (name,) = self.peak.linear
        return name

    @functools.cached_property
    def unit(self) -> Callable:
        """The peak, of its other parameters, where the linear one is 1."""
        return functools.partial(self.peak.function, **{self.linear: 1.0})

    def parameters(self, known, center, fwhm, shape) -> dict[str, Array]:
        """The parameters of one peak, but for its height."""
        shapes = with_known(self.shaped(center, fwhm), known)
        return {
            name: array_like(shape, values)[shape]
            for name, values in shapes.items()
            if name != self.linear
        }


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
    y = rest.orthogonal
    low, span = extent(rest.x)
    least = span / max(len(rest.x) - 1, 1)
    narrowest = xp.maximum(1.5 * least, span / 128)
    widths = xp.geomspace(narrowest, xp.maximum(span / 3, 2 * narrowest), WIDTHS)
    edges = rest.x + xp.stack([-widths, widths])[..., None] / WINDOW
    before = xp.searchsorted(rest.x, edges[0], side="left")
    behind = xp.searchsorted(rest.x, edges[1], side="right")
    rows = xp.concatenate([rest.factor[None], rest.basis]) * rest.factor
    sums = _inside(rows, before, behind)
    own = sums[0] - xp.sum(sums[1:] ** 2, axis=0)
    fine = own > 0.05 * sums[0]
    weight = xp.where(fine, 1 / xp.where(fine, own, 1), 0)
    weight = weight * (span / widths[:, None]) ** NARROW
    zero = xp.zeros((), y.dtype)
    names = {name for peak in peaks for name in peak._known(known)}
    table = {
        name: xp.stack(
            [xp.asarray(peak._known(known).get(name, zero)) for peak in peaks]
        )
        for name in sorted(names)
    }
    return Crowd(
        rest,
        y,
        low,
        span,
        least,
        widths,
        before,
        behind,
        weight,
        table,
    )


def _inside(rows: Float[Array, "k m"], before, behind) -> Float[Array, "k w m"]:
    """The sums over all windows."""
    zero = xp.zeros((len(rows), 1), rows.dtype)
    sums = xp.concatenate([zero, xp.cumsum(rows, axis=1)], axis=1)
    return sums[:, behind] - sums[:, before]


def _profiles(crowd: Crowd, kinds, places: Places) -> Float[Array, "v n m"]:
    """All peaks of height 1, at several places each, (v, n)."""

    def parameters(kind, k, center, fwhm, shape):
        known = {name: crowd.known[name][k] for name in kind.known}
        return kind.parameters(known, center, fwhm, shape)

    def profile(kind, *place):
        return kind.unit(crowd.rest.x, **parameters(kind, *place))

    rows: list = []
    order: list[int] = []
    for kind in dict.fromkeys(kinds):
        own = np.array([k for k, other in enumerate(kinds) if other is kind])
        there = [own, *(leaf[:, own] for leaf in places[:3])]
        if is_numpy(crowd.y):
            flat = (part.ravel() for part in np.broadcast_arrays(*there))
            each_of = [parameters(kind, *place) for place in zip(*flat, strict=True)]
            shape = *there[1].shape, 1
            together = {
                name: np.array([one[name] for one in each_of]).reshape(shape)
                for name in each_of[0]
            }
            rows.append(kind.unit(crowd.rest.x, **together))
        else:
            of_peaks = jax.vmap(functools.partial(profile, kind))
            rows.append(jax.vmap(of_peaks, (None, 0, 0, 0))(*there))
        order.extend(own)
    values = xp.concatenate(rows, axis=1)
    if len(rows) > 1:
        values = values[:, np.argsort(order)]
    return xp.where(xp.isfinite(values), values * crowd.rest.factor, 0)


# Jobs


def _jobs(kinds) -> list[Job]:
    """One for each peak, and then those that are tried until one pays."""
    n = len(kinds)
    same, plain = tuple(range(n)), (0,) * n
    jobs = [Job(PLACE, 0, 2, same, plain)] * n
    for rank in range(min(n, RANKS) if n > 1 else 0):
        jobs += [Job(move, rank, 3, same, plain) for move in (SPLIT, PLACE)]
    jobs += [Job(ARRANGE, 0, 3, order, plain) for order in _orders(kinds)[1:]]
    for k, kind in enumerate(kinds):
        for shape in range(1, kind.shapes):
            other = tuple(shape * (i == k) for i in range(n))
            jobs.append(Job(ARRANGE, 0, 2, same, other))
    return [*jobs, Job(ARRANGE, 0, 4, same, plain)]


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


def _best(crowd: Crowd, kinds) -> State:
    """The state that leaves least of the data, after all jobs."""
    n, jobs = len(kinds), _jobs(kinds)
    y = crowd.y
    table = Job(*(array_like(y, column) for column in zip(*jobs, strict=True)))
    shapes = np.array([kind.shapes for kind in kinds])
    again = len(jobs) - n  # a pass through all but the first places
    most = len(jobs) + MORE * (n - 1)
    negligible = NOTHING * xp.sum(y**2)
    nothing = _nothing(crowd, n)

    def do(sign, search):
        job = jax.tree.map(lambda column: column[search.turn], table)
        best = search.best
        start = one_of(
            y,
            job.move,
            [
                lambda: _elsewhere(crowd, best, job.rank, sign),
                lambda: _halved(crowd, best, job.rank),
                lambda: jax.tree.map(lambda leaf: leaf[job.order], best.places),
            ],
        )
        start = start._replace(shape=(start.shape + job.shape) % shapes)
        end = repeated(
            y,
            job.steps + 1,
            lambda _, state: _step(crowd, kinds, state),
            nothing._replace(places=start),
        )
        is_first = search.turn < n
        pays = best.cost - end.cost > GAIN * best.cost + negligible
        pays = pays & (search.trips + 1 + again <= most)  # what comes last is not cut
        is_better = is_first | (end.cost < best.cost)
        return Search(
            xp.where(~is_first & pays, n, search.turn + 1),
            search.trips + 1,
            chosen(y, is_better, end, best),
        )

    def search(sign):
        return repeated_while(
            y,
            lambda search: (search.turn < len(jobs)) & (search.trips < most),
            functools.partial(do, sign),
            Search(xp.asarray(0), xp.asarray(0), nothing),
        ).best

    every = each(y, search, np.asarray(SIGNS[: n + 1], y.dtype))
    return jax.tree.map(lambda leaf: leaf[xp.argmin(every.cost)], every)


def _nothing(crowd: Crowd, n: int) -> State:
    """A state without peaks, at which nothing was computed: any trial is accepted."""
    m, dtype = len(crowd.y), crowd.y.dtype
    zeros = xp.zeros(n, dtype)
    return State(
        Places(
            crowd.known.get("center", zeros),
            zeros + 1,
            xp.zeros(n, int),
            xp.zeros(n, bool),
        ),
        xp.zeros((n, m), dtype),
        xp.eye(n, dtype=dtype),
        zeros,
        zeros,
        xp.eye(3 * n, dtype=dtype),
        xp.zeros(3 * n, dtype),
        xp.asarray(np.inf, dtype),
        xp.asarray(0.01, dtype),
    )


def _use(state: State) -> Float[Array, " n"]:
    """What the data lose without each peak."""
    return state.heights**2 / xp.diagonal(state.inverse)


def _elsewhere(crowd: Crowd, state: State, rank, sign) -> Places:
    """The least useful peak where most is left without it."""
    places, n, m = state.places, len(state.heights), len(crowd.y)
    one = argsort(_use(state))[rank]
    without_it = state.heights[one] / state.inverse[one, one] * state.inverse[one]
    left = crowd.y - xp.matmul(state.heights - without_it, state.columns)
    sums = _inside((left * crowd.rest.factor)[None], crowd.before, crowd.behind)[0]
    image = xp.where(sign == 0, xp.abs(sums), xp.maximum(sign * sums, 0))
    top = xp.argmax(image**2 * crowd.weight)
    it = xp.arange(n) == one
    return places._replace(
        center=xp.where(it, crowd.rest.x[top % m], places.center),
        fwhm=xp.where(it, crowd.widths[top // m], places.fwhm),
        used=places.used | it,
    )


def _halved(crowd: Crowd, state: State, rank) -> Places:
    """The peak under which most is left in two, with the least useful other one."""
    places, index = state.places, xp.arange(len(state.heights))
    left = crowd.y - xp.matmul(state.heights, state.columns)
    under = xp.matmul(xp.abs(state.columns), left**2)
    wide = index == argsort(-under)[rank]
    other = index == xp.argmin(xp.where(wide, np.inf, _use(state)))
    center, fwhm = (xp.sum(xp.where(wide, leaf, 0)) for leaf in places[:2])
    either = wide | other
    return places._replace(
        center=xp.where(
            either, center + xp.where(wide, -0.4, 0.4) * fwhm, places.center
        ),
        fwhm=xp.where(either, 0.6 * fwhm, places.fwhm),
    )


# Steps


def _step(crowd: Crowd, kinds, state: State) -> State:
    """One trial, accepted if it leaves less of the data."""
    n, places = len(kinds), state.places
    size = xp.sqrt(xp.diagonal(state.gram))
    size = xp.where(size > 0, size, 1)
    damping = xp.where(xp.arange(3 * n) < n, 1e-8, state.damping)
    matrix = state.gram / size / size[:, None] + xp.diag(damping)
    step = solved(matrix, state.gradient / size) / size
    step = xp.clip(xp.nan_to_num(step), -LONGEST, LONGEST)
    reach = 0.2 * crowd.span
    trial = places._replace(
        center=xp.clip(
            places.center + step[n : 2 * n] * places.fwhm,
            crowd.low - reach,
            crowd.low + crowd.span + reach,
        ),
        fwhm=xp.clip(
            places.fwhm * xp.exp(step[2 * n :]), 0.8 * crowd.least, 0.6 * crowd.span
        ),
    )
    there = _normal(crowd, kinds, trial, 0.3 * state.damping)
    here = state._replace(damping=5 * state.damping)
    is_better = there.cost < state.cost
    return chosen(state.gram, is_better, there, here)


def _normal(crowd: Crowd, kinds, places: Places, damping) -> State:
    """Normal equations for heights, centres and widths, and what is left of y."""
    n, m = len(kinds), len(crowd.y)
    near = jax.tree.map(
        lambda *leaves: xp.stack(leaves),
        places,
        places._replace(center=places.center + DIFFERENCE * places.fwhm),
        places._replace(fwhm=places.fwhm * (1 + DIFFERENCE)),
    )
    columns = _profiles(crowd, kinds, near)
    columns = xp.concatenate([columns[:1], (columns[1:] - columns[0]) / DIFFERENCE])
    columns = without(crowd.rest.basis, columns)
    size = xp.sqrt(xp.sum(columns[0] ** 2, axis=1))
    fine = places.used & (size > 0)
    scale = xp.where(fine, 1 / xp.where(fine, size, 1), 0)
    columns = (scale[:, None] * columns).reshape(3 * n, m)
    gram, images = xp.matmul(columns, columns.T), xp.matmul(columns, crowd.y)
    eye = xp.eye(n, dtype=size.dtype)
    inverse = solved(gram[:n, :n] + RIDGE * eye, eye)
    heights = xp.matmul(inverse, images[:n])
    along = xp.concatenate([xp.ones_like(heights), heights, heights])
    gradient = along * (images - xp.matmul(gram[:, :n], heights))
    ridge = xp.where(np.arange(3 * n) < n, RIDGE, 0)
    return State(
        places,
        columns[:n],
        inverse,
        heights,
        scale,
        gram * along * along[:, None] + xp.diag(ridge),
        gradient,
        xp.sum(crowd.y**2) - xp.sum(heights * images[:n]),
        damping,
    )
