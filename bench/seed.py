"""The seed's benchmark in a fresh process: a line of 100 points, a decay of 1000.

`python bench/seed.py PACKAGE WORKLOAD` prints as JSON the seconds of the import, of the
first call and of the calls that follow. It runs under any interpreter that has the
package, the old JAXFit's too, and imports nothing else of this repository.
"""

import importlib
import json
import logging
import sys
import time

import numpy as np

REPEATS = 30
SECONDS = 3.0  # fewer repeats of what takes longer
LENGTHS = {"line": 100, "exponential": 1000}
TRUTHS = {"line": (2.0, -1.0), "exponential": (2.5, 1.3, 0.5)}
STARTS = {"line": (1.0, 0.0), "exponential": (1.0, 1.0, 0.0)}


def model(workload, xp):
    """A function of x and the parameters, in NumPy or `jax.numpy`."""
    if workload == "line":
        return lambda x, a, b: a * x + b
    return lambda x, a, b, c: a * xp.exp(-b * x) + c


def door(package):
    """The function `curve_fit` of a package."""
    if package == "scipy":
        return importlib.import_module("scipy.optimize").curve_fit
    name, _, is_class = package.partition(".")
    module = importlib.import_module(name)
    return module.CurveFit().curve_fit if is_class else module.curve_fit


def measured(package, workload):
    """Seconds, and the parameters that were found."""
    logging.disable()
    before = time.perf_counter()
    curve_fit = door(package)
    imported = time.perf_counter()
    xp = np if package == "scipy" else importlib.import_module("jax.numpy")
    x = np.linspace(0, 4, LENGTHS[workload])
    noise = 0.05 * np.random.default_rng(0).normal(size=x.shape)
    y = model(workload, np)(x, *TRUTHS[workload]) + noise
    function, start = model(workload, xp), np.array(STARTS[workload])
    times, values, processor = [], None, time.process_time()
    while len(times) < 2 or (len(times) <= REPEATS and sum(times[1:]) < SECONDS):
        begin = time.perf_counter()
        values, _ = curve_fit(function, x, y, p0=start)
        times.append(time.perf_counter() - begin)
        if len(times) == 1:
            processor = time.process_time() - processor
    return {
        "import": imported - before,
        "first": times[0],
        "processor": processor,
        "then": float(np.median(times[1:])),
        "under": _versions(),
        "x": np.asarray(values, float).tolist(),
    }


def _versions():
    jax = sys.modules.get("jax")
    python = f"Python {sys.version.split()[0]}"
    return f"{python}, jax {jax.__version__}" if jax else python


if __name__ == "__main__":
    print(json.dumps(measured(*sys.argv[1:])))
