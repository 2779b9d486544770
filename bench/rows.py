"""Many rows: one fit of 1e7 and more in memory; `bench.stream` has those on a disk.

`python -m bench.rows` prints the report; `--largest 1e7` stops before the larger ones.
Every competitor has a process of its own, so that its memory can be told.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import jaxfit
from bench.report import ROOT, is_installed, section
from jaxfit._rows.table import split_rows
from jaxfit._rows.visit import default_size

TRUTH, START = np.array([2.5, 1.3, 0.5]), np.array([1.0, 1.0, 0.0])
ROWS = 10_000_000
REPEATS = 3
COMPETITORS = (
    *("jaxfit, Chunked()", "jaxfit, Whole()", "jaxfit, 2 devices"),
    *("SciPy lm", "SciPy trf", "optimistix LM", "NLSQ"),
)


def residual(x, data):
    """Decay with offset."""
    t, y = data
    return x[0] * jnp.exp(-x[1] * t) + x[2] - y


def decay(rows: int, begin: int = 0, end: int | None = None):
    """Times and noisy observations, or a part of them."""
    end = rows if end is None else end
    t = np.linspace(4 * begin / rows, 4 * end / rows, end - begin, endpoint=False)
    rng = np.random.default_rng(begin)
    y = TRUTH[0] * np.exp(-TRUTH[1] * t) + TRUTH[2] + 0.05 * rng.normal(size=len(t))
    return t, y


def jacobian(p, t, _):
    """The derivative for SciPy."""
    e = np.exp(-p[1] * t)
    return np.stack([e, -p[0] * t * e, np.ones_like(t)], axis=1)


def best(function: Callable, repeats: int = REPEATS) -> tuple[float, Any]:
    """The least time in seconds of some calls after a first one, and the result."""
    result = jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times), result


def megabytes(name: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith(name))


# Processes


def in_process(*arguments: str, module: str = "bench.rows") -> Any:
    """What another process of a module prints as JSON."""
    command = [sys.executable, "-m", module, *arguments]
    run = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=900
    )
    return json.loads(run.stdout.decode().splitlines()[-1])


def peer(name: str) -> dict:
    """One competitor: seconds, and memory beyond the data and what is imported."""
    scipys = name.startswith("SciPy")
    data = decay(ROWS)
    if not scipys and name != "NLSQ":
        data = jax.block_until_ready(jax.device_put(data))
    fit = competitor(name, data)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    base = megabytes("VmRSS")
    seconds, x = best(fit, 1 if scipys else REPEATS)
    return {
        "seconds": seconds,
        "memory": megabytes("VmHWM") - base,
        "x": np.asarray(x, float).tolist(),
    }


def competitor(name: str, data) -> Callable:
    """A function without arguments that returns parameters."""
    t, y = data
    if name.startswith("jaxfit"):
        rows = {
            "jaxfit, Chunked()": jaxfit.Chunked(),
            "jaxfit, Whole()": jaxfit.Whole(),
        }.get(name)
        if rows is None:
            rows, data, _ = sharded().place(jax.tree.map(np.asarray, data))
        return lambda: jaxfit.solve(residual, START, data, rows=rows).x
    if name == "optimistix LM":
        import optimistix

        solver = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)
        fit = jax.jit(
            lambda data: (
                optimistix.least_squares(
                    residual, solver, jnp.asarray(START), args=data
                ).value
            )
        )
        return lambda: fit(data)
    if name == "NLSQ":
        import nlsq

        def model(t, a, b, c):
            return a * jnp.exp(-b * t) + c

        fitter = nlsq.CurveFit()

        def by_nlsq():
            popt, _ = fitter.curve_fit(model, t, y, p0=START)
            return popt

        return by_nlsq
    method = name.removeprefix("SciPy ")

    def values(p, t, y):
        return p[0] * np.exp(-p[1] * t) + p[2] - y

    return lambda: (
        scipy.optimize.least_squares(
            values, START, jacobian, method=method, args=(t, y)
        ).x
    )


def sharded(size: int | None = None) -> jaxfit.Sharded:
    """Rows on the two devices that a process has been given."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    size = size or default_size(split_rows(decay(8), None), 3, float)
    return jaxfit.Sharded(mesh, "rows", size)


def peers() -> str:
    """Time and memory of all competitors."""
    skipped = [
        name
        for name, package in (("optimistix LM", "optimistix"), ("NLSQ", "nlsq"))
        if not is_installed(package)
    ]
    found = {
        name: in_process("peer", name) for name in COMPETITORS if name not in skipped
    }
    ours = found["jaxfit, Chunked()"]
    rows = []
    for name, one in found.items():
        error = np.max(np.abs(np.subtract(one["x"], ours["x"])))
        ratio = one["seconds"] / ours["seconds"]
        memory = f"{one['memory']:.0f}"
        rows.append(
            (name, f"{one['seconds']:.3f}", f"{ratio:.1f}", memory, f"{error:.0e}")
        )
    words = (
        f"{ROWS:.0e} rows, 3 parameters. SciPy has the analytic Jacobian. Memory: the "
        "peak beyond the data, compilation included. Targets: SciPy lm at least 5 "
        "times, NLSQ and optimistix 12 times as long; at most 150 MB."
    )
    if skipped:
        words += f" Skipped: {', '.join(skipped)}; not installed."
    head = "", "seconds", "ratio", "MB", "difference"
    return section("One fit", head, rows, words)


# A pass


def passes() -> dict:
    """Milliseconds of one pass for sizes of chunks, and of evaluating alone."""
    data = jax.block_until_ready(jax.device_put(decay(ROWS)))
    found = {}
    sizes = {2**11, 2**13, 2**15, 2**17, 2**19, sharded().size}
    for size in sorted(sizes):
        seconds, fit = best(
            lambda size=size: jaxfit.solve(
                residual, START, data, rows=jaxfit.Chunked(size)
            )
        )
        alone, _ = best(functools.partial(bare(size), data))
        found[size] = seconds / int(fit.nfev), alone
    return found


def bare(size: int) -> Callable:
    """Model and Jacobian over the same chunks, into a buffer, with nothing reduced."""

    @jax.jit
    def evaluate(data):
        rows = len(data[0])

        def chunk(i, _):
            first = jnp.minimum(i * size, rows - size)
            part = [jax.lax.dynamic_slice_in_dim(leaf, first, size) for leaf in data]
            push = jax.linearize(lambda x: residual(x, part), jnp.asarray(TRUTH))
            value, columns = push[0], jax.vmap(push[1])(jnp.eye(3))
            return jax.lax.optimization_barrier(jnp.concatenate([columns, value[None]]))

        start = jnp.zeros((4, size))
        return jax.lax.fori_loop(0, -(-rows // size), chunk, start)

    return evaluate


def pass_table() -> str:
    default = default_size(split_rows(decay(8), None), 3, float)
    rows = [
        (
            f"{int(size):,}" + (" (default)" if int(size) == default else ""),
            *(f"{1e3 * seconds:.1f}" for seconds in (one, alone)),
            f"{one / alone:.2f}",
        )
        for size, (one, alone) in in_process("passes").items()
    ]
    return section(
        "A pass over chunks",
        ("rows of a chunk", "ms", "evaluation alone", "ratio"),
        rows,
        f"{ROWS:.0e} rows. A pass is residuals, Jacobian and Gram matrix, and a share "
        "of what a trip does besides; the evaluation alone writes residuals and "
        "Jacobian to memory. Target: 1.25.",
    )


def devices() -> dict:
    """Seconds on one device and on two, for a chunk of one thread and the default."""
    data = decay(ROWS)
    here = jax.block_until_ready(jax.device_put(data))
    found = {}
    for size in (8192, sharded().size):
        rows, both, _ = sharded(size).place(data)
        one = best(
            lambda size=size: jaxfit.solve(
                residual, START, here, rows=jaxfit.Chunked(size)
            )
        )
        two = best(
            lambda both=both, rows=rows: jaxfit.solve(residual, START, both, rows=rows)
        )
        found[size] = one[0], two[0]
    return found


def device_table() -> str:
    rows = [
        (f"{int(size):,}", f"{one:.3f}", f"{two:.3f}", f"{one / two:.2f}")
        for size, (one, two) in in_process("devices").items()
    ]
    return section(
        "One device and two",
        ("rows of a chunk", "one", "two", "ratio"),
        rows,
        "Seconds of the same fit. Target: 1.7. XLA spreads the work of longer chunks "
        "over the threads of one device, which then has both cores to itself.",
    )


# Agreement


def agreement() -> dict:
    """The same fit in all ways, and in float32."""
    rows = 1_000_003
    data = decay(rows)
    whole = jaxfit.solve(residual, START, data)
    blocks = [
        tuple(leaf[i : i + 70_000] for leaf in data) for i in range(0, rows, 70_000)
    ]
    ways = {
        f"Chunked({size})": lambda size=size: jaxfit.solve(
            residual, START, data, rows=jaxfit.Chunked(size)
        )
        for size in (1000, 4096, 65536, 300_000, 999_999)
    }
    ways["Sharded, 2 devices"] = lambda: jaxfit.solve(
        residual, START, data, rows=sharded()
    )
    ways["solve_stream"] = lambda: jaxfit.solve_stream(residual, START, blocks)
    found = {}
    for name, way in ways.items():
        fit = way()
        covariance = np.asarray(fit.covariance()) / np.asarray(whole.covariance()) - 1
        found[name] = (
            float(np.max(np.abs(np.asarray(fit.x) / np.asarray(whole.x) - 1))),
            float(np.max(np.abs(covariance))),
            int(fit.steps) - int(whole.steps),
        )
    single = jaxfit.solve(
        residual,
        START.astype(np.float32),
        jax.tree.map(np.float32, data),
        rows=jaxfit.Chunked(),
    )
    error = np.abs(np.asarray(single.x, float) - whole.x) / whole.stderr()
    return {"ways": found, "float32": float(np.max(error))}


def agreement_table() -> str:
    found = in_process("agreement")
    rows = [
        (name, f"{x:.0e}", f"{covariance:.0e}", f"{steps:+d}" if steps else "0")
        for name, (x, covariance, steps) in found["ways"].items()
    ]
    return section(
        "The same answer",
        ("beside Whole()", "parameters", "covariance", "steps"),
        rows,
        "Relative differences at 1,000,003 rows. Targets: 1e-11, 1e-9, one step. In "
        f"float32 the parameters are {found['float32']:.0e} standard errors away "
        "(target: 1e-2).",
    )


# Size


def size(rows: str) -> dict:
    """Milliseconds of one pass over so many rows in memory."""
    data = jax.block_until_ready(jax.device_put(decay(int(float(rows)))))
    seconds, fit = best(
        lambda: jaxfit.solve(residual, START, data, rows=jaxfit.Chunked())
    )
    return {"pass": seconds / int(fit.nfev), "passes": int(fit.nfev)}


def size_table(largest: float) -> str:
    rows = []
    for number in (1e5, 1e6, 1e7, 1e8):
        if number <= largest:
            one = in_process("size", str(number))
            each = 1e9 * one["pass"] / number
            ms = f"{1e3 * one['pass']:.2f}"
            rows.append((f"{number:.0e}", one["passes"], ms, f"{each:.2f}"))
    head = "rows", "passes", "ms a pass", "ns a row"
    return section("Time and rows", head, rows, "In memory, `Chunked()`.")


# The report


def parts(largest: float) -> Iterator[str]:
    """The report, section by section."""
    yield "## Many rows"
    yield peers()
    yield pass_table()
    yield device_table()
    yield agreement_table()
    yield size_table(largest)


def report() -> str:
    """The report."""
    return "\n\n".join(parts(1e8))


TASKS = {
    "peer": peer,
    "passes": passes,
    "devices": devices,
    "agreement": agreement,
    "size": size,
}
TWO_DEVICES = "devices", "agreement", "jaxfit, 2 devices"


def run_tasks(name: str, words: str, tasks: dict[str, Callable], parts: Callable):
    """The command line of a module: its report, or one of its tasks as JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=words)
    parser.add_argument("--largest", type=float, default=1e8, help="rows")
    parser.add_argument("task", nargs="*", help="a part, as JSON")
    arguments = parser.parse_args()
    if any(word in TWO_DEVICES for word in arguments.task):
        jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_enable_x64", True)
    if arguments.task:
        task, *rest = arguments.task
        print(json.dumps(tasks[task](*rest)))
        return
    for part in parts(arguments.largest):
        print(part, end="\n\n", flush=True)


if __name__ == "__main__":
    run_tasks("bench.rows", __doc__, TASKS, parts)
