"""The checkpoint of a fit: whether it is of this fit, and when it is written."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxfit._programs.digest import lasting_digest
from jaxfit._rows.table import RowTable, split_rows
from jaxfit._stream.checkpoint import Checkpoint
from jaxfit._stream.feed import Block, Layout


class Identity(NamedTuple):
    """What tells one fit from another."""

    description: dict[str, Any]  # strings and numbers, by name
    functions: tuple  # of the user's
    programs: Callable[[RowTable], list[str]]  # digests of what these do to a block


class Saved:
    """The checkpoint of a fit, if it has one.

    Args:
        identity: what the fit is.
        path: of the file, or None.
        every: blocks after which it is written.

    Attributes:
        description: of this fit, as far as it is known.
        saved: that of the file; empty without one.
    """

    def __init__(self, identity: Identity, path: str | os.PathLike | None, every: int):
        self.identity, self.every, self.since = identity, every, 0
        self.file = None if path is None else Checkpoint(path)
        self.description = dict(identity.description)
        # before they are traced, which may change what they hold
        self.code = None if path is None else lasting_digest(identity.functions)
        self.saved, self.arrays = {}, None
        if self.file is not None and (content := self.file.read()) is not None:
            self.saved, self.arrays = content
            self.file.check(self.saved, self.description)

    @property
    def is_of_this_code(self) -> bool:
        """Whether the functions of the file are known to be these."""
        return self.code is not None and self.code == self.saved.get("code")

    def resumed(self, start: Callable) -> Any:
        """The progress in which an earlier fit stopped; None if there was none.

        Args:
            start: gives progress before the first block.
        """
        if self.file is None or self.arrays is None:
            return None
        like = jax.eval_shape(start).at_start()  # whose counts have 64 bits
        progress = self.file.restore(like, self.arrays)
        tables = self.file.mapping("tables", self.arrays)
        self.arrays = None
        return progress._replace(tables=tables)

    def identify(self, block: Block) -> None:
        """Describe data and program by the first block that was read."""
        if self.file is None or "program" in self.description:
            return
        table = split_rows(block.data, block.weights)
        self.description["data"] = str(Layout.of(table))
        self.file.check(self.saved, self.description)
        programs = self.identity.programs(table)
        self.description |= {"program": programs, "code": self.code}
        if self.saved.get("program") != programs:
            self.file.check(self.saved, self.description)

    def after_block(self, progress: Any) -> None:
        """Write the file, if it is time to."""
        self.since += 1
        if self.since >= self.every:
            self.write(progress)

    def write(self, progress: Any) -> None:
        """Write the file."""
        self.since = 0
        if self.file is not None:
            self.file.write(self.description, progress)


def check_every(checkpoint_every: Any) -> None:
    """Refuse what is no number of blocks."""
    if not isinstance(checkpoint_every, int) or checkpoint_every < 1:
        raise ValueError(
            f"checkpoint_every is {checkpoint_every!r}; give a whole number of at "
            "least 1."
        )
