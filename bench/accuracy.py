"""Correct digits on NIST's 27 certified problems, from both starts of each."""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxfit
from bench.report import ROOT, is_installed, markdown

sys.path.append(str(ROOT / "tests"))

import nist

OURS = "jaxfit"


class Run(NamedTuple):
    """One fit, and how good it is."""

    problem: nist.Problem
    start: int  # 1 or 2, as NIST counts
    result: Any  # has x, nfev and success
    digits: float
    seconds: float


def _jaxfit(problem):
    data = jax.tree.map(jnp.asarray, problem.data)
    fit = jax.jit(lambda start, data: jaxfit.solve(problem.residual, start, data))
    return lambda start: jax.block_until_ready(fit(jnp.asarray(start), data))


def _scipy(problem, **options):
    from scipy.optimize import least_squares

    data = jax.tree.map(jnp.asarray, problem.data)
    residual = jax.jit(problem.residual)
    jacobian = jax.jit(jax.jacfwd(problem.residual))

    def fit(start):
        return least_squares(
            lambda b: np.asarray(residual(b, data)),
            start,
            jac=lambda b: np.asarray(jacobian(b, data)),
            method="trf",
            max_nfev=5000,
            **options,
        )

    return fit


_tight = functools.partial(_scipy, ftol=1e-15, xtol=1e-15, gtol=1e-15)

# name, package, and a function of the problem that gives a function start -> result
METHODS: tuple[tuple[str, str, Callable], ...] = (
    (OURS, "jaxfit", _jaxfit),
    ("SciPy trf", "scipy", _scipy),
    ("SciPy trf, tolerances 1e-15", "scipy", _tight),
)


def runs(build: Callable) -> list[Run]:
    """All problems from both starts."""
    out = []
    for name in nist.MODELS:
        problem = nist.load(name)
        fit = build(problem)
        fit(problem.starts[0])  # compile
        for number, start in enumerate(problem.starts, 1):
            before = time.perf_counter()
            result = fit(start)
            seconds = time.perf_counter() - before
            digits = nist.digits(result.x, problem.certified)
            out.append(Run(problem, number, result, digits, seconds))
    return out


def report() -> str:
    """A line for each method."""
    head = (
        *("method", "runs", "≥ 4 digits", "≥ 6", "≥ 8", "median digits"),
        *("evaluations", "success claimed at < 2 digits", "seconds, warm"),
    )
    rows = [
        (name, *summary(runs(build)))
        for name, package, build in METHODS
        if is_installed(package)
    ]
    return (
        "## NIST\n\n"
        "Digits: the least over the parameters of -log10 of the relative error, at "
        "most 11. All have the exact Jacobian; SciPy may evaluate 5000 times.\n\n"
    ) + markdown(head, rows)


def summary(all_runs: list[Run]) -> tuple:
    """How good and how quick the runs of one method are."""
    digits = np.array([run.digits for run in all_runs])
    success = np.array([bool(run.result.success) for run in all_runs])
    return (
        len(digits),
        *(int(np.sum(digits >= least)) for least in (4, 6, 8)),
        f"{np.median(digits):.1f}",
        sum(int(run.result.nfev) for run in all_runs),
        int(np.sum(success & (digits < 2))),
        f"{sum(run.seconds for run in all_runs):.3f}",
    )


def problems() -> str:
    """A line for each problem and start, as jaxfit fits it."""
    stderr = jax.jit(lambda solution: solution.stderr())
    rows = []
    for run in runs(_jaxfit):
        of_stderr = nist.digits(stderr(run.result), run.problem.stderr)
        status = jaxfit.Status(int(run.result.status)).name
        digits = f"{run.digits:.1f}", f"{of_stderr:.1f}"
        row = run.problem.name, run.start, *digits, int(run.result.nfev), status
        rows.append(row)
    head = "problem", "start", "digits", "of standard errors", "evaluations", "status"
    return markdown(head, rows)
