"""Digits of polynomial fits, beside the condition number of their Jacobians.

65 points on [0, 1], powers up to the 20th, noise of 0.001; the exact solution by
rational arithmetic. `python docs/pictures/condition.py` prints a table and draws
`condition.png`.
"""

from fractions import Fraction
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import least_squares

import jaxfit

jax.config.update("jax_enable_x64", True)
TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
LOOKS = {
    "normal equations": ("s--", "C3"),
    "normal equations, iterated": ("v--", "C1"),
    "QR (numpy.linalg.lstsq)": ("x-", "0.5"),
    "SciPy lm": ("1-", "C0"),
    "SciPy trf": ("2-", "C2"),
    "jaxfit": ("o-", "k"),
}


def exact(columns, y):
    """The least-squares solution without rounding."""
    rows = [
        [*map(Fraction, row), Fraction(b)]
        for row, b in zip(columns.tolist(), y.tolist(), strict=True)
    ]
    n = columns.shape[1]
    matrix = [[sum(r[i] * r[j] for r in rows) for j in range(n + 1)] for i in range(n)]
    for k in range(n):
        matrix[k] = [value / matrix[k][k] for value in matrix[k]]
        for i in range(n):
            if i != k:
                factor = matrix[i][k]
                matrix[i] = [
                    a - factor * b for a, b in zip(matrix[i], matrix[k], strict=True)
                ]
    return np.array([float(row[-1]) for row in matrix])


def digits(x, truth):
    """Correct digits of the worst parameter."""
    error = np.max(np.abs(np.asarray(x) - truth) / np.abs(truth))
    return float(np.clip(-np.log10(max(error, 1e-16)), 0, 16))


def residual(b, data):
    columns, y = data
    return columns @ b - y


def solutions(columns, y):
    """The coefficients by each way."""
    n = columns.shape[1]
    size = np.linalg.norm(columns, axis=0)  # the normal equations with a diagonal of 1
    unit = columns / size
    gram, zeros = unit.T @ unit, np.zeros(n)
    plain = np.linalg.solve(gram, unit.T @ y)
    iterated = plain
    for _ in range(20):
        iterated = iterated - np.linalg.solve(gram, unit.T @ (unit @ iterated - y))

    def minpack(method, **scale):
        return least_squares(
            lambda b: columns @ b - y,
            zeros,
            lambda b: columns,
            method=method,
            **scale,
            **TIGHT,
        )

    solution = jaxfit.solve(residual, zeros, (columns, y))
    ways = {
        "normal equations": plain / size,
        "normal equations, iterated": iterated / size,
        "QR (numpy.linalg.lstsq)": np.linalg.lstsq(columns, y, rcond=None)[0],
        "SciPy lm": minpack("lm", x_scale=1 / size).x,
        "SciPy trf": minpack("trf", x_scale="jac").x,
        "jaxfit": solution.x,
    }
    return np.linalg.cond(unit), ways, solution


def main():
    x = np.arange(65) / 64
    found, conditions = {way: [] for way in LOOKS}, []
    for n in range(2, 22):
        columns = x[:, None] ** np.arange(n)
        y = columns.sum(1) + 1e-3 * np.random.default_rng(0).normal(size=65)
        truth = exact(columns, y)
        condition, ways, solution = solutions(columns, y)
        conditions.append(condition)
        for way, value in ways.items():
            found[way].append(digits(value, truth))
        row = " ".join(f"{found[way][-1]:5.1f}" for way in LOOKS)
        status = jaxfit.Status(int(solution.status)).name
        determined = np.all(solution.determined())
        framed = bool(solution.linearization.framed)
        print(
            n,
            f"{condition:.1e}",
            row,
            status,
            solution.nfev,
            framed,
            determined,
            flush=True,
        )
    _draw(conditions, found)


def _draw(conditions, found):
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for way, (line, colour) in LOOKS.items():
        axes.semilogx(conditions, found[way], line, color=colour, label=way, ms=5, lw=1)
    axes.set(xlabel="condition of the Jacobian, columns scaled to one", ylabel="digits")
    axes.set_ylim(-0.3, 16.3)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main()
