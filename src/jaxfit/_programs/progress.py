"""One line, or a bar, that says how far work has come."""

import sys
import time
from collections.abc import Iterable, Iterator


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
    begin, total = time.perf_counter(), 0
    for count in done:
        yield count
        total += count
        rate = total / (time.perf_counter() - begin)
        print(f"\r{total} of {number} fits, {rate:.0f}/s", end="", file=sys.stderr)
    print(file=sys.stderr)
