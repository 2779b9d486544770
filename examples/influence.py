"""Which points carry the answer? Influence by one derivative instead of m refits.

NIST's Thurber data are fitted once. The derivative of the solution by the weights tells
how much each point moves it, and that of the fitted values by the data how much each
point pulls the curve to itself (its leverage). Together they give the fit without any
one point, to first order, and so Cook's distance and the jackknife. Compares them with
37 refits, each without one point, and saves `influence.png`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxfit

jax.config.update("jax_enable_x64", True)

DATA = Path(__file__).parent / "data" / "Thurber.dat"
START = np.array([1300.0, 1500.0, 500.0, 75.0, 1.0, 0.4, 0.05])  # NIST's second


def mobility(b, x):
    """Electron mobility of a semiconductor by the logarithm of the density."""
    above = b[0] + x * (b[1] + x * (b[2] + x * b[3]))
    return above / (1 + x * (b[4] + x * (b[5] + x * b[6])))


def residual(b, data):
    x, y = data
    return mobility(b, x) - y


@jax.jit
def fit(x, y, weights):
    return jaxfit.solve(residual, START, (x, y), weights=weights)


@jax.jit
def without_each(x, y):
    """The parameters without each point (m, n), to first order, from one fit."""
    ones = jnp.ones_like(y)
    moves = jax.jacrev(lambda w: fit(x, y, w).x)(ones)  # (n, m)
    pulls = jax.jacrev(lambda y: mobility(fit(x, y, ones).x, x))(y)  # (m, m)
    leverage = jnp.diagonal(pulls)
    return fit(x, y, ones).x - (moves / (1 - leverage)).T, leverage


def cook(solution, without):
    """Cook's distance: how far the answer moves, in units of its uncertainty."""
    moves = without - solution.x
    inverse = np.linalg.inv(solution.covariance())
    return np.einsum("ij,jk,ik->i", moves, inverse, moves) / len(solution.x)


def main() -> None:
    lines = DATA.read_text().splitlines()[60:]
    y, x = np.array([line.split() for line in lines if line], float).T
    ones = np.ones_like(y)
    solution = fit(x, y, ones)
    derived, leverage = without_each(x, y)
    refits = jax.jit(jax.vmap(lambda w: fit(x, y, w)))(1 - np.eye(len(y)))
    by_derivative, by_refit = cook(solution, derived), cook(solution, refits.x)
    order = np.argsort(-by_refit)[:5]
    print("point      x   leverage   Cook's distance: by derivative   by refit")
    for i in order:
        print(
            f"{i:5d} {x[i]:7.3f} {leverage[i]:9.2f} "
            f"{by_derivative[i]:30.2f} {by_refit[i]:10.2f}"
        )
    jackknife = [
        np.sqrt((len(y) - 1) * np.mean((b - np.mean(b, axis=0)) ** 2, axis=0))
        for b in (np.asarray(derived), np.asarray(refits.x))
    ]
    print("standard errors     ", np.array2string(solution.stderr(), precision=3))
    print("jackknife, derivative", np.array2string(jackknife[0], precision=3))
    print("jackknife, refits    ", np.array2string(jackknife[1], precision=3))
    draw(x, y, solution, by_derivative, by_refit)


def draw(x, y, solution, by_derivative, by_refit) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    fine = np.linspace(x.min(), x.max(), 300)
    left.plot(fine, mobility(solution.x, fine), "k", lw=1)
    points = left.scatter(x, y, 20 + 120 * np.sqrt(by_refit), by_refit, cmap="plasma_r")
    figure.colorbar(points, ax=left, label="Cook's distance")
    left.set(xlabel="log density", ylabel="mobility", title="What carries the fit")
    right.loglog(by_refit, by_derivative, "o")
    ends = [by_refit.min(), by_refit.max()]
    right.plot(ends, ends, "k", lw=1)
    right.set(
        xlabel="by 37 refits", ylabel="by one derivative", title="Cook's distance"
    )
    figure.savefig("influence.png", dpi=120)
    print("saved influence.png")


if __name__ == "__main__":
    main()
