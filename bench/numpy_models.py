"""Models written in NumPy, by `curve_fit` as they stand: the table of the docs.

    python -m bench.numpy_models

Each model is fitted by SciPy, by jaxfit, and where that needs nothing but another
module, as its twin in `jax.numpy`, all in this process.
"""

import sys
import timeit
import types
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import jaxfit
from bench.report import ROOT, markdown

sys.path.append(str(ROOT / "tests"))

from numpy_models import EXAMPLES, Example

REPEATS, SECONDS = 5, 0.05
HEAD = (
    *("model", "runs", "found in", "cost / SciPy's - 1", "apart, standard errors"),
    *("ms", "SciPy, ms", "SciPy's trf, ms", "beside the twin"),
)


class Row(NamedTuple):
    """What is measured of one model."""

    name: str
    reason: str | None  # why it is on the host; None: it is compiled
    source: str
    cost: float  # relative to SciPy's, less one
    apart: float  # from SciPy's answer, in standard errors
    seconds: float
    of_scipy: float
    of_trf: float
    of_twin: float | None

    @property
    def shown(self) -> tuple[str, ...]:
        """As text."""
        where = "compiled" if self.reason is None else f"host: {self.reason}"
        numbers = (1e3 * self.seconds, 1e3 * self.of_scipy, 1e3 * self.of_trf)
        twin = "" if self.of_twin is None else f"{self.seconds / self.of_twin:.2f}"
        texts = (f"{number:.2f}" for number in numbers)
        where = self.name, where, self.source
        return (*where, f"{self.cost:.0e}", f"{self.apart:.0e}", *texts, twin)


def measured(example: Example) -> Row:
    """One model, fitted by each."""
    y = example.y

    def fit(curve_fit: Callable, function: Callable, **more) -> Callable:
        data = function, example.x, y, example.start
        return lambda: curve_fit(*data, **example.keywords, **more)

    ours = fit(jaxfit.curve_fit, example.function)
    theirs = fit(scipy.optimize.curve_fit, example.function)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", jaxfit.HostModelWarning)
        answer, _ = ours()
    expected, covariance = theirs()
    change = np.abs(answer - expected) / np.sqrt(np.diag(covariance))
    return Row(
        name=example.name,
        reason=example.host if _is_on_host(caught) else None,
        source=example.source,
        cost=_cost(example, y, answer) / _cost(example, y, expected) - 1,
        apart=float(change.max()),
        seconds=_warm(ours),
        of_scipy=_warm(theirs),
        of_trf=_warm(fit(scipy.optimize.curve_fit, example.function, method="trf")),
        of_twin=_of_twin(example, fit),
    )


def _is_on_host(caught: list[warnings.WarningMessage]) -> bool:
    kinds = (warning.category for warning in caught)
    return any(issubclass(kind, jaxfit.HostModelWarning) for kind in kinds)


def _cost(example: Example, y: np.ndarray, parameters: np.ndarray) -> float:
    residual = np.asarray(example.function(example.x, *parameters)) - y
    return float(np.sum((residual / example.keywords.get("sigma", 1.0)) ** 2))


def _warm(call: Callable) -> float:
    """Seconds of a call that has been made before: the best of some runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
        timer = timeit.Timer(call)
        number = max(1, int(SECONDS / max(timer.timeit(1), 1e-9)))
        return min(timer.repeat(REPEATS, number)) / number


def _of_twin(example: Example, fit: Callable) -> float | None:
    """Seconds of the same code with `np` as `jax.numpy`, if that is all it needs."""
    function = example.function
    if not isinstance(function, types.FunctionType):
        return None
    modules = {"np": jnp, "special": jax.scipy.special}
    twin = types.FunctionType(
        function.__code__,
        function.__globals__ | modules,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    try:
        return _warm(fit(jaxfit.curve_fit, twin))
    except Exception:  # whatever the code does that only NumPy can
        return None


def table() -> str:
    """Every model as Markdown, and how many are compiled."""
    rows = [measured(example) for example in EXAMPLES]
    compiled = sum(row.reason is None for row in rows)
    words = f"{compiled} of {len(rows)} are compiled."
    return markdown(HEAD, [row.shown for row in rows]) + f"\n\n{words}"


if __name__ == "__main__":
    print(table())
