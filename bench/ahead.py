"""How long a process waits for its first fit: from source, from bytes, ready to run.

    python -m bench.ahead

Each way is a fresh process that gets x0 and data, and times the call that first gives
numbers, and a later one. Imports are beside. Both are seconds of the processor, which
a machine that is not idle hardly changes; the later call is the quickest by the clock.
"""

import os
import statistics
import subprocess
import sys
import tempfile

from bench.report import ROOT, markdown

SETUP = """
import time
begun = time.process_time()
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
t = np.linspace(0, 4, 1000)
y = 2.5 * np.exp(-1.3 * t) + 0.5 + 0.05 * np.random.default_rng(0).normal(size=1000)
x0 = np.array([1.0, 1.0, 0.0])
"""
MODEL = """
import jax.numpy as jnp
import jaxfit

def residual(x, data):
    t, y = data
    return x[0] * jnp.exp(-x[1] * t) + x[2] - y

def program(x0, data):
    solution = jaxfit.solve(residual, x0, data)
    return {"x": solution.x, "stderr": solution.stderr(), "status": solution.status}
"""
CACHE = """
jax.config.update("jax_compilation_cache_dir", "cache")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
"""
BYTES = """
from jax import export
fit = jax.jit(export.deserialize(open("fit.bin", "rb").read()).call)
"""
WRITE = """
import pickle
from jax import export
from jax.experimental import serialize_executable
jitted = jax.jit(program)
open("fit.bin", "wb").write(export.export(jitted)(x0, (t, y)).serialize())
ready = serialize_executable.serialize(jitted.lower(x0, (t, y)).compile())
pickle.dump(ready, open("fit.ready", "wb"))
print(len(open("fit.bin", "rb").read()), len(ready[0]))
"""
READY = """
import pickle
from jax.experimental import serialize_executable
fit = serialize_executable.deserialize_and_load(*pickle.load(open("fit.ready", "rb")))
"""
TIMES = """
imported = time.process_time()
{load}
first = jax.block_until_ready(fit(x0, (t, y)))
called = time.process_time()
later = []
for _ in range(200):
    start = time.perf_counter()
    jax.block_until_ready(fit(x0, (t, y)))
    later.append(time.perf_counter() - start)
print(imported - begun, called - imported, min(later), *first["x"])
"""
WAYS = {
    "the source, `solve` in `jax.jit`": (MODEL, "fit = jax.jit(program)"),
    "the source, JAX's cache filled": (CACHE + MODEL, "fit = jax.jit(program)"),
    "exported bytes": ("", BYTES),
    "exported bytes, JAX's cache filled": (CACHE, BYTES),
    "an executable, serialized": ("", READY),
}
PROCESSES = 3
HEAD = "what the process has", "imports, s", "load and first fit, s", "later, µs"


def report() -> str:
    """The table, as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = _run(SETUP + MODEL + WRITE, folder)
        rows, answers = [], []
        for name, (imports, load) in WAYS.items():
            script = SETUP + imports + TIMES.format(load=load)
            if "cache" in imports:
                _run(script, folder)  # fills it
            runs = [_run(script, folder) for _ in range(PROCESSES)]
            medians = [statistics.median(run[i] for run in runs) for i in range(3)]
            answers.append(runs[0][3:])
            imported, first, later = medians
            rows.append((name, f"{imported:.2f}", f"{first:.3f}", f"{1e6 * later:.0f}"))
        for answer in answers:
            difference = [a - b for a, b in zip(answer, answers[0], strict=True)]
            assert max(map(abs, difference)) < 1e-9
    return (
        f"A fit of 1000 points in a fresh process, medians of {PROCESSES}. The bytes "
        f"are {sizes[0] / 1e3:.0f} kB, the executable {sizes[1] / 1e3:.0f}.\n\n"
    ) + markdown(HEAD, rows)


def _run(script: str, folder: str) -> list[float]:
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(word) for word in done.stdout.split()]


if __name__ == "__main__":
    print(report())
