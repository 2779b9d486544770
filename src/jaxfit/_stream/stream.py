"""Data that do not fit in memory: a fit whose every trip is a pass over blocks of rows.

    state = start
    while the fit runs:
        sum = nothing
        for block in blocks:  sum = sum + linearization of the block at the trial point
        state = what a trip decides from the sum

Start, sum, decision and result are the functions of `solve`, each a compiled program.
What lies between them is a few n x n arrays; the loop is that of `passes.py`.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from jaxfit._core.auto_scale import Fit, has_own_scale
from jaxfit._core.derivative import Outcome
from jaxfit._core.fit import Request, setting_of, solution_of
from jaxfit._core.options import (
    DEFAULTS,
    Options,
    check_arguments,
    check_callable,
    check_known_scale,
    without_callable,
)
from jaxfit._core.parameters import Parameters
from jaxfit._core.setting import Setting, initial_state
from jaxfit._core.solution import Solution
from jaxfit._core.state import State, is_running
from jaxfit._core.trip import decide, frame_of
from jaxfit._programs.arrays import ordinary
from jaxfit._programs.call import Static
from jaxfit._programs.compiled import compiled
from jaxfit._programs.digest import digest_of_numbers, digest_of_program
from jaxfit._programs.errors import explained
from jaxfit._rows.linearization import RunningSum
from jaxfit._rows.predictions import check_no_row_numbers, rows_of_loss
from jaxfit._rows.table import RowTable, split_rows
from jaxfit._rows.visit import ResidualModel, default_size, trace_rows
from jaxfit._stream.feed import (
    ROWS,
    Block,
    Feed,
    Nouns,
    check_source,
    known_size,
)
from jaxfit._stream.own_scale import stream_with_own_scale
from jaxfit._stream.passes import Progress, Report, run
from jaxfit._stream.saved import Identity, Saved, check_every
from jaxfit.losses import Likelihood, Loss

NAN_POLICIES = "raise", "omit", "propagate"

EXAMPLE = 8  # rows of a block by which programs are compared


def solve_stream(
    fn: Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    blocks: Iterable[PyTree],
    *,
    bounds: tuple[PyTree, PyTree] | None = None,
    loss: Loss | Likelihood | None = None,
    options: Options | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 16,
    nan_policy: str = "raise",
    progress: bool = False,
) -> Solution:
    """Fit data that are read block by block, from a disk for example.

    The exact least-squares answer, that of `solve` on all rows but for rounding: every
    trial point is one pass over all blocks, and nothing is averaged. Memory is that of
    three blocks, whatever their number.

    Args:
        fn, x0, bounds, loss, options: see `solve`. Every leaf of a block and every
            residual array has the rows as its leading axis, and `fn` treats rows
            independently; a leaf that is not rows is wrapped, `Shared(leaf)`. A loss
            with the scale "auto" takes more passes, and no checkpoint.
        blocks: the data: what gives blocks of rows each time it is iterated over, such
            as a list, `npy_blocks(...)`, or an object with `__iter__`. A block is a
            pytree of arrays, or `Weighted(data, weights)`. If there is a method
            `iter_from(k)`, a resumed pass starts at block k without reading what lies
            before it. Blocks may differ in length; a longer one than all before
            compiles again.
        checkpoint: a file that keeps the state of the fit. If it is there, the fit goes
            on from it, to the same bits; if that fit had ended, its solution is
            returned at once. It is replaced as a whole, so that a fit can be killed at
            any moment.
        checkpoint_every: blocks after which the file is written again within a pass.
        nan_policy: "raise" an error for NaN or infinity in a row whose weight is not
            zero; "omit" rows with NaN; or "propagate", without a check.
        progress: show a line with pass, rows per second, cost, radius, and the time
            left in the pass.

    Returns:
        A `Solution`. Its `success` is a certificate.

    Raises:
        ValueError, TypeError: for arguments of the wrong kind; a block with other
            arrays than the first, or with NaN; passes with different numbers of rows; a
            checkpoint that is damaged or belongs to another fit.
        RuntimeError: if a block could not be read. Errors name the block, and the
            checkpoint stays valid.
    """
    check_callable(fn, "fn", "a function (x, data) -> residuals")
    options = DEFAULTS if options is None else options
    check_arguments(loss, options, None)
    check_no_row_numbers(loss)
    check_source(blocks)
    if has_own_scale(loss):
        if checkpoint is not None:
            check_known_scale(loss, "a stream with a checkpoint")
        fit = Fit(fn, x0, None, None, bounds, loss, options)
        run_one = functools.partial(solve_stream, progress=progress)
        return stream_with_own_scale(run_one, fit, blocks, nan_policy)
    if nan_policy not in NAN_POLICIES:
        raise ValueError(f"nan_policy is {nan_policy!r}; give one of {NAN_POLICIES}.")
    check_every(checkpoint_every)
    options, jac = without_callable(options)
    x0, bounds = ordinary((x0, bounds), ("x0", "bounds"))
    request = Request(
        fn=fn,
        jac=jac,
        x0=x0,
        data=None,
        bounds=bounds,
        weights=None,
        loss=loss,
        options=options,
    )
    fit = RowsFit(request, nan_policy == "omit")
    identity = fit.identity(known_size(blocks))
    saved = Saved(identity, checkpoint, checkpoint_every)
    feed = Feed(blocks, check_numbers=nan_policy == "raise")
    report = Report(fit, identity.description["rows"]) if progress else None
    with explained(fn):
        return run(fit, feed, saved, report)


# The fit as four programs


class RowsFit(NamedTuple):
    """A fit of blocks of rows."""

    request: Request
    omit: bool

    @property
    def nouns(self) -> Nouns:
        """What blocks and rows are called."""
        return ROWS

    @property
    def without_functions(self) -> Request:
        """What does not depend on the user's functions, and compiles once for all."""
        return self.request._replace(fn=None, jac=None)

    def start(self) -> Progress:
        """Before the first block."""
        start = compiled(_started, self.without_functions)
        return Progress.start(start.state, start.running)

    def goes_on(self, state: State) -> bool:
        """Whether another pass follows."""
        return bool(is_running(state))

    def with_block(self, progress: Progress, block: Block) -> Progress:
        """The sum with the rows of another block."""
        asked = self.request._replace(data=block.data, weights=block.weights)
        rows, omit = np.int32(block.rows), Static(self.omit)
        running = compiled(
            _accumulated, asked, progress.state, rows, omit, donate=(progress.running,)
        )
        return progress._replace(running=running)

    def decided(self, progress: Progress) -> Progress:
        """The state after a pass, and the empty sum of the next."""
        turn = compiled(
            _decided, self.without_functions, progress.state, progress.running
        )
        return progress._replace(state=turn.state, running=turn.running)

    def solution(self, progress: Progress) -> Solution:
        """The result."""
        return compiled(_solved, self.without_functions, progress.state)

    def words(self, state: State) -> list[str]:
        """Which pass this is, and how the fit stands."""
        return words_of(state)

    def identity(self, size: dict[str, int | None]) -> Identity:
        """What the fit is, for a checkpoint."""
        asked = self.request
        description = {
            **size,
            "entrance": "solve_stream",
            "x0": digest_of_numbers(asked.x0),
            "bounds": digest_of_numbers(asked.bounds),
            "loss": digest_of_numbers(asked.loss),
            "options": digest_of_numbers(asked.options),
            "nan_policy": "omit" if self.omit else "keep",
            "x64": jax.dtypes.canonicalize_dtype(np.float64) == np.float64,
        }
        return Identity(description, (asked.fn, asked.jac), self._programs)

    def _programs(self, table: RowTable) -> list[str]:
        """What the functions compute, by a few rows."""
        asked, parameters = self.request, Parameters(self.request.x0)
        x = jax.ShapeDtypeStruct((parameters.size,), parameters.dtype)
        rows = [
            jax.ShapeDtypeStruct((EXAMPLE, *leaf.shape[1:]), leaf.dtype)
            for leaf in table.rows
        ]

        def program(fn: Callable) -> str:
            def of_vector(x: Array, rows: list) -> Any:
                return fn(parameters.unravel(x), table.with_rows(rows)[0])

            return digest_of_program(of_vector, x, rows)

        programs = [program(f) for f in (asked.fn, asked.jac) if callable(f)]
        if asked.loss is not None:
            programs.append(digest_of_program(*rows_of_loss(asked.loss, x)))
        return programs


def words_of(state: State) -> list[str]:
    """Which pass is made for a state, and its cost and radius."""
    words = [f"pass {int(state.nfev) + 1}"]
    if state.nfev > 0:
        cost, radius = state.point.linearization.cost, state.radius
        words.append(f"cost {float(cost):.6g}, radius {float(radius):.3g}")
    return words


class Pass(NamedTuple):
    """What the blocks of a pass add up to."""

    sum: RunningSum
    is_kinked: Bool[Array, ""]  # the residuals of some block may have a kink


class Turn(NamedTuple):
    """A state, and its pass before the first block."""

    state: State
    running: Pass


def _started(request: Request) -> Turn:
    parameters = Parameters(request.x0)
    setting = setting_of(parameters, request)
    state = initial_state(setting, parameters.ravel(request.x0, "x0"))
    return Turn(state, _nothing(setting, state))


def _nothing(setting: Setting, state: State) -> Pass:
    """A pass at the trial point of a state, before the first block."""
    x, inverse = state.trial.x, frame_of(state).inverse
    nothing = RunningSum.of_nothing(x, inverse, setting.kind)
    return Pass(nothing, jnp.zeros((), bool))


def _accumulated(
    request: Request,
    state: State,
    rows: Int[Array, ""],
    omit: Static,
    running: Pass,
) -> Pass:
    parameters = Parameters(request.x0)
    model = ResidualModel(request.fn, request.jac, parameters.unravel, request.loss)
    table, x = split_rows(request.data, request.weights), state.trial.x
    size = default_size(table, len(x), x.dtype)
    traced = trace_rows(model, table, x, size, rows, omit.value)
    number = traced.chunks.number_with_valid
    return Pass(
        traced.add_to(running.sum, x, frame_of(state), number),
        running.is_kinked | (not traced.is_smooth),
    )


def _decided(request: Request, state: State, running: Pass) -> Turn:
    setting = setting_of(Parameters(request.x0), request)
    setting = dataclasses.replace(setting, is_kinked=running.is_kinked)
    state = decide(setting, state, running.sum.total())
    return Turn(state, _nothing(setting, state))


def _solved(request: Request, state: State) -> Solution:
    parameters = Parameters(request.x0)
    bounds = parameters.bounds(request.bounds)
    return solution_of(parameters, bounds, Outcome.of(state))
