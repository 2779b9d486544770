"""Where peaks stand in one spectrum, all of them together.

Matching pursuit with refinement: a peak goes where most is left of the data, and a few
steps then move all of them (`_crowd.py`). A peak that is sought alone takes its
neighbour for a part of itself: what explains most reaches over both. So narrow places
are preferred, and in the end the peaks that explain least are moved to where most is
left, or become one half of another one, as long as that pays. All is done for peaks,
for dips, and for both: where peaks stand on a slope, the gaps between them look like
dips, and no single move makes peaks of these.

All is one loop over such jobs: the program does not grow with the number of peaks.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from jaxfit._numpy.either import (
    Scalar,
    argsort,
    array_like,
    chosen,
    each,
    one_of,
    repeated,
    repeated_while,
    xp,
)
from jaxfit.models._crowd import Crowd, Kind, Places, State, crowd_of, nowhere, step
from jaxfit.models._model import Candidates, Model, Params
from jaxfit.models._projection import Remainder

PLACE, SPLIT, ARRANGE = 0, 1, 2  # moves
SIGNS = 1.0, -1.0, 0.0  # of what is placed; 0 for any
RANKS = 4  # of peaks that are moved
MORE = 4  # jobs for each peak beyond the first, if some pay
GAIN = 0.01  # of the sum of squares, so that a job pays
NOTHING = 1e-7  # of the data's sum of squares


class Peak(Model):
    """A peak with a centre and one linear parameter; it needs `shaped` for a start."""

    is_peak: ClassVar[bool] = True

    def shaped(self, center: Scalar, fwhm: Scalar) -> Candidates:
        """Parameters (S,), but for the linear one, of peaks of one place and width.

        Their full width at half maximum is about `fwhm`; the first is the likeliest.
        """
        raise NotImplementedError(f"{type(self).__name__} must define shaped().")

    def start_beside(self, rest: Remainder, known: Params) -> dict[str, Any]:
        return self.known_of(placed([self], rest, self.with_prefix(known)))


def placed(
    peaks: Sequence[Peak], rest: Remainder, known: Mapping[str, Any]
) -> dict[str, Any]:
    """The parameters of all peaks, with the prefixes."""
    peaks = sorted(peaks, key=lambda peak: not peak.known_of(known))  # these come first
    known_of_each = [peak.known_of(known) for peak in peaks]
    kinds = _kinds(peaks, known_of_each)
    crowd = crowd_of(kinds, known_of_each, rest)
    state = _best(crowd)
    table = *state.places[:3], state.heights * state.scale
    if len(set(kinds)) == 1 and not kinds[0].known:  # the largest first
        size = xp.abs(state.heights) * xp.max(xp.abs(state.columns), axis=1)
        table = jax.tree.map(lambda leaf: leaf[argsort(-size)], table)
    parameters: dict[str, Any] = {}
    rows = zip(peaks, kinds, known_of_each, *table, strict=True)
    for peak, kind, values, center, fwhm, shape, height in rows:
        others = kind.parameters(values, center, fwhm, shape)
        parameters |= peak.with_prefix(others | {kind.linear: height} | values)
    return parameters


def _kinds(
    peaks: Sequence[Peak], known: Sequence[Mapping[str, Any]]
) -> tuple[Kind, ...]:
    """The kind of each peak, by one peak that stands for all."""
    first: dict[Any, Kind] = {}
    kinds = []
    for peak, names in zip(peaks, map(tuple, known), strict=True):
        is_plain = len(dataclasses.fields(peak)) == 1  # nothing but a prefix
        key = type(peak) if is_plain else id(peak), names
        (linear,) = peak.linear
        kind = Kind(peak.shaped, peak.function, linear, names)
        kinds.append(first.setdefault(key, kind))
    return tuple(kinds)


# Jobs


class Job(NamedTuple):
    """One change of the best places, and the steps after it."""

    move: Any  # PLACE, SPLIT or ARRANGE
    rank: Any  # of the peak that is moved
    steps: Any
    order: Any  # (n,) of the peaks
    shape: Any  # (n,) added to that of each


def _jobs(kinds: Sequence[Kind]) -> list[Job]:
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


def _orders(kinds: Sequence[Kind]) -> list[tuple[int, ...]]:
    """Exchanges of up to three peaks of several kinds; the first changes nothing."""
    free = [k for k, kind in enumerate(kinds) if not kind.known]
    if len({kinds[k] for k in free}) < 2 or len(free) > 3:
        return [tuple(range(len(kinds)))]
    orders: dict[Any, tuple[int, ...]] = {}
    for order in itertools.permutations(free):
        whole = list(range(len(kinds)))
        for k, other in zip(free, order, strict=True):
            whole[k] = other
        orders.setdefault(tuple(kinds[k] for k in np.argsort(whole)), tuple(whole))
    return list(orders.values())


class Plan(NamedTuple):
    """All jobs, and how many are done."""

    table: Job  # of columns (jobs,)
    number: int
    most: int  # that are done, with those that are done again
    shapes: Int[np.ndarray, " n"]  # how many each peak has
    negligible: Scalar  # gain of a job
    nowhere: State


class Search(NamedTuple):
    """How far the jobs are done."""

    turn: Int[Any, ""]  # the next one
    trips: Int[Any, ""]  # how many were done
    best: State


def _best(crowd: Crowd) -> State:
    """The state that leaves least of the data, after all jobs."""
    n, jobs, y = len(crowd.kinds), _jobs(crowd.kinds), crowd.y
    plan = Plan(
        table=Job(*(array_like(y, column) for column in zip(*jobs, strict=True))),
        number=len(jobs),
        most=len(jobs) + MORE * (n - 1),
        shapes=np.array([kind.shapes for kind in crowd.kinds]),
        negligible=NOTHING * xp.sum(y**2),
        nowhere=nowhere(crowd),
    )

    def goes_on(search: Search) -> Any:
        return (search.turn < plan.number) & (search.trips < plan.most)

    def search(sign: Scalar) -> State:
        first = Search(xp.asarray(0), xp.asarray(0), plan.nowhere)
        do = functools.partial(_do, crowd, plan, sign)
        return repeated_while(y, goes_on, do, first).best

    states = each(y, search, np.asarray(SIGNS[: n + 1], y.dtype))
    return jax.tree.map(lambda leaf: leaf[xp.argmin(states.cost)], states)


def _do(crowd: Crowd, plan: Plan, sign: Scalar, search: Search) -> Search:
    """The next job, whose places are kept if they leave less of the data."""
    n, y, best = len(crowd.kinds), crowd.y, search.best
    job = jax.tree.map(lambda column: column[search.turn], plan.table)
    start = one_of(
        y,
        job.move,
        [
            lambda: _elsewhere(crowd, best, job.rank, sign),
            lambda: _halved(crowd, best, job.rank),
            lambda: jax.tree.map(lambda leaf: leaf[job.order], best.places),
        ],
    )
    start = start._replace(shape=(start.shape + job.shape) % plan.shapes)
    end = repeated(
        y,
        job.steps + 1,
        lambda _, state: step(crowd, state),
        plan.nowhere._replace(places=start),
    )

    # after a job that pays all are done again, but for the first places
    is_first = search.turn < n
    pays = best.cost - end.cost > GAIN * best.cost + plan.negligible
    again = plan.number - n
    pays = pays & (search.trips + 1 + again <= plan.most)  # what comes last is not cut
    is_better = is_first | (end.cost < best.cost)
    return Search(
        turn=xp.where(~is_first & pays, n, search.turn + 1),
        trips=search.trips + 1,
        best=chosen(y, is_better, end, best),
    )


def _elsewhere(crowd: Crowd, state: State, rank: Any, sign: Scalar) -> Places:
    """The least useful peak where most is left without it."""
    places, n, m = state.places, len(state.heights), len(crowd.y)
    k = argsort(state.use)[rank]
    without_it = state.heights[k] / state.inverse[k, k] * state.inverse[k]
    residual = crowd.y - xp.matmul(state.heights - without_it, state.columns)
    sums = crowd.windows.sums((residual * crowd.rest.factor)[None])[0]
    image = xp.where(sign == 0, xp.abs(sums), xp.maximum(sign * sums, 0))
    top = xp.argmax(image**2 * crowd.windows.weight)
    it = xp.arange(n) == k
    return places._replace(
        center=xp.where(it, crowd.rest.x[top % m], places.center),
        fwhm=xp.where(it, crowd.windows.widths[top // m], places.fwhm),
        used=places.used | it,
    )


def _halved(crowd: Crowd, state: State, rank: Any) -> Places:
    """The peak under which most is left in two, with the least useful other one."""
    places, index = state.places, xp.arange(len(state.heights))
    residual = crowd.y - xp.matmul(state.heights, state.columns)
    under = xp.matmul(xp.abs(state.columns), residual**2)
    wide = index == argsort(-under)[rank]
    other = index == xp.argmin(xp.where(wide, np.inf, state.use))
    center, fwhm = (xp.sum(xp.where(wide, leaf, 0)) for leaf in places[:2])
    either = wide | other
    halves = center + xp.where(wide, -0.4, 0.4) * fwhm
    return places._replace(
        center=xp.where(either, halves, places.center),
        fwhm=xp.where(either, 0.6 * fwhm, places.fwhm),
    )
