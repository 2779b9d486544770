"""NLSQ, iminuit, lsqfit and fides: `python -m bench.peers [--write] [--seed PYTHON]`.

They are the dependency group `bench-peers`. `--seed` names an interpreter that has the
old JAXFit, PyPI's `jaxfit` 0.0.5, which no present jax imports.
"""

import argparse
import functools
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from operator import itemgetter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

import jaxfit
from bench import accuracy, report, seed, single
from bench.accuracy import nist
from bench.report import is_installed

RESULTS = report.ROOT / "bench" / "PEERS.md"
SEED_ROUNDS = 2
SEED_WORDS = (
    "`curve_fit` on a line of 100 points and an exponential of 1000, in fresh "
    "processes without a cache on disk: the least of {rounds}. First: the first call, "
    "after the import, with all that is compiled and JAX's own start, by the clock and "
    "by the processor; then: the median of up to 30 more calls. The old package's own "
    "figures, as its change told them, were 468 ms (line) and 511 ms (exponential) "
    "before, 432 and 529 ms after, on another machine."
)


# NIST


def _residuals(problem: nist.Problem) -> tuple[Callable, Callable]:
    """Residuals and their exact Jacobian, compiled, in NumPy."""
    data = jax.tree.map(jnp.asarray, problem.data)
    residual = jax.jit(problem.residual)
    jacobian = jax.jit(jax.jacfwd(problem.residual))
    return (
        lambda b: np.asarray(residual(b, data)),
        lambda b: np.asarray(jacobian(b, data)),
    )


def _result(x, nfev, success) -> SimpleNamespace:
    return SimpleNamespace(x=np.asarray(x, float), nfev=nfev, success=bool(success))


def _nlsq(problem):
    import nlsq

    logging.disable()
    fitter = nlsq.CurveFit()

    def model(x, *b):
        return problem.model(b, x)

    def fit(start):
        try:
            result = fitter.curve_fit(model, problem.x, problem.y, p0=start)
        except (RuntimeError, ValueError):
            return _result(np.full(start.shape, np.nan), 0, False)
        return _result(result.popt, result.nfev, result.success)

    return fit


def _iminuit(problem, tolerance=0.1):
    from iminuit import Minuit

    values, jacobian = _residuals(problem)
    variance = problem.rss / (len(problem.y) - len(problem.certified))

    def fit(start):
        minuit = Minuit(
            lambda b: np.sum(values(b) ** 2) / variance,
            start,
            grad=lambda b: 2 * values(b) @ jacobian(b) / variance,
        )
        minuit.tol = tolerance
        minuit.migrad()
        return _result(minuit.values, minuit.nfcn, minuit.valid)

    return fit


def _lsqfit(problem):
    import gvar
    import lsqfit

    model = _numpy_models().get(problem.name)
    if model is None:
        workload = next(one for one in single.WORKLOADS if one.name == problem.name)
        of_numbers = workload.model(np)

        def model(b, x):
            return of_numbers(x, *b)

    y = gvar.gvar(problem.y, np.ones(len(problem.y)))

    def fit(start):
        try:
            result = lsqfit.nonlinear_fit(
                data=(problem.x, y), fcn=lambda x, b: model(b, x), p0=start
            )
        except (ValueError, ZeroDivisionError, np.linalg.LinAlgError):
            return _result(np.full(start.shape, np.nan), 0, False)
        success = result.error is None and result.stopping_criterion > 0
        return _result(result.pmean, result.nit, success)

    return fit


@functools.cache
def _numpy_models() -> dict[str, Callable]:
    """The models in NumPy, whose functions lsqfit's numbers speak."""
    spec = importlib.util.find_spec("nist")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.jnp = np
    return module.MODELS


def _fides(problem):
    from fides import Optimizer

    values, jacobian = _residuals(problem)

    def fit(start):
        limit = np.full(start.shape, np.inf)
        optimizer = Optimizer(
            lambda b: (values(b), jacobian(b)),
            ub=limit,
            lb=-limit,
            verbose=logging.CRITICAL,
            resfun=True,
        )
        try:
            _, x, _, _ = optimizer.minimize(start)
        except (RuntimeError, ValueError, np.linalg.LinAlgError):
            return _result(np.full(start.shape, np.nan), 0, False)
        return _result(x, optimizer.iteration, optimizer.converged)

    return fit


METHODS = (
    *accuracy.METHODS[:2],
    ("NLSQ", "nlsq", _nlsq),
    ("iminuit, migrad", "iminuit", _iminuit),
    ("lsqfit", "lsqfit", _lsqfit),
    ("fides", "fides", _fides),
)


# Single fits


def _problem(workload: single.Workload) -> nist.Problem:
    """One of `single`'s workloads in the form of NIST's problems."""
    model = workload.model(jnp)
    truth = np.array(workload.truth)
    return nist.Problem(
        name=workload.name,
        model=lambda b, x: model(x, *b),
        x=workload.x,
        y=workload.y,
        starts=np.array([workload.start]),
        certified=truth,
        stderr=truth,
        rss=0.05**2 * (len(workload.x) - len(truth)),
    )


def _host(name: str, package: str, build: Callable) -> single.Competitor:
    """A peer of NIST's table as a competitor of `single`'s."""

    def of_workload(workload):
        fit = build(_problem(workload))
        return lambda x0, data: fit(np.asarray(x0, float)).x

    return single.Competitor(name, package, of_workload, np.asarray, "host")


def _curve_fit(workload: single.Workload) -> Callable:
    model = workload.model(jnp)
    return lambda x0, data: jaxfit.curve_fit(model, *data, p0=x0)


def competitors() -> list[single.Competitor]:
    """Ours, SciPy, and the peers that are installed."""
    named = {one.name: one for one in single.COMPETITORS}
    front = single.Competitor(
        "jaxfit.curve_fit", "jaxfit", _curve_fit, itemgetter(0), "host"
    )
    kept = [named[name] for name in (single.OURS, single.SCIPY, "SciPy lm", "NLSQ")]
    tighter = functools.partial(_iminuit, tolerance=1e-4)  # answers are compared
    kept.append(_host("iminuit, migrad", "iminuit", tighter))
    kept += [_host(*method) for method in METHODS[4:]]
    return [one for one in (kept[0], front, *kept[1:]) if is_installed(one.package)]


def _times() -> Iterator[str]:
    yield (
        "## Single fits\n\nWarm, µs of one fit, least and median of "
        f"{single.REPEATS} interleaved repeats. All parameters agree to "
        f"{single.AGREEMENT:g}. iminuit, lsqfit and fides call compiled residuals and "
        "an exact Jacobian, lsqfit the model in NumPy; all three cross to Python and "
        "back at each evaluation."
    )
    for workload in single.WORKLOADS:
        seconds = single.time_in_turns(workload, competitors())
        unit = np.median(seconds[single.OURS])
        rows = [
            (
                name,
                *(f"{1e6 * value:.1f}" for value in (times.min(), np.median(times))),
                f"{np.median(times) / unit:.1f}",
            )
            for name, times in seconds.items()
        ]
        title = f"{workload.name}: {len(workload.x)} points"
        yield report.section(title, ("", "least", "median", "ratio of medians"), rows)


# The seed


def _seed(python: str | None) -> str:
    """First and warm calls in fresh processes, the old package's with them."""
    doors = [
        ("jaxfit.curve_fit", sys.executable, "jaxfit"),
        ("NLSQ, CurveFit().curve_fit", sys.executable, "nlsq.CurveFit"),
        ("NLSQ, curve_fit", sys.executable, "nlsq"),
        ("SciPy curve_fit", sys.executable, "scipy"),
    ]
    if python is not None:
        doors.insert(1, ("JAXFit 0.0.5, CurveFit()", python, "jaxfit.CurveFit"))
    measured: dict[tuple[str, str], list[dict]] = {}
    for _ in range(SEED_ROUNDS):
        for name, interpreter, package in doors:
            for workload in seed.LENGTHS:
                one = _in_process(interpreter, package, workload)
                measured.setdefault((name, workload), []).append(one)
    for workload in seed.LENGTHS:
        answers = {
            name: np.array(measured[name, workload][0]["x"]) for name, _, _ in doors
        }
        single.check_agreement(answers)
    rows = [
        (name, *_cells(measured, name)) for name in dict.fromkeys(d[0] for d in doors)
    ]
    head = (
        *("ms", "line, first", "of the processor", "then"),
        *("exponential, first", "of the processor", "then"),
    )
    words = SEED_WORDS.format(rounds=SEED_ROUNDS)
    for name, interpreter, _ in doors:
        if interpreter != sys.executable:
            under = measured[name, "line"][0]["under"]
            words += f" {name} ran under {under}; no present jax imports it."
    return f"## The seed's benchmark\n\n{words}\n\n" + report.markdown(head, rows)


def _in_process(interpreter: str, package: str, workload: str) -> dict:
    script = report.ROOT / "bench" / "seed.py"
    variables = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if interpreter != sys.executable:
        variables.pop("PYTHONPATH", None)
    command = [interpreter, str(script), package, workload]
    done = subprocess.run(
        command, env=variables, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _cells(measured: dict, name: str) -> Iterator[str]:
    for workload in seed.LENGTHS:
        ones = measured[name, workload]
        for key in ("first", "processor", "then"):
            least = 1e3 * min(one[key] for one in ones)
            yield f"{least:.0f}" if key != "then" else f"{least:.2f}"


# Report


def _digits() -> str:
    head = (
        *("", "runs", "≥ 4 digits", "≥ 6", "≥ 8", "median", "least"),
        *("evaluations", "success claimed at < 2 digits", "seconds, warm"),
    )
    rows = []
    for name, package, build in METHODS:
        if is_installed(package):
            runs = accuracy.runs(build)
            cells = list(accuracy.summary(runs))
            cells.insert(5, f"{min(run.digits for run in runs):.1f}")
            rows.append((name, *cells))
    return (
        "## NIST\n\nBoth starts of 27 problems. Digits: the least over the parameters "
        "of -log10 of the relative error, at most 11; 0 where there is no answer. All "
        "have exact Jacobians, and the tolerances that each has by default. iminuit is "
        "told the certified standard deviation, since its tolerance is absolute in "
        "chi-square. Evaluations are counted as each package does; lsqfit and fides "
        "count iterations.\n\n"
    ) + report.markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS}")
    parser.add_argument("--seed", metavar="PYTHON", help="has the old JAXFit")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    logging.disable()
    load = f"{os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
    parts = [
        report.header().replace("# Benchmarks", "# Peers", 1),
        f"All in one run, which shared the machine: its load was {load} at the start.",
    ]
    sections = (
        lambda: _seed(arguments.seed),
        lambda: "\n\n".join(_times()),
        _digits,
    )
    for section in sections:
        parts.append(section())
        print(parts[-1], end="\n\n", flush=True)
    if arguments.write:
        RESULTS.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
