"""Many parameters: how time and memory grow with n, beside SciPy's trf.

`python -m bench.size` prints two tables, `python -m bench.size WORKLOAD N` the numbers
of one fit as JSON. Every fit has a process of its own: a first call wants one in which
nothing was compiled, and a peak of memory one in which nothing else was held. All
seconds are those of a processor, on one core, so that other work on it does not count.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from scipy.optimize import least_squares

import jaxfit
from bench.report import ROOT, section

jax.config.update("jax_enable_x64", True)

SIZES = {
    "peaks": (3, 6, 12, 24, 48, 96, 192),
    "chain": (2, 5, 12, 20, 50, 100, 200, 500, 1000),
}
ENOUGH = 1.0  # seconds of warm fits, and at least three
AGREEMENT = 1e-6
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Workload(NamedTuple):
    """A problem of n parameters, for JAX and for SciPy."""

    residual: Callable  # (x, data) -> residuals, in JAX
    data: Any
    start: np.ndarray
    jacobian: Callable  # of x, in NumPy
    is_sparse: bool = False


def peaks(n: int) -> Workload:
    """n / 3 Gaussians side by side on 10 n points: every residual has all parameters.

    (Far from its center a Gaussian is computed all the same.)
    """
    number = n // 3
    t = np.linspace(0, number, 10 * n)
    rng = np.random.default_rng(0)
    height, center = rng.uniform(2, 4, number), np.arange(number) + 0.5
    truth = np.concatenate([height, center, np.full(number, 0.25)])

    def model(xp: Any, x: Any, t: Any) -> Any:
        height, center, width = x.reshape(3, number)[:, :, None]
        return xp.sum(height * xp.exp(-0.5 * ((t - center) / width) ** 2), axis=0)

    y = model(np, truth, t) + 0.05 * rng.normal(size=t.size)

    def jacobian(x: np.ndarray) -> np.ndarray:
        height, center, width = x.reshape(3, number)[:, :, None]
        z = (t - center) / width
        shape = np.exp(-0.5 * z**2)
        slopes = shape, height * shape * z / width, height * shape * z**2 / width
        return np.concatenate(slopes).T

    return Workload(
        residual=lambda x, data: model(jnp, x, data[0]) - data[1],
        data=(t, y),
        start=truth + np.repeat([0.3, 0.05, 0.02], number),
        jacobian=jacobian,
    )


def chain(n: int) -> Workload:
    """Broyden's tridiagonal function: each residual has three parameters of n.

    (Moré, Garbow and Hillstrom, ACM TOMS 7, 1981, problem 30.)
    """

    def residual(x: Any, data: Any) -> Any:
        around = jnp.pad(x, 1)
        return (3 - 2 * x) * x - around[:-2] - 2 * around[2:] + 1

    def jacobian(x: np.ndarray) -> Any:
        ones, places = np.ones(n - 1), [0, -1, 1]
        diagonals = [3 - 4 * x, -ones, -2 * ones]
        return scipy.sparse.diags(diagonals, places, format="csr")  # pyright: ignore[reportArgumentType]

    return Workload(residual, None, -np.ones(n), jacobian, is_sparse=True)


WORKLOADS = {"peaks": peaks, "chain": chain}


class Measured(NamedTuple):
    """Seconds of one way to fit."""

    x: np.ndarray
    first: float
    warm: float
    evaluations: int
    megabytes: float  # by which the peak of memory has risen

    def numbers(self) -> dict:
        """All but x."""
        numbers = self._asdict()
        del numbers["x"]
        return numbers


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(fit: Callable) -> Measured:
    """The first call, and the fastest of some later ones."""
    before, begin = _peak(), time.process_time()
    x, evaluations = fit()
    first, seconds = time.process_time() - begin, []
    while len(seconds) < 3 or sum(seconds) < ENOUGH:
        begin = time.process_time()
        fit()
        seconds.append(time.process_time() - begin)
    return Measured(x, first, min(seconds), evaluations, _peak() - before)


def compared(name: str, n: int) -> dict:
    """The numbers of jaxfit and SciPy on one problem."""
    work = WORKLOADS[name](n)

    def ours() -> tuple[np.ndarray, int]:
        solution = jaxfit.solve(work.residual, work.start, work.data)
        assert solution.success, solution.message
        return np.asarray(solution.x), int(solution.nfev)

    values = jax.jit(lambda x: work.residual(x, work.data))

    def scipys(jacobian: Callable, **settings: Any) -> tuple[np.ndarray, int]:
        ended = least_squares(
            lambda x: np.asarray(values(x)),
            work.start,
            jacobian,  # pyright: ignore[reportArgumentType]
            x_scale="jac",
            ftol=1e-12,
            xtol=1e-12,
            gtol=1e-12,
            **settings,
        )
        return ended.x, ended.nfev

    def dense(x: np.ndarray) -> np.ndarray:
        slopes = work.jacobian(x)
        return slopes.toarray() if work.is_sparse else slopes

    jax.jit(lambda x: x + 1)(1.0).block_until_ready()  # JAX itself has started
    results = {"jaxfit": measured(ours), "SciPy": measured(lambda: scipys(dense))}
    if work.is_sparse:
        results["sparse"] = measured(lambda: scipys(work.jacobian, tr_solver="lsmr"))
    for other in results.values():
        difference = np.max(np.abs(other.x - results["jaxfit"].x))
        assert difference < AGREEMENT, difference
    return {way: result.numbers() for way, result in results.items()}


def played(name: str, n: int) -> dict:
    """`compared`, in a process of its own."""
    command = [sys.executable, "-m", "bench.size", name, str(n)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD},
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _row(n: int, results: dict) -> tuple:
    ours = results["jaxfit"]
    others = [results[way] for way in ("SciPy", "sparse") if way in results]
    return (
        n,
        f"{ours['first']:.2f}",
        _milliseconds(ours["warm"]),
        ours["evaluations"],
        f"{ours['megabytes']:.0f}",
        *(_milliseconds(other["warm"]) for other in others),
        f"{others[0]['warm'] / ours['warm']:.2g}",
    )


def report() -> str:
    """Both tables."""
    head = ("n", "first, s", "warm, ms", "evaluations", "MB", "SciPy trf, ms")
    tables = []
    for name, words in (("peaks", peaks.__doc__), ("chain", chain.__doc__)):
        more = ("its sparse way, ms",) if name == "chain" else ()
        rows = [_row(n, played(name, n)) for n in SIZES[name]]
        first_line = words.splitlines()[0] if words else ""
        tables.append(section(name, (*head, *more, "ratio"), rows, first_line))
    return "\n\n".join(["## Many parameters", *tables])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(compared(sys.argv[1], int(sys.argv[2]))))
    else:
        print(report())
