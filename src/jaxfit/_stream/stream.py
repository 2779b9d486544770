"""Data that do not fit in memory: a fit whose every trip is a pass over blocks of rows.

    state = start
    while the fit runs:
        sum = nothing
        for block in blocks:  sum = sum + linearization of the block at the trial point
        state = what a trip decides from the sum

Start, sum, decision and result are the functions of `solve`, each a compiled program.
What lies between
them is a few n x n arrays, which a checkpoint keeps, so that a fit that was killed goes
on to the same bits.
"""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree

from jaxfit._core.derivative import Outcome
from jaxfit._core.fit import Request, setting_of, solution_of
from jaxfit._core.options import (
    DEFAULTS,
    Options,
    check_arguments,
    check_callable,
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
from jaxfit._programs.digest import digest_of_numbers, digest_of_program, lasting_digest
from jaxfit._programs.errors import explained
from jaxfit._programs.progress import Line
from jaxfit._rows.linearization import RunningSum
from jaxfit._rows.table import split_rows
from jaxfit._rows.visit import ResidualModel, default_size, trace_rows
from jaxfit._stream.checkpoint import Checkpoint
from jaxfit._stream.feed import Block, Feed, Layout, check_source, known_size
from jaxfit.losses import Loss

NAN_POLICIES = "raise", "omit", "propagate"

EXAMPLE = 8  # rows of a block by which programs are compared


def solve_stream(
    fn: Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    blocks: Iterable[PyTree],
    *,
    bounds: tuple[PyTree, PyTree] | None = None,
    loss: Loss | None = None,
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
            independently; a leaf that is not rows is wrapped, `Shared(leaf)`.
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
    check_source(blocks)
    if nan_policy not in NAN_POLICIES:
        raise ValueError(f"nan_policy is {nan_policy!r}; give one of {NAN_POLICIES}.")
    if not isinstance(checkpoint_every, int) or checkpoint_every < 1:
        raise ValueError(
            f"checkpoint_every is {checkpoint_every!r}; give a whole number of blocks."
        )
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
    fit = _Fit(request, nan_policy == "omit")
    saved = _Saved(fit, checkpoint, checkpoint_every, known_size(blocks))
    feed = Feed(blocks, check_numbers=nan_policy == "raise")
    report = _Report(saved.description["rows"]) if progress else None
    with explained(fn):
        return _run(fit, feed, saved, report)


# The fit as four programs


class _Fit(NamedTuple):
    """A fit of blocks of rows."""

    request: Request
    omit: bool

    @property
    def without_functions(self) -> Request:
        """What does not depend on the user's functions, and compiles once for all."""
        return self.request._replace(fn=None, jac=None)

    def start(self) -> "_Progress":
        """Before the first block."""
        state, running = compiled(_started, self.without_functions)
        zero = np.zeros((), np.int64)
        return _Progress(
            state=state,
            running=running,
            block=zero,
            rows=zero,
            all_blocks=zero,
            all_rows=zero,
            capacity=zero,
        )

    def with_block(self, running: RunningSum, state: State, block: Block) -> RunningSum:
        """The sum with the rows of another block."""
        asked = self.request._replace(data=block.data, weights=block.weights)
        rows, omit = np.int32(block.rows), Static(self.omit)
        return compiled(_accumulated, asked, state, rows, omit, donate=(running,))

    def decided(self, running: RunningSum, state: State) -> tuple[State, RunningSum]:
        """The state after a pass, and the empty sum of the next."""
        return compiled(_decided, self.without_functions, state, running)

    def solution(self, state: State) -> Solution:
        """The result."""
        return compiled(_solved, self.without_functions, state)


def _started(request: Request) -> tuple[State, RunningSum]:
    parameters = Parameters(request.x0)
    setting = setting_of(parameters, request)
    state = initial_state(setting, parameters.ravel(request.x0, "x0"))
    return state, _nothing(setting, state)


def _nothing(setting: Setting, state: State) -> RunningSum:
    """The empty sum of a pass at the trial point of a state."""
    frame = frame_of(state)
    return RunningSum.of_nothing(state.trial.x, frame.inverse, setting.is_linear)


def _accumulated(
    request: Request,
    state: State,
    rows: Int[Array, ""],
    omit: Static,
    running: RunningSum,
) -> RunningSum:
    parameters = Parameters(request.x0)
    model = ResidualModel(request.fn, request.jac, parameters.unravel, request.loss)
    table, x = split_rows(request.data, request.weights), state.trial.x
    size = default_size(table, len(x), x.dtype)
    traced = trace_rows(model, table, x, size, rows, omit.value)
    return traced.add_to(running, x, frame_of(state), traced.chunks.number_with_valid)


def _decided(
    request: Request, state: State, running: RunningSum
) -> tuple[State, RunningSum]:
    setting = setting_of(Parameters(request.x0), request)
    state = decide(setting, state, running.total())
    return state, _nothing(setting, state)


def _solved(request: Request, state: State) -> Solution:
    parameters = Parameters(request.x0)
    bounds = parameters.bounds(request.bounds)
    return solution_of(parameters, bounds, Outcome.of(state))


# From pass to pass


class _Progress(NamedTuple):
    """How far a fit has come: all that a checkpoint keeps."""

    state: State
    running: RunningSum  # of the blocks of this pass so far
    block: Int[np.ndarray, ""]  # the next to read
    rows: Int[np.ndarray, ""]  # read in this pass
    all_blocks: Int[np.ndarray, ""]  # of a whole pass; 0 during the first
    all_rows: Int[np.ndarray, ""]
    capacity: Int[np.ndarray, ""]  # rows of the longest block

    @property
    def is_first_pass(self) -> bool:
        return int(self.all_blocks) == 0


def _run(fit: _Fit, feed: Feed, saved: "_Saved", report: "_Report | None") -> Solution:
    progress = saved.resumed() or fit.start()
    if not (is_running(progress.state) or saved.is_of_this_code):
        for block in feed.read(0):  # is it the same program, though?
            saved.identify(block)
            break
    try:
        while is_running(progress.state):
            progress = _one_pass(fit, feed, saved, report, progress)
    finally:
        if report is not None:
            report.line.end()
    return fit.solution(progress.state)


def _one_pass(
    fit: _Fit,
    feed: Feed,
    saved: "_Saved",
    report: "_Report | None",
    progress: _Progress,
) -> _Progress:
    """All blocks, or those that a pass which was cut short had left."""
    feed.capacity = max(feed.capacity, int(progress.capacity))
    if report is not None:
        report.begin(progress)
    feed.check_numbers &= progress.is_first_pass
    for block in feed.read(int(progress.block)):
        saved.identify(block)
        running = fit.with_block(progress.running, progress.state, block)
        progress = progress._replace(
            running=jax.block_until_ready(running),
            block=np.int64(block.position + 1),
            rows=progress.rows + block.rows,
            capacity=np.int64(block.capacity),
        )
        saved.after_block(progress)
        if report is not None:
            report.show(progress)
    size = progress.block, progress.rows
    if progress.rows == 0:
        raise ValueError("blocks has no rows; a fit needs at least one residual.")
    if not progress.is_first_pass and size != (progress.all_blocks, progress.all_rows):
        raise ValueError(
            f"This pass found {size[1]} rows in {size[0]} blocks, and the one before "
            f"{progress.all_rows} in {progress.all_blocks}. Every pass must give the "
            "same data in the same order."
        )
    state, running = fit.decided(progress.running, progress.state)
    zero = np.zeros((), np.int64)
    progress = progress._replace(state=state, running=running, block=zero, rows=zero)
    progress = progress._replace(all_blocks=size[0], all_rows=size[1])
    saved.write(progress)
    return progress


class _Saved:
    """The checkpoint of a fit, if it has one."""

    def __init__(
        self,
        fit: _Fit,
        path: str | os.PathLike | None,
        every: int,
        size: dict[str, int | None],
    ):
        asked = fit.request
        self.fit, self.every, self.since = fit, every, 0
        self.file = None if path is None else Checkpoint(path)
        self.saved: dict[str, Any] = {}
        self.description: dict[str, Any] = {
            **size,
            "x0": digest_of_numbers(asked.x0),
            "bounds": digest_of_numbers(asked.bounds),
            "loss": digest_of_numbers(asked.loss),
            "options": digest_of_numbers(asked.options),
            "nan_policy": "omit" if fit.omit else "keep",
            "x64": jax.dtypes.canonicalize_dtype(np.float64) == np.float64,
        }
        # before it is traced, which may change what it holds
        self.code = None if path is None else lasting_digest((asked.fn, asked.jac))

    @property
    def is_of_this_code(self) -> bool:
        """Whether the functions of the file are known to be these."""
        return self.code is not None and self.code == self.saved.get("code")

    def resumed(self) -> _Progress | None:
        """The state in which an earlier fit stopped; None if there was none."""
        if self.file is None or (saved := self.file.read()) is None:
            return None
        self.saved, arrays = saved
        self.file.check(self.saved, self.description)
        return self.file.restore(jax.eval_shape(self.fit.start), arrays)

    def identify(self, block: Block) -> None:
        """Describe data and program by the first block that was read."""
        if self.file is None or "program" in self.description:
            return
        asked = self.fit.request
        parameters = Parameters(asked.x0)
        x = jax.ShapeDtypeStruct((parameters.size,), parameters.dtype)
        table = split_rows(block.data, block.weights)
        rows = [
            jax.ShapeDtypeStruct((EXAMPLE, *leaf.shape[1:]), leaf.dtype)
            for leaf in table.rows
        ]

        def program(fn: Callable) -> str:
            def of_vector(x: Array, rows: list) -> Any:
                return fn(parameters.unravel(x), table.with_rows(rows)[0])

            return digest_of_program(of_vector, x, rows)

        self.description["data"] = str(Layout.of(table))
        self.file.check(self.saved, self.description)
        programs = [program(f) for f in (asked.fn, asked.jac) if callable(f)]
        if asked.loss is not None:
            programs.append(digest_of_program(asked.loss.evaluate, x))
        self.description |= {"program": programs, "code": self.code}
        if self.saved.get("program") != programs:
            self.file.check(self.saved, self.description)

    def after_block(self, progress: _Progress) -> None:
        self.since += 1
        if self.since >= self.every:
            self.write(progress)

    def write(self, progress: _Progress) -> None:
        self.since = 0
        if self.file is not None:
            self.file.write(self.description, progress)


class _Report:
    """A line that says how far a fit has come.

    Args:
        rows: of a pass, if they are known before the first.
    """

    def __init__(self, rows: int | None):
        self.line, self.rows = Line(), rows
        self.started, self.skipped = 0.0, 0

    def begin(self, progress: _Progress) -> None:
        """Before a pass, or what is left of one."""
        self.started, self.skipped = time.perf_counter(), int(progress.rows)
        self.rows = int(progress.all_rows) or self.rows

    def show(self, progress: _Progress) -> None:
        """After a block."""
        if not self.line.is_due:
            return
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        rate = (int(progress.rows) - self.skipped) / elapsed
        state = progress.state
        parts = [f"pass {int(state.nfev) + 1}: {rate:,.0f} rows/s"]
        if state.nfev > 0:
            cost, radius = state.point.linearization.cost, state.radius
            parts.append(f"cost {float(cost):.6g}, radius {float(radius):.3g}")
        if self.rows is not None:
            seconds = (self.rows - int(progress.rows)) / max(rate, 1e-9)
            parts.append(f"{seconds:.0f} s left in the pass")
        self.line.show(", ".join(parts))
