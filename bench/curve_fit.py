"""`jaxfit.curve_fit` where SciPy's users live: first calls, later calls, the import.

`python -m bench.curve_fit WORKLOAD COMPETITOR` prints the seconds of a first call, from
arrays to the answer, in a process in which nothing was compiled before.
"""

import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

import jaxfit
from bench.report import ROOT, is_installed, markdown
from bench.single import (
    COMPETITORS,
    WORKLOADS,
    Competitor,
    Workload,
    prepare,
    time_in_turns,
)

COLD_REPEATS = 5

OURS, ANEW, ROWWISE = (
    "jaxfit.curve_fit",
    "jaxfit, a lambda made anew",
    "jaxfit, rowwise, lengths vary",
)
OPTIMISTIX, SCIPY, NLSQ = "jit(optimistix LM)", "SciPy trf", "NLSQ curve_fit"


def _curve_fit(workload: Workload) -> Callable:
    model = workload.model(jnp)
    return lambda x0, data: jaxfit.curve_fit(model, *data, x0)


def _made_anew(workload: Workload) -> Callable:
    def fit(x0, data):
        model = workload.model(jnp)  # a new function
        return jaxfit.curve_fit(model, *data, x0)

    return fit


def _varied_length(workload: Workload) -> Callable:
    """The calls leave out 0, 1, 2 or 3 points; one bucket holds these lengths."""
    model, lengths = workload.model(jnp), itertools.cycle(range(4))

    def fit(x0, data):
        missing = next(lengths)
        x, y = (array[missing:] for array in data)
        return jaxfit.curve_fit(model, x, y, x0, rowwise=True)

    return fit


def _nlsq(workload: Workload) -> Callable:
    import nlsq

    logging.getLogger("nlsq").propagate = False  # it reports every iteration
    model = workload.model(jnp)
    return lambda x0, data: tuple(nlsq.curve_fit(model, *data, p0=x0))


FRONT_DOORS = (
    Competitor(OURS, "jaxfit", _curve_fit, itemgetter(0), "host"),
    Competitor(ANEW, "jaxfit", _made_anew, itemgetter(0), "host"),
    Competitor(ROWWISE, "jaxfit", _varied_length, itemgetter(0), "host"),
    Competitor(NLSQ, "nlsq", _nlsq, itemgetter(0), "host"),
    *(c for c in COMPETITORS if c.name in (OPTIMISTIX, SCIPY, "SciPy lm", "lmfit")),
)
IN_COLD = OURS, OPTIMISTIX, NLSQ, SCIPY


def new_lengths(workload: Workload) -> np.ndarray:
    """Seconds of single calls with rowwise=True, each of a length not seen before."""
    fit, seconds = _varied_length(workload), []
    x0, data = np.asarray(workload.start), (workload.x, workload.y)
    for _ in range(4):
        began = time.perf_counter()
        fit(x0, data)
        seconds.append(time.perf_counter() - began)
    return np.array(seconds[1:])  # the first one compiles


# A process of its own for each first call


def _in_a_process(*arguments: str, **environment: str) -> float:
    command = [sys.executable, *arguments]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(json.loads(run.stdout))


def first_calls(workload: Workload, competitors) -> dict[str, float]:
    """Least seconds of a first call; the competitors take turns."""
    names = [c.name for c in competitors if c.name in IN_COLD]
    rounds = [
        [_in_a_process("-m", "bench.curve_fit", workload.name, name) for name in names]
        for _ in range(COLD_REPEATS)
    ]
    return dict(zip(names, np.min(rounds, axis=0), strict=True))


def with_persistent_cache(workload: Workload) -> tuple[float, float]:
    """Least seconds of our first call while JAX's cache on disk is empty, and later."""
    call = "-m", "bench.curve_fit", workload.name, OURS
    times = []
    for _ in range(COLD_REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            cache = {
                "JAX_ENABLE_COMPILATION_CACHE": "true",
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            times.append([_in_a_process(*call, **cache) for _ in range(2)])
    empty, filled = np.min(times, axis=0)
    return empty, filled


_IMPORT = """
import sys, time
import numpy
began = time.perf_counter()
import {}
print(time.perf_counter() - began)
"""


def import_times() -> tuple[float, float]:
    """Least seconds of `import jax` and `import jaxfit`."""
    rounds = [
        [_in_a_process("-c", _IMPORT.format(name)) for name in ("jax", "jaxfit")]
        for _ in range(2 * COLD_REPEATS)
    ]
    alone, ours = np.min(rounds, axis=0)
    return alone, ours


def _first_call(workload_name: str, competitor_name: str) -> float:
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_enable_compilation_cache", False)
    workload = next(w for w in WORKLOADS if w.name == workload_name)
    competitor = next(c for c in FRONT_DOORS if c.name == competitor_name)
    fit, arguments = prepare(competitor, workload)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(jnp.zeros(3)))
    began = time.perf_counter()
    jax.block_until_ready(fit(*arguments))
    return time.perf_counter() - began


# Report


def report() -> str:
    """Times of `curve_fit` beside its peers, and the ratios beside the targets."""
    competitors = [c for c in FRONT_DOORS if is_installed(c.package)]
    parts = [
        "## curve_fit\n\n"
        "First: ms from arrays to the answer in a process in which nothing was "
        f"compiled, best of {COLD_REPEATS}. Later: µs for one call, minimum and median "
        "of interleaved repeats."
    ]
    skipped = [c for c in FRONT_DOORS if not is_installed(c.package)]
    parts += [f"Skipped: {c.name}; {c.package} is not installed." for c in skipped]
    ratios = []
    for workload in WORKLOADS:
        unseen = new_lengths(workload)  # before anything else has seen them
        hot = time_in_turns(workload, competitors)
        cold = first_calls(workload, competitors)
        rows = []
        for name, seconds in hot.items():
            first = f"{1e3 * cold[name]:.0f}" if name in cold else ""
            later = [f"{1e6 * s:.0f}" for s in (seconds.min(), np.median(seconds))]
            rows.append((name, first, *later))
        size = f"{len(workload.x)} points, {len(workload.start)} parameters"
        head = "competitor", "first", "later min", "median"
        parts += [f"### {workload.name}: {size}", markdown(head, rows)]
        ratios += _ratios(workload.name, hot, cold, unseen)
    empty, filled = with_persistent_cache(WORKLOADS[0])
    alone, ours = import_times()
    ratios.append(
        ("import jaxfit - import jax", "", f"{ours - alone:.2f} s", "≤ 0.4 s")
    )
    parts += [
        "### Ratios of the first calls, and of medians of the later ones",
        markdown(("ratio", "workload", "measured", "target"), ratios),
        f"With JAX's compilation cache on disk a first call takes {1e3 * empty:.0f} ms "
        f"while the cache is empty, and {1e3 * filled:.0f} ms in a later process. "
        f"`import jax` takes {alone:.2f} s, `import jaxfit` {ours:.2f} s.",
    ]
    return "\n\n".join(parts)


def _ratios(workload: str, hot, cold, unseen) -> list[tuple]:
    middle = np.median
    rows = []
    for peer, target in ((SCIPY, 10), (NLSQ, 1000)):
        if peer in hot:
            ratio = middle(hot[peer]) / middle(hot[OURS])
            row = f"later, {peer} / {OURS}", workload, f"{ratio:.1f}", f"≥ {target}"
            rows.append(row)
    for peer, target in ((OPTIMISTIX, 0.6), (NLSQ, 0.25)):
        if peer in cold:
            ratio = cold[OURS] / cold[peer]
            row = f"first, {OURS} / {peer}", workload, f"{ratio:.2f}", f"≤ {target}"
            rows.append(row)
    for name, seconds in (
        (ANEW, hot[ANEW]),
        (ROWWISE, hot[ROWWISE]),
        ("jaxfit, rowwise, a length not seen before", unseen),
    ):
        ratio = middle(seconds) / middle(hot[OURS])
        rows.append((f"later, {name} / {OURS}", workload, f"{ratio:.2f}", "≤ 3"))
    return rows


if __name__ == "__main__":
    print(_first_call(*sys.argv[1:]))
