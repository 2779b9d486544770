"""A robust fit of data that are read block by block, which finds its scale."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxfit._core.auto_scale import Fit, Ways, number_of_free, with_own_scale
from jaxfit._core.solution import Solution
from jaxfit._rows.table import Shared, map_rows
from jaxfit._stream.feed import Weighted


class Blocks:
    """Blocks of which each is made another.

    Args:
        source: what gives blocks of the user's each time it is iterated over.
        change: (data, weights or None) -> a block.
    """

    def __init__(self, source: Any, change: Callable[[PyTree, PyTree], PyTree]):
        self.source, self.change = source, change

    def __iter__(self) -> Iterator[PyTree]:
        for block in self.source:
            is_weighted = isinstance(block, Weighted)
            data, weights = block if is_weighted else (block, None)
            yield self.change(data, weights)


def stream_with_own_scale(
    solve_stream: Callable[..., Solution], fit: Fit, blocks: Any, nan_policy: str
) -> Solution:
    """The solution of a fit whose loss has the scale "auto", in passes over blocks."""

    def run(fit: Fit, blocks: Any, nan_policy: str = nan_policy) -> Solution:
        return solve_stream(
            fit.fn,
            fit.x0,
            blocks,
            bounds=fit.bounds,
            loss=fit.loss,
            options=fit.options,
            nan_policy=nan_policy,
        )

    def with_scale(fit: Fit) -> Solution:
        numbers = fit.data[2]
        # weights are data there, and NaN without weight was found right before
        policy = "omit" if nan_policy == "omit" else "propagate"
        return run(fit, Blocks(blocks, lambda *block: (*block, numbers)), policy)

    def again(fit: Fit) -> Solution:
        factor = fit.weights

        def weighted(data: PyTree, weights: PyTree) -> Weighted:
            if weights is None:
                return Weighted(data, Shared(factor))
            return Weighted(
                data, map_rows(lambda weight: np.asarray(weight) * factor, weights)
            )

        return run(fit, Blocks(blocks, weighted))

    ways = Ways(
        plain=lambda fit: run(fit, blocks),
        with_scale=with_scale,
        again=again,
        number=lambda value: Shared(np.asarray(value)),
        weighted=lambda _, factor: np.asarray(factor),
    )
    return with_own_scale(fit, ways, number_of_free(fit.x0, fit.bounds))
