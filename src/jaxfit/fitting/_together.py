"""What there is one of where many data sets are fitted together."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Together:
    """The whole of a fit of data sets that share parameters."""

    shared: tuple[str, ...]  # parameters, in the model's order
    single: tuple[str, ...]  # quantities with one value: also what these alone give
    row: int  # a data set that counts
    number: int  # of data sets that count
    cost: float  # of all, and of priors
    count: int  # residuals that count, priors among them
    dof: int  # less all parameters that varied
    status: int
    nfev: int

    @property
    def chi_square(self) -> float:
        """Twice the cost."""
        return 2 * self.cost

    @property
    def reduced_chi_square(self) -> float:
        """Chi-square for each degree of freedom."""
        return self.chi_square / self.dof if self.dof > 0 else math.nan


def parameters_of_each(
    varied: tuple[str, ...], together: Together | None
) -> Float[np.ndarray, " n"]:
    """How much of each parameter one data set has: all, or a part of what is shared."""
    if together is None:
        return np.ones(len(varied))
    part = 1 / max(together.number, 1)
    return np.array([part if name in together.shared else 1.0 for name in varied])


def check_alone(together: Together | None, what: str) -> None:
    """Refuse what fits one data set anew, where others have a say in it."""
    if together is not None:
        raise ValueError(
            f"{what} fits data anew, and this is one of {together.number} data sets "
            f"that share {', '.join(together.shared)}. Its errors and Wald intervals "
            "are those of the joint fit; ask `fit` of one data set for what it says "
            "by itself."
        )
