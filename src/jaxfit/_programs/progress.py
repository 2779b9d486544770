"""How far work has come: one line of text, or a bar of tqdm."""

import sys
import time
from collections.abc import Iterable, Iterator

WIDTH = 79  # what was there before is written over
SHOWN_EVERY = 0.2  # seconds


class Line:
    """One line on stderr that is written over and over, but not too often."""

    def __init__(self) -> None:
        self.shown = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the last text is old enough."""
        return time.perf_counter() - self.shown >= SHOWN_EVERY

    def show(self, text: str) -> None:
        """Write this in place of what was there."""
        self.shown = time.perf_counter()
        print(f"\r{text:<{WIDTH}}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line as it is."""
        print(file=sys.stderr)


def shown(done: Iterable[int], number: int, progress: bool) -> Iterator[int]:
    """How many fits were done, with a bar: by tqdm, or else as a line of text."""
    if not progress:
        yield from done
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield from _told(done, number)
        return
    with tqdm(total=number, unit=" fits", unit_scale=True) as bar:
        for count in done:
            yield count
            bar.update(count)


def _told(done: Iterable[int], number: int) -> Iterator[int]:
    line, begin, total = Line(), time.perf_counter(), 0
    for count in done:
        yield count
        total += count
        if line.is_due or total == number:
            rate = total / (time.perf_counter() - begin)
            line.show(f"{total} of {number} fits, {rate:.0f}/s")
    line.end()
