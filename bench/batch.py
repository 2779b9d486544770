"""Many fits: `solve_batch` on one device and on two, beside loops and vmapped solvers.

`python -m bench.batch` prints the report; `--largest 1e5` leaves out larger batches.
It runs in a process of its own, in which JAX has one CPU device for each of two cores.
"""

import argparse
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxfit
from bench.report import ROOT, is_installed, markdown, section
from bench.workloads import G5, MIXED, PSF, T2, Workload, problems, residual
from jaxfit import Options
from jaxfit._lanes import default_lanes

DEVICES = 2
REPEATS = 5
PEER_FITS = 10_000  # of vmapped peers
LOOP_FITS = 500  # of SciPy's loop
LANES = 256  # of one batched evaluation
AGREEMENT = 1e-2  # standard errors


# Competitors: each a function (x0, y) -> parameters, and its number of fits


def keep(fit):
    """What the batch keeps of every fit."""
    return fit.x, fit.stderr(), fit.status, fit.nfev, fit.trips


def ours(workload: Workload, keep=keep, **arguments) -> Callable:
    arguments = {"bounds": workload.bounds, "keep": keep, **arguments}
    return jax.jit(
        functools.partial(jaxfit.solve_batch, residual(workload), **arguments)
    )


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


def mesh():
    return jax.make_mesh((DEVICES,), ("fits",), axis_types=(AxisType.Auto,))


def placed(arrays, spread: bool):
    """Arrays on one device, or spread over all."""
    if not spread:
        return jax.device_put(arrays, jax.devices()[0])
    return jax.device_put(arrays, NamedSharding(mesh(), PartitionSpec("fits")))


def evaluation(workload: Workload, spread: bool) -> float:
    """Seconds for residuals, Jacobian and Gram matrix of one fit, many at a time."""
    trips = 50
    fn = residual(workload)
    x0, y = problems(workload, LANES * (DEVICES if spread else 1))

    def one(x, y):
        r, push = jax.linearize(lambda x: fn(x, y), x)
        columns = jax.vmap(push)(jnp.eye(len(x)))
        return [*columns, r]

    def gram(x, y):
        rows = jax.vmap(one)(x, y)
        sums = [
            jnp.sum(a * b, axis=-1) for i, a in enumerate(rows) for b in rows[: i + 1]
        ]
        change = sum(sums)  # so that every entry is used
        return x * (1 + 1e-12 * change / (1 + jnp.abs(change)))[:, None]

    def many(x, y):
        return jax.lax.fori_loop(0, trips, lambda _, x: gram(x, y), x)

    if spread:
        spec = PartitionSpec("fits")
        many = jax.shard_map(
            many, mesh=mesh(), in_specs=spec, out_specs=spec, check_vma=False
        )
    arguments = placed((x0, y), spread)
    run = jax.jit(many)
    return seconds(lambda: run(*arguments), 20) / trips / len(x0)


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
    two, one = (ours(workload, **where) for where in ({"mesh": mesh()}, {}))
    timings = {
        "solve_batch, 2 devices": timed(two, *placed((x0, y), True)),
        "solve_batch, 1 device": timed(one, *placed((x0, y), False)),
        "jit(vmap(solve))": timed(under_vmap(workload), x0, y, 2),
    }
    if is_installed("optimistix"):
        timings["optimistix LM, vmap"] = timed(optimistix_lm(workload), x0, y, 2)
    if is_installed("jaxopt"):
        timings["jaxopt LM, vmap"] = timed(jaxopt_lm(workload), x0, y, 1)
    for method in "lm", "trf":
        fit = scipy_loop(workload, method)
        some = x0[:LOOP_FITS], y[:LOOP_FITS]
        timings[f"SciPy {method}, loop"] = timed(fit, *some, repeats=1)
    best = timings["solve_batch, 2 devices"]
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


def multiples(workload: Workload) -> list[tuple]:
    """Time per fit in units of its evaluations, on one device and on two."""
    rows = []
    x0, y = problems(workload, 20_000)
    for spread, where in ((False, {}), (True, {"mesh": mesh()})):
        each, (_, _, _, nfev, trips) = timed(
            ours(workload, **where), *placed((x0, y), spread)
        )
        bare = evaluation(workload, spread)
        rows.append(
            (
                f"{workload.name}, {DEVICES if spread else 1} device(s)",
                f"{1e6 * bare:.3f}",
                f"{nfev.mean():.2f}",
                f"{1e6 * each:.2f}",
                f"{each / bare / nfev.mean():.2f}",
                f"{nfev.sum() / trips.sum():.3f}",
            )
        )
    return rows


def sizes(workload: Workload, largest: float) -> list[tuple]:
    """Time per fit and lane efficiency for batches of 1e4 to 1e6."""
    rows = []
    for number in (10_000, 100_000, 1_000_000):
        if number > largest:
            break
        arguments = placed(problems(workload, number), True)
        each, found = timed(ours(workload, mesh=mesh()), *arguments, repeats=2)
        status, nfev, trips = found[2:]
        rows.append(
            (
                *(workload.name, f"{number:,}", f"{1e6 * each:.2f}"),
                f"{nfev.sum() / trips.sum():.3f}",
                *(f"{np.percentile(nfev, 99):.0f}", f"{np.mean(status > 0):.3%}"),
            )
        )
    return rows


def lane_numbers(workload: Workload) -> tuple:
    """Time per fit with the default number of lanes and with its neighbours."""
    x0, y = placed(problems(workload, 20_000), False)
    default = default_lanes(y.shape[1], x0.shape[1], x0.dtype)
    numbers = [default // 4, default // 2, default, 2 * default, 4 * default]
    times = [timed(ours(workload, lanes=n), x0, y).each for n in numbers]
    return workload.name, default, *(f"{1e6 * t:.2f}" for t in times)


def gpufit_rates() -> list[tuple]:
    """G5 with Gpufit's tolerance: fits in a second, scaled by the evaluation."""
    rows = []
    x0, y = placed(problems(G5, 100_000), True)
    options = Options(ftol=1e-4, xtol=1e-4)
    settings = (
        ("bounds, covariance", {}, 250_000),
        ("neither", {"bounds": None, "keep": lambda fit: (fit.x, fit.status)}, 350_000),
    )
    bare = evaluation(G5, True)
    for name, arguments, target in settings:
        fit = ours(G5, mesh=mesh(), options=options, **arguments)
        each, _ = timed(fit, x0, y)
        scaled = target * 0.8e-6 / bare
        rows.append((f"G5, 1e-4, {name}", f"{1 / each:,.0f}", f"{scaled:,.0f}"))
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
        ("G5, n = 5", residual(G5), G5.bounds, np.zeros((1000, 5)), 25, 2.5),
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


TARGETS = {"PSF": 25, "T2": 40, "G5": 40}  # times vmapped optimistix


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
            ratio = each["optimistix LM, vmap"] / each["solve_batch, 2 devices"]
            target = TARGETS[workload.name]
            ratios.append((workload.name, f"{ratio:.1f}", f"≥ {target}"))
    yield section(
        "Vmapped optimistix / solve_batch", ("", "measured", "target"), ratios
    )
    yield section(
        "In units of an evaluation",
        (
            "",
            "µs per evaluation",
            "evaluations",
            "µs per fit",
            "multiple",
            "efficiency",
        ),
        [row for workload in (PSF, T2, G5) for row in multiples(workload)],
        "One evaluation is residuals, Jacobian and Gram matrix, "
        f"{LANES} fits at a time. Targets: PSF at most 1.5, T2 and G5 2.2.",
    )
    yield section(
        "Batches of all sizes, 2 devices",
        ("", "fits", "µs per fit", "lane efficiency", "nfev, 99 %", "success"),
        [row for workload in (PSF, T2, G5, MIXED) for row in sizes(workload, largest)],
        "Target: efficiency of at least 0.85 at 100,000 mixed fits.",
    )
    yield section(
        "Lanes, 1 device",
        ("", "default lanes", "µs: a quarter", "half", "default", "twice", "4 times"),
        map(lane_numbers, (PSF, T2, G5)),
    )
    yield section(
        "Gpufit's tolerance",
        ("", "fits per second", "target, scaled"),
        gpufit_rates(),
        "The target is scaled by the cost of an evaluation.",
    )
    head = "", "trace + lower", "compile", "target"
    yield section("Seconds to compile", head, compile_times())


def report() -> str:
    """The report, from a process with one device for each core."""
    command = [sys.executable, "-m", "bench.batch"]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return run.stdout.decode().strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.batch", description=__doc__)
    parser.add_argument("--largest", type=float, default=1e6, help="fits in a batch")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    for part in parts(arguments.largest):
        print(part, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
