"""First answers: processor seconds of first calls in fresh processes, after the import.

`python -m bench.first SCENE` plays one scene and prints its seconds as JSON. The unit
is optimistix's first fit of its exponential, in the same run.
"""

import json
import subprocess
import sys
import time

import numpy as np

from bench.report import ROOT, markdown

ROUNDS = 5
TARGETS = {
    "curve_fit of a line": 0.8,
    "fit gaussian + linear, with its guess": 1.6,
    "then its profile": 1.3,
    "then 2000 bootstraps": 1.3,
    "a first fit_batch of 100": 2.2,
    "another length, other data": 0.05,
}
OPTIMISTIX = "optimistix, an exponential"


def _peak(points: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(0, 10, points)
    y = 5 * np.exp(-(((x - 4) / 0.8) ** 2) / 2) + 0.3 * x + 1
    return x, y + 0.1 * np.random.default_rng(0).normal(size=(*shape, points))


def optimistix() -> dict:
    import jax
    import jax.numpy as jnp
    import optimistix

    jax.config.update("jax_enable_x64", True)
    t = jnp.linspace(0, 4, 1000)
    y = 2.5 * jnp.exp(-1.3 * t) + 0.5

    def residual(p, _):
        return p[0] * jnp.exp(-p[1] * t) + p[2] - y

    def fit():
        solver = optimistix.LevenbergMarquardt(1e-8, 1e-8)
        start = jnp.array([1.0, 1.0, 0.0])
        optimistix.least_squares(residual, solver, start).value.block_until_ready()

    return {OPTIMISTIX: fit}


def line() -> dict:
    import jaxfit

    x = np.linspace(0, 10, 200)
    y = 0.3 * x + 1 + 0.1 * np.random.default_rng(0).normal(size=200)
    return {
        "curve_fit of a line": lambda: jaxfit.curve_fit(lambda x, a, b: a * x + b, x, y)
    }


def model() -> dict:
    import jaxfit
    from jaxfit import models

    peak, found = models.Gaussian() + models.Linear(), {}

    def fit():
        found["fit"] = jaxfit.fit(peak, *_peak(200))

    return {
        "fit gaussian + linear, with its guess": fit,
        "then its profile": lambda: found["fit"].intervals("profile"),
        "then 2000 bootstraps": lambda: found["fit"].bootstrap(2000),
        "another length, other data": lambda: jaxfit.fit(peak, *_peak(211)),
    }


def batch() -> dict:
    import jaxfit
    from jaxfit import models

    peak = models.Gaussian() + models.Linear()
    return {
        "a first fit_batch of 100": lambda: jaxfit.fit_batch(peak, *_peak(200, 100))
    }


def _sum_of(number: int, kind: str = "Gaussian") -> dict:
    import jaxfit
    from jaxfit import models

    total, x = models.Constant(), np.linspace(0, 100, 800)
    y = 1 + 0.05 * np.random.default_rng(0).normal(size=800)
    for k in range(number):
        total = total + getattr(models, kind)(prefix=f"p{k}_")
        center = (k + 0.7) * 100 / (number + 0.5)
        y = y + (3 + k % 5) / (1 + ((x - center) / 2) ** 2) ** 2
    name = f"fit of {number} peaks by name ({kind})"
    return {name: lambda: jaxfit.fit(total, x, y)}


SCENES = {
    "optimistix": optimistix,
    "line": line,
    "model": model,
    "batch": batch,
    "3": lambda: _sum_of(3),
    "8": lambda: _sum_of(8),
    "16": lambda: _sum_of(16),
    "voigts": lambda: _sum_of(2, "Voigt"),
}


def played(scene: str) -> dict[str, float]:
    """Processor seconds of each call of a scene, in a process of its own."""
    command = [sys.executable, "-m", "bench.first", scene]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report() -> str:
    """The table, of least seconds; the scenes take turns."""
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for scene in SCENES:
            for name, value in played(scene).items():
                seconds.setdefault(name, []).append(value)
    least = {name: min(values) for name, values in seconds.items()}
    unit = least[OPTIMISTIX]
    rows = [
        (name, f"{value:.2f}", f"{value / unit:.2f}", f"≤ {target}" if target else "")
        for name, value in least.items()
        for target in [TARGETS.get(name)]
    ]
    return "\n".join(
        [
            "## First answers",
            "",
            "Processor seconds of first calls in fresh processes, after the import; "
            f"the least of {ROUNDS}. In units of optimistix's first fit.",
            "",
            markdown(("call", "seconds", "in units", "target"), rows),
        ]
    )


def _play(scene: str) -> None:
    calls, seconds = SCENES[scene](), {}
    import jax

    jax.jit(lambda x: x + 1)(1.0)  # JAX itself has started
    for name, call in calls.items():
        begin = time.process_time()
        call()
        seconds[name] = time.process_time() - begin
    print(json.dumps(seconds))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _play(sys.argv[1])
    else:
        print(report())
