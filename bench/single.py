"""Single fits: how long one takes when compiled, and how long it takes to compile.

`python -m bench.single WORKLOAD COMPETITOR` compiles one program and prints as JSON the
seconds for tracing and lowering, and for compiling. A cold figure needs a process in
which nothing like it was traced before.
"""

import functools
import json
import logging
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxfit
from bench.report import ROOT, is_installed, markdown

REPEATS = 25
COLD_REPEATS = 3
BATCH_SECONDS = 0.02  # the same fit is repeated for so long within one repeat
AGREEMENT = 1e-5


# Workloads


class Workload(NamedTuple):
    """A model, and data with noise."""

    name: str
    model: Callable  # of numpy or jax.numpy, gives a function (x, *parameters) -> y
    truth: tuple[float, ...]
    start: tuple[float, ...]
    x: np.ndarray

    @property
    def y(self) -> np.ndarray:
        noise = np.random.default_rng(0).normal(size=self.x.shape)
        return self.model(np)(self.x, *self.truth) + 0.05 * noise

    def residual(self) -> Callable:
        """A new function (parameters, (x, y)) -> residuals."""
        model = self.model(jnp)

        def residual(parameters, data):
            x, y = data
            return model(x, *parameters) - y

        return residual


def _exponential(xp):
    return lambda x, a, b, c: a * xp.exp(-b * x) + c


def _line(xp):
    return lambda x, a, b: a * x + b


WORKLOADS = (
    Workload(
        name="exponential",
        model=_exponential,
        truth=(2.5, 1.3, 0.5),
        start=(1.0, 1.0, 0.0),
        x=np.linspace(0, 4, 1000),
    ),
    Workload("line", _line, (2.0, -1.0), (1.0, 0.0), np.linspace(0, 10, 100)),
)


# Competitors


def _jaxfit(workload, **arguments):
    residual = workload.residual()
    return lambda x0, data: jaxfit.solve(residual, x0, data, **arguments)


def _optimistix(workload):
    import optimistix

    residual = workload.residual()
    solver = optimistix.LevenbergMarquardt(rtol=1e-10, atol=1e-10)

    def fit(x0, data):
        out = optimistix.least_squares(residual, solver, x0, data, throw=False)
        return out.value, out.result, out.stats

    return fit


def _jaxopt(workload):
    import jaxopt

    solver = jaxopt.LevenbergMarquardt(
        workload.residual(),
        maxiter=200,
        tol=1e-10,
        solver="cholesky",
        materialize_jac=True,
        implicit_diff=False,
    )
    return solver.run


def _scipy(workload, method):
    from scipy.optimize import curve_fit

    model = workload.model(np)
    return lambda x0, data: curve_fit(model, *data, p0=x0, method=method)


def _lmfit(workload):
    import lmfit

    model = lmfit.Model(workload.model(np))
    names = model.param_names

    def fit(x0, data):
        x, y = data
        result = model.fit(y, x=x, **dict(zip(names, x0, strict=True)))
        return [result.best_values[name] for name in names]

    return fit


def _nlsq(workload):
    import nlsq

    logging.getLogger("nlsq").propagate = False  # it reports every iteration
    model = workload.model(jnp)
    curve_fit = nlsq.CurveFit().curve_fit  # nlsq.curve_fit compiles on every call
    return lambda x0, data: tuple(curve_fit(model, *data, p0=x0))


class Competitor(NamedTuple):
    """One way to fit."""

    name: str
    package: str
    build: Callable[[Workload], Callable]  # gives a function (x0, data) -> result
    parameters: Callable[[Any], Any]  # of a result
    mode: str  # "jit", "eager": called with JAX arrays; "host": with NumPy arrays


_bounded = functools.partial(_jaxfit, bounds=(-10.0, 10.0))
_trf = functools.partial(_scipy, method="trf")
_lm = functools.partial(_scipy, method="lm")

OURS, OPTIMISTIX, SCIPY = "jit(jaxfit.solve)", "jit(optimistix LM)", "SciPy trf"

COMPETITORS = (
    Competitor(OURS, "jaxfit", _jaxfit, attrgetter("x"), "jit"),
    Competitor(f"{OURS}, bounds", "jaxfit", _bounded, attrgetter("x"), "jit"),
    Competitor("jaxfit.solve", "jaxfit", _jaxfit, attrgetter("x"), "eager"),
    Competitor("jaxfit.solve, bounds", "jaxfit", _bounded, attrgetter("x"), "eager"),
    Competitor(OPTIMISTIX, "optimistix", _optimistix, itemgetter(0), "jit"),
    Competitor("jit(jaxopt LM)", "jaxopt", _jaxopt, attrgetter("params"), "jit"),
    Competitor(SCIPY, "scipy", _trf, itemgetter(0), "host"),
    Competitor("SciPy lm", "scipy", _lm, itemgetter(0), "host"),
    Competitor("lmfit", "lmfit", _lmfit, np.asarray, "host"),
    Competitor("NLSQ", "nlsq", _nlsq, itemgetter(0), "host"),
)


def prepare(competitor: Competitor, workload: Workload) -> tuple[Callable, tuple]:
    """A new function to fit with, and the arguments (x0, data) to call it with."""
    fit = competitor.build(workload)
    if competitor.mode == "jit":
        fit = jax.jit(fit)
    asarray = np.asarray if competitor.mode == "host" else jnp.asarray
    data = asarray(workload.x), asarray(workload.y)
    return fit, (asarray(workload.start), data)


# Timings


def check_agreement(answers: dict[str, np.ndarray]) -> None:
    """Refuse to time competitors whose parameters are not those of the others."""
    middle = np.nanmedian(list(answers.values()), axis=0)
    for name, answer in answers.items():
        error = np.max(np.abs(answer / middle - 1))
        if not error <= AGREEMENT:
            raise RuntimeError(f"{name} found {answer}; the median is {middle}.")


def time_in_turns(workload: Workload, competitors) -> dict[str, np.ndarray]:
    """Seconds for one fit in each repeat; the competitors take turns."""
    timers, answers = {}, {}
    for competitor in competitors:
        fit, arguments = prepare(competitor, workload)
        if competitor.mode == "host":
            call = functools.partial(fit, *arguments)
        else:
            call = functools.partial(_finished, fit, *arguments)
        answers[competitor.name] = np.asarray(competitor.parameters(call()))
        timers[competitor.name] = timeit.Timer(call)
    check_agreement(answers)
    numbers = {
        name: max(1, round(BATCH_SECONDS / min(timer.repeat(3, 1))))
        for name, timer in timers.items()
    }
    rounds = [
        [timer.timeit(numbers[name]) / numbers[name] for name, timer in timers.items()]
        for _ in range(REPEATS)
    ]
    return dict(zip(timers, np.transpose(rounds), strict=True))


def _finished(fit, x0, data):
    return jax.block_until_ready(fit(x0, data))


def cold(workload: Workload, competitors) -> dict[str, np.ndarray]:
    """Median seconds for (tracing and lowering, compiling), in processes of their own.

    The competitors take turns. The third number is that of the instructions in the
    compiled program.
    """
    names = [c.name for c in competitors if c.mode == "jit"]
    seconds: dict[str, list] = {name: [] for name in names}
    for _ in range(COLD_REPEATS):
        for name in names:
            command = [sys.executable, "-m", "bench.single", workload.name, name]
            run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
            seconds[name].append(json.loads(run.stdout))
    return {name: np.median(values, axis=0) for name, values in seconds.items()}


def _compile(workload_name: str, competitor_name: str) -> tuple[float, float, int]:
    jax.config.update("jax_enable_compilation_cache", False)
    workload = next(w for w in WORKLOADS if w.name == workload_name)
    competitor = next(c for c in COMPETITORS if c.name == competitor_name)
    fit, arguments = prepare(competitor, workload)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(jnp.zeros(3)))
    start = time.perf_counter()
    lowered = fit.trace(*arguments).lower()
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    return middle - start, end - middle, compiled.as_text().count(" = ")


# Report


def report() -> str:
    """Times of single fits, and their ratios beside the targets."""
    competitors = [c for c in COMPETITORS if is_installed(c.package)]
    skipped = [c for c in COMPETITORS if not is_installed(c.package)]
    parts = [
        "## Single fits\n\n"
        f"Warm: µs for one fit, minimum and median of {REPEATS} interleaved repeats. "
        "Cold: ms to trace and lower, and to compile, each program in a process of its "
        f"own, medians of {COLD_REPEATS}, and instructions of the compiled program. "
        f"All parameters agree to {AGREEMENT:g}."
    ]
    parts += [f"Skipped: {c.name}; {c.package} is not installed." for c in skipped]
    ratios = []
    for workload in WORKLOADS:
        hot, frozen = time_in_turns(workload, competitors), cold(workload, competitors)
        size = f"{len(workload.x)} points, {len(workload.start)} parameters"
        parts += [f"### {workload.name}: {size}", _times(hot, frozen)]
        ratios += _ratios(workload.name, hot, frozen)
    head = "ratio", "workload", "measured", "target"
    parts += ["### Ratios of medians", markdown(head, ratios)]
    return "\n\n".join(parts)


def _times(hot, frozen) -> str:
    head = (
        *("competitor", "warm min", "median"),
        *("trace + lower", "compile", "sum", "instructions"),
    )
    rows = []
    for name, seconds in hot.items():
        row = [f"{1e6 * s:.1f}" for s in (seconds.min(), np.median(seconds))]
        if name in frozen:
            trace, compilation, instructions = frozen[name]
            times = trace, compilation, trace + compilation
            row += [f"{1e3 * s:.0f}" for s in times] + [f"{instructions:.0f}"]
        else:
            row += ["", "", "", ""]
        rows.append([name, *row])
    return markdown(head, rows)


def _ratios(workload: str, hot, frozen) -> list:
    rows = []
    targets = {OPTIMISTIX: {"exponential": 4, "line": 2}[workload], SCIPY: 12}
    for peer, target in targets.items():
        if peer in hot:
            ratio = np.median(hot[peer]) / np.median(hot[OURS])
            row = f"warm, {peer} / {OURS}", workload, f"{ratio:.2f}", f"≥ {target}"
            rows.append(row)
    if OPTIMISTIX in frozen:
        ratio = np.sum(frozen[OURS][:2]) / np.sum(frozen[OPTIMISTIX][:2])
        row = f"cold, {OURS} / {OPTIMISTIX}", workload, f"{ratio:.2f}", "≤ 0.8"
        rows.append(row)
    return rows


if __name__ == "__main__":
    print(json.dumps(_compile(*sys.argv[1:])))
