"""Memory for what is worked on at once."""

from typing import NamedTuple

import jax


class Budget(NamedTuple):
    """Memory for what is worked on at once, and limits of how much that may be."""

    bytes: int
    fewest: int
    most: int

    def holds(self, each: int) -> int:
        """The largest power of two of things of so many bytes, within the limits."""
        number = max(self.bytes // max(each, 1), 1)
        return min(max(1 << number.bit_length() - 1, self.fewest), self.most)


def budget(cpu: Budget, other: Budget) -> Budget:
    """The budget of the device that JAX computes on."""
    return cpu if jax.default_backend() == "cpu" else other
