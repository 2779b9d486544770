"""A fit whose every trip is a pass over data that are read piece by piece.

    while the fit goes on:
        for block in blocks:  the fit takes it in
        the fit decides what follows from the pass

What lies between two blocks is `Progress`, which a checkpoint keeps, so that a fit that
was killed goes on to the same bits.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int, PyTree

from jaxfit._programs.progress import Line
from jaxfit._stream.feed import Block, Feed, Nouns
from jaxfit._stream.saved import Saved


class Progress(NamedTuple):
    """How far a fit has come: all that a checkpoint keeps."""

    state: PyTree  # between passes
    running: PyTree  # what is added up over the blocks of this pass
    block: Int[np.ndarray, ""]  # the next to read
    rows: Int[np.ndarray, ""]  # read in this pass
    all_blocks: Int[np.ndarray, ""]  # of a whole pass; 0 during the first
    all_rows: Int[np.ndarray, ""]
    capacity: Int[np.ndarray, ""]  # rows of the longest block
    tables: Mapping[str, np.ndarray] = {}  # what is kept of each row

    @classmethod
    def start(cls, state: PyTree, running: PyTree) -> "Progress":
        """Before the first block."""
        zero = np.zeros((), np.int64)
        return cls(state, running, zero, zero, zero, zero, zero)

    def at_start(self) -> "Progress":
        """With the same state and sum, and nothing counted nor kept."""
        return self.start(self.state, self.running)

    @property
    def is_first_pass(self) -> bool:
        """Whether nobody knows yet how many rows there are."""
        return int(self.all_blocks) == 0

    def after(self, block: Block) -> "Progress":
        """With another block read."""
        return self._replace(
            block=np.int64(block.position + 1),
            rows=self.rows + block.rows,
            capacity=np.int64(block.capacity),
        )

    def next_pass(self) -> "Progress":
        """Before the first block of the next pass."""
        zero = np.zeros((), np.int64)
        return self._replace(
            block=zero, rows=zero, all_blocks=self.block, all_rows=self.rows
        )


@runtime_checkable
class Fit(Protocol):
    """What a pass is made for."""

    @property
    def nouns(self) -> Nouns:
        """What blocks and rows are called."""
        ...

    def start(self) -> Progress:
        """Before the first block."""
        ...

    def goes_on(self, state: Any) -> bool:
        """Whether another pass follows."""
        ...

    def with_block(self, progress: Progress, block: Block) -> Progress:
        """What is added up, and what rows keep, with another block."""
        ...

    def decided(self, progress: Progress) -> Progress:
        """The state after a pass, and the empty sum of the next."""
        ...

    def solution(self, progress: Progress) -> Any:
        """The result."""
        ...

    def words(self, state: Any) -> list[str]:
        """Which pass this is, and how the fit stands."""
        ...


def run(fit: Fit, feed: Feed, saved: Saved, report: "Report | None") -> Any:
    """All passes, or those that an earlier fit has left; the result."""
    progress = saved.resumed(fit.start) or fit.start()
    if not (fit.goes_on(progress.state) or saved.is_of_this_code):
        for block in feed.read(0):  # is it the same program, though?
            saved.identify(block)
            break
    try:
        while fit.goes_on(progress.state):
            progress = _one_pass(fit, feed, saved, report, progress)
    finally:
        if report is not None:
            report.line.end()
    return fit.solution(progress)


def _one_pass(
    fit: Fit, feed: Feed, saved: Saved, report: "Report | None", progress: Progress
) -> Progress:
    """All blocks, or those that a pass which was cut short had left."""
    feed.capacity = max(feed.capacity, int(progress.capacity))
    if report is not None:
        report.begin(progress)
    feed.check_numbers &= progress.is_first_pass
    for block in feed.read(int(progress.block)):
        saved.identify(block)
        following = progress.after(block)
        if not progress.is_first_pass and following.rows > progress.all_rows:
            raise _differs(fit.nouns, following)
        progress = fit.with_block(progress, block).after(block)
        jax.block_until_ready(progress.running)
        saved.after_block(progress)
        if report is not None:
            report.show(progress)
    if progress.rows == 0:
        raise ValueError(
            f"blocks has no {fit.nouns.rows}; a fit needs at least one residual."
        )
    size = progress.block, progress.rows
    if not progress.is_first_pass and size != (progress.all_blocks, progress.all_rows):
        raise _differs(fit.nouns, progress)
    progress = fit.decided(progress).next_pass()
    saved.write(progress)
    return progress


def _differs(nouns: Nouns, progress: Progress) -> ValueError:
    """What to say of a pass that is not like the first."""
    return ValueError(
        f"This pass found {progress.rows} {nouns.rows} in {progress.block} "
        f"{nouns.blocks}, and the one before {progress.all_rows} in "
        f"{progress.all_blocks}. Every pass must give the same data in the same order."
    )


class Report:
    """A line that says how far a fit has come.

    Args:
        fit: it.
        rows: of a pass, if they are known before the first.
    """

    def __init__(self, fit: Fit, rows: int | None):
        self.fit, self.line, self.rows = fit, Line(), rows
        self.started, self.skipped = 0.0, 0

    def begin(self, progress: Progress) -> None:
        """Before a pass, or what is left of one."""
        self.started, self.skipped = time.perf_counter(), int(progress.rows)
        self.rows = int(progress.all_rows) or self.rows

    def show(self, progress: Progress) -> None:
        """After a block."""
        if not self.line.is_due:
            return
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        rate = (int(progress.rows) - self.skipped) / elapsed
        heading, *parts = self.fit.words(progress.state)
        parts = [f"{heading}: {rate:,.0f} {self.fit.nouns.rows}/s", *parts]
        if self.rows is not None:
            seconds = (self.rows - int(progress.rows)) / max(rate, 1e-9)
            parts.append(f"{seconds:.0f} s left in the pass")
        self.line.show(", ".join(parts))
