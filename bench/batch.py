"""Many fits: `solve_batch`, eager and in `jit`, beside loops and vmapped solvers.

`python -m bench.batch` prints the report; `--largest 1e5` leaves out larger batches.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import jaxfit
from bench.report import is_installed, markdown, section
from bench.workloads import G5, MIXED, PSF, T2, Workload, problems, residual
from jaxfit import Options
from jaxfit._core.fit import Request, set_up
from jaxfit._programs.one_function import one_function
from jaxfit._rows.linearization import Frame

REPEATS = 25
PEER_FITS = 10_000  # of vmapped peers
LOOP_FITS = 500  # of SciPy's loop
EVALUATED = 2_000  # fits whose residuals are evaluated
AGREEMENT = 1e-2  # standard errors


# Competitors: each a function (x0, y) -> parameters, and its number of fits


def keep(fit):
    """What the batch keeps of every fit."""
    return fit.x, fit.stderr(), fit.status, fit.nfev


def eager(workload: Workload, keep=keep, **arguments) -> Callable:
    """On all cores."""
    arguments = {"bounds": workload.bounds, "keep": keep, **arguments}
    return functools.partial(jaxfit.solve_batch, residual(workload), **arguments)


def ours(workload: Workload, **arguments) -> Callable:
    """On one device."""
    return jax.jit(eager(workload, **arguments))


def under_vmap(workload: Workload) -> Callable:
    fn = residual(workload)

    def fit(x0, y):
        solution = jaxfit.solve(fn, x0, y, bounds=workload.bounds)
        return solution.x, solution.stderr()

    return jax.jit(jax.vmap(fit))


def optimistix_lm(workload: Workload) -> Callable:
    import optimistix

    fn, solver = residual(workload), optimistix.LevenbergMarquardt(1e-8, 1e-8)

    def fit(x0, y):
        return (optimistix.least_squares(fn, solver, x0, y, throw=False).value,)

    return jax.jit(jax.vmap(fit))


def jaxopt_lm(workload: Workload) -> Callable:
    import jaxopt

    solver = jaxopt.LevenbergMarquardt(
        residual(workload),
        maxiter=100,
        tol=1e-8,
        solver="cholesky",
        materialize_jac=True,
        implicit_diff=False,
    )
    return jax.jit(jax.vmap(lambda x0, y: (solver.run(x0, y).params,)))


def scipy_loop(workload: Workload, method: str) -> Callable:
    """One after the other, with the analytic Jacobian."""
    bounds = workload.bounds if method == "trf" else (-np.inf, np.inf)

    def fit(x0, y):
        found = [
            scipy.optimize.least_squares(
                lambda p, y: workload.model(np, p) - y,
                start,
                lambda p, y: workload.jacobian(p),
                bounds,
                method,
                args=(observed,),
            ).x
            for start, observed in zip(x0, y, strict=True)
        ]
        return (np.array(found),)

    return fit


# Measuring


def seconds(call: Callable, repeats: int = REPEATS) -> float:
    """The least time of some calls; the first one is not counted."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return min(times)


def plainly(fn: Callable, x, y):
    """Residuals, Jacobian and Gram matrix as one would write them, and their sum."""
    residual, push = jax.linearize(lambda x: fn(x, y), x)
    rows = [*jax.vmap(push)(jnp.eye(len(x))), residual]
    products = [a * b for i, a in enumerate(rows) for b in rows[: i + 1]]
    sums = jax.lax.reduce(
        tuple(products),
        tuple(jnp.zeros(len(products))),
        lambda a, b: jax.tree.map(jnp.add, a, b),
        dimensions=(0,),
    )
    return sum(sums)


def as_the_solver(fn: Callable, x, y):
    """The same as a fit does it."""
    setup = set_up(Request(fn, None, x, y, None, None, None, Options()))
    frame = Frame(jnp.eye(len(x)), jnp.eye(len(x)))
    return jnp.sum(setup.rows.linearize(x, frame).normal)


def evaluation(workload: Workload, of_one: Callable) -> float:
    """Seconds for an evaluation, in a loop over fits like that of `solve_batch`."""
    trips, fn = 50, residual(workload)
    x0, y = map(jnp.asarray, problems(workload, EVALUATED))

    def moved(x, y):
        change = of_one(fn, x, y)  # so that every entry is used
        return x * (1 + 1e-12 * change / (1 + jnp.abs(change)))

    def often(arrays):
        x, y = arrays
        return jax.lax.fori_loop(0, trips, lambda _, x: moved(x, y), x)

    run = jax.jit(
        lambda x0, y: jax.lax.map(lambda own: one_function(often, own), (x0, y))
    )
    return seconds(lambda: run(x0, y), 10) / trips / len(x0)


class Timing(NamedTuple):
    """Seconds for one fit, and what came out."""

    each: float
    found: tuple


def timed(fit: Callable, x0, y, repeats: int = REPEATS) -> Timing:
    found = jax.tree.map(np.asarray, fit(x0, y))
    return Timing(seconds(lambda: fit(x0, y), repeats) / len(x0), found)


# Reports


def check(name: str, found: tuple, ours: tuple, allowed: float) -> float:
    """The part of a competitor's answers that are ours; raises if too few are."""
    x, stderr = ours[0][: len(found[0])], ours[1][: len(found[0])]
    same = np.max(np.abs(found[0] - x) / stderr, axis=1) < AGREEMENT
    if not np.mean(same) >= allowed:
        raise RuntimeError(f"{name}: only {np.mean(same):.1%} of the answers are ours.")
    return float(np.mean(same))


def peers(workload: Workload, allowed: float = 0.99) -> tuple[str, dict]:
    """A table of all competitors, and seconds for one fit."""
    x0, y = problems(workload, PEER_FITS)
    timings = {
        "solve_batch, all cores": timed(eager(workload), x0, y),
        "solve_batch in jit": timed(ours(workload), x0, y),
        "jit(vmap(solve))": timed(under_vmap(workload), x0, y),
    }
    if is_installed("optimistix"):
        timings["optimistix LM, vmap"] = timed(optimistix_lm(workload), x0, y, 4)
    if is_installed("jaxopt"):
        timings["jaxopt LM, vmap"] = timed(jaxopt_lm(workload), x0, y, 1)
    for method in "lm", "trf":
        fit = scipy_loop(workload, method)
        some = x0[:LOOP_FITS], y[:LOOP_FITS]
        timings[f"SciPy {method}, loop"] = timed(fit, *some, repeats=1)
    best = timings["solve_batch, all cores"]
    rows = [
        (
            name,
            f"{1e6 * timing.each:.2f}",
            f"{timing.each / best.each:.1f}",
            f"{check(name, timing.found, best.found, allowed):.2%}",
        )
        for name, timing in timings.items()
    ]
    text = markdown(("competitor", "µs per fit", "ratio", "same answers"), rows)
    return text, {name: timing.each for name, timing in timings.items()}


def multiples(workload: Workload) -> tuple:
    """Time per fit in units of its evaluations, on one device."""
    x0, y = map(jnp.asarray, problems(workload, 20_000))
    each, (_, _, _, nfev) = timed(ours(workload), x0, y)
    own, plain = (evaluation(workload, how) for how in (as_the_solver, plainly))
    trip = each / nfev.mean()
    return (
        *(workload.name, f"{nfev.mean():.2f}", f"{1e6 * each:.2f}"),
        *(f"{1e6 * own:.3f}", f"{trip / own:.2f}"),
        *(f"{1e6 * plain:.3f}", f"{trip / plain:.2f}"),
    )


def sizes(workload: Workload, largest: float) -> list[tuple]:
    """Time per fit, all cores, for batches of 1e4 to 1e6."""
    rows = []
    for number in (10_000, 100_000, 1_000_000):
        if number > largest:
            break
        x0, y = problems(workload, number)
        each, (_, _, status, nfev) = timed(eager(workload), x0, y, repeats=2)
        rows.append(
            (
                *(workload.name, f"{number:,}", f"{1e6 * each:.2f}"),
                *(f"{np.percentile(nfev, 99):.0f}", f"{np.mean(status > 0):.3%}"),
            )
        )
    return rows


def gpufit_rates() -> list[tuple]:
    """G5 with Gpufit's tolerance: fits in a second, on all cores."""
    rows = []
    x0, y = problems(G5, 100_000)
    options = Options(ftol=1e-4, xtol=1e-4)
    settings = (
        ("bounds, covariance", {}),
        ("neither", {"bounds": None, "keep": lambda fit: (fit.x, fit.status)}),
    )
    for name, arguments in settings:
        each, _ = timed(eager(G5, options=options, **arguments), x0, y)
        rows.append((f"G5, 1e-4, {name}", f"{1 / each:,.0f}"))
    return rows


def _peaks(number: int) -> Callable:
    """Lorentzians on a line: three parameters each."""
    x = np.linspace(0, 10, 60)

    def fn(p, y):
        height, centre, width = p.reshape(3, number)[..., None]
        return jnp.sum(height / (1 + ((x - centre) / width) ** 2), axis=0) - y

    return fn


def compile_times() -> list[tuple]:
    """Seconds to trace and lower, and to compile, one device."""
    rows = []
    cases = [
        ("G5, n = 5", residual(G5), G5.bounds, np.zeros((1000, 5)), 25, 1.5),
        ("4 peaks, n = 12", _peaks(4), (-99.0, 99.0), np.ones((1000, 12)), 60, 5.0),
    ]
    for name, fn, bounds, x0, m, target in cases:
        fit = jax.jit(
            functools.partial(jaxfit.solve_batch, fn, bounds=bounds, keep=keep)
        )
        began = time.perf_counter()
        lowered = fit.trace(x0, np.zeros((1000, m))).lower()
        middle = time.perf_counter()
        lowered.compile()
        ended = time.perf_counter()
        rows.append((name, f"{middle - began:.2f}", f"{ended - middle:.2f}", target))
    return rows


TARGETS = {"PSF": 16, "T2": 17, "G5": 9, "T2, mixed": 16}  # times, in jit


def parts(largest: float) -> Iterator[str]:
    """The report, section by section."""
    yield (
        "## Many fits\n\n"
        "`solve_batch` at default tolerances, bounds on, standard errors kept, beside "
        f"solvers under `vmap` ({PEER_FITS:,} fits) and SciPy's loop ({LOOP_FITS} "
        "fits, analytic Jacobian; `lm` without bounds). PSF: a Gaussian spot on 15 x "
        "15 pixels; T2: a decay with offset, 32 points; G5: a spot on 5 x 5 pixels; "
        "mixed: a tenth of the starts far away. The same answer: within "
        f"{AGREEMENT:g} standard errors of `solve_batch`."
    )
    ratios = []
    for workload in (PSF, T2, G5, MIXED):
        table, each = peers(workload, 0.9 if workload.far else 0.99)
        yield f"### {workload.name}\n\n{table}"
        if workload.name in TARGETS and "optimistix LM, vmap" in each:
            times = each["optimistix LM, vmap"]
            in_jit = times / each["solve_batch in jit"]
            spread = times / each["solve_batch, all cores"]
            target = TARGETS[workload.name]
            ratios.append(
                (workload.name, f"{in_jit:.1f}", f"≥ {target}", f"{spread:.1f}")
            )
    yield section(
        "Vmapped optimistix / solve_batch",
        ("", "in jit, one device", "target", "all cores"),
        ratios,
    )
    yield section(
        "In units of an evaluation",
        (
            *("", "evaluations", "µs per fit", "µs per evaluation", "multiple"),
            *("plain evaluation", "multiple"),
        ),
        map(multiples, (PSF, T2, G5)),
        "One device. An evaluation is residuals, Jacobian and Gram matrix, in a loop "
        "like that of the batch: as a fit does it, and as one would write it. "
        "Targets: PSF at most 1.3, T2 1.8, G5 2.2.",
    )
    yield section(
        "Batches of all sizes, all cores",
        ("", "fits", "µs per fit", "nfev, 99 %", "success"),
        [row for workload in (PSF, T2, G5, MIXED) for row in sizes(workload, largest)],
    )
    yield section(
        "Gpufit's tolerance, all cores", ("", "fits per second"), gpufit_rates()
    )
    head = "", "trace + lower", "compile", "target"
    yield section("Seconds to compile", head, compile_times())


def report() -> str:
    """The report, in one piece."""
    return "\n\n".join(parts(1e6))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.batch", description=__doc__)
    parser.add_argument("--largest", type=float, default=1e6, help="fits in a batch")
    arguments = parser.parse_args()
    for part in parts(arguments.largest):
        print(part, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
