"""What checks annotations under test: shapes by jaxtyping, and types by beartype.

Entrances are left out: they refuse wrong arguments themselves, in words.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

ENTRANCES = frozenset(
    "solve solve_batch solve_blocks solve_stream solve_joint_stream warm_start "
    "subsample_start curve_fit least_squares curvefit fit fit_batch Chunked Options "
    "Sharded npy_blocks "
    "Loss Fit BatchFit Model TrustRegionReflective".split()
)

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def checked(function: Callable) -> Any:
    """The function, which then checks its arguments and its result."""
    name = function.__qualname__.partition(".")[0]
    return function if name in ENTRANCES else _checked(function)
