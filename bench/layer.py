"""Derivatives: what the gradient of a fit costs beside the fit.

`python -m bench.layer` prints the report.
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxfit
from bench.report import is_installed, section
from bench.single import WORKLOADS
from bench.workloads import G5, PSF, T2, problems
from jaxfit import Options

FITS = 10_000
REPEATS = 2000
BATCH_REPEATS = 5


def interleaved(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """The median time of each call in seconds, taken in turn."""
    for call in calls.values():
        jax.block_until_ready(call())
    times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(each)) for name, each in times.items()}


def single() -> str:
    """The exponential of 1000 points: a number of its solution, and its gradient."""
    workload = WORKLOADS[0]
    residual, x0 = workload.residual(), jnp.asarray(workload.start)
    x, y = jnp.asarray(workload.x), jnp.asarray(workload.y)

    def ours(y, derivative="exact"):
        options = Options(derivative=derivative)
        return jnp.sum(jaxfit.solve(residual, x0, (x, y), options=options).x)

    def errors(y):
        return jnp.sum(jaxfit.solve(residual, x0, (x, y)).stderr())

    fits = {
        "jaxfit": ours,
        "jaxfit, Gauss-Newton": functools.partial(ours, derivative="gauss-newton"),
        "jaxfit, standard errors": errors,
    }
    if is_installed("optimistix"):
        import optimistix

        solver = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)

        def theirs(y):
            found = optimistix.least_squares(residual, solver, x0, args=(x, y))
            return jnp.sum(found.value)

        fits["optimistix LM, implicit"] = theirs
    calls = {}
    for name, fit in fits.items():
        alone, both = jax.jit(fit), jax.jit(jax.value_and_grad(fit))
        calls[name] = functools.partial(alone, y)
        calls[name, "gradient"] = functools.partial(both, y)
    found = interleaved(calls, REPEATS)
    rows = [
        (
            name,
            f"{1e6 * found[name]:.0f}",
            f"{1e6 * found[name, 'gradient']:.0f}",
            f"{found[name, 'gradient'] / found[name]:.2f}",
        )
        for name in fits
    ]
    return section(
        "One fit",
        ("", "µs, value", "value and gradient", "ratio"),
        rows,
        "1000 points, 3 parameters; the gradient is by the data. Target: 2.5.",
    )


def batches() -> str:
    """A batch inside a loss: time with and without the gradient."""
    rows = []
    for workload in (PSF, T2, G5):
        x0, y = map(jnp.asarray, problems(workload, FITS))

        def loss(gain, y, x0=x0, workload=workload):
            def residual(x, y):
                return gain * workload.model(jnp, x) - y

            fits = jaxfit.solve_batch(residual, x0, y, bounds=workload.bounds)
            return jnp.mean(fits.x**2)

        calls = {
            name: functools.partial(jax.jit(function), jnp.asarray(1.0), y)
            for name, function in (
                ("value", loss),
                ("by a shared number", jax.value_and_grad(loss)),
                ("by all data", jax.value_and_grad(loss, argnums=1)),
            )
        }
        found = interleaved(calls, BATCH_REPEATS)
        rows.append(
            (
                workload.name,
                *(f"{1e3 * seconds:.0f}" for seconds in found.values()),
                f"{max(found.values()) / found['value']:.2f}",
            )
        )
    return section(
        "A batch inside a loss",
        ("", "ms, value", "gradient by a shared number", "by all data", "ratio"),
        rows,
        f"{FITS:,} fits, bounds on, one device. Target: 1.5.",
    )


def memory() -> str:
    """Bytes that the compiled gradient takes beside its arguments and results."""
    workload = WORKLOADS[0]
    residual, x0 = workload.residual(), jnp.asarray(workload.start)
    sizes = set()
    for most in (10, 1000):
        gradient = jax.jit(
            jax.grad(
                lambda y, most=most: jnp.sum(
                    jaxfit.solve(
                        *(residual, x0, (jnp.asarray(workload.x), y)),
                        options=Options(max_steps=most),
                    ).x
                )
            )
        )
        compiled = gradient.lower(workload.y).compile()
        sizes.add(compiled.memory_analysis().temp_size_in_bytes)
    words = " or ".join(f"{size:,}" for size in sorted(sizes))
    return (
        "The compiled gradient of one fit takes "
        f"{words} bytes beside its arguments and results, for at most 10 steps and for "
        "at most 1000: nothing is kept of a step."
    )


def report() -> str:
    """The report, in one piece."""
    return "\n\n".join(("## Derivatives", single(), memory(), batches()))


if __name__ == "__main__":
    print(report())
