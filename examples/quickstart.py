"""Fit NIST's Thurber data: plainly, with bounds, and with a robust loss.

Electron mobility in a semiconductor against the logarithm of its density (R. Thurber,
NIST, 1979), a quotient of cubics with seven parameters. NIST certifies the answer to
eleven digits. Prints a table and saves `quickstart.png`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxfit

jax.config.update("jax_enable_x64", True)

DATA = Path(__file__).parent / "data" / "Thurber.dat"


def mobility(b, x):
    """Quotient of two cubics in the logarithm of the density."""
    numerator = b[0] + x * (b[1] + x * (b[2] + x * b[3]))
    return numerator / (1 + x * (b[4] + x * (b[5] + x * b[6])))


def residual(b, data):
    """Model minus observation."""
    x, y = data
    return mobility(b, x) - y


def read():
    """Start, certified values and errors, and the data of NIST's file."""
    lines = DATA.read_text().splitlines()
    table = [line.split("=")[1].split() for line in lines[40:47]]
    start, _, certified, stderr = np.array(table, float).T
    y, x = np.array([line.split() for line in lines[60:] if line], float).T
    return start, certified, stderr, (x, y)


def print_table(solution, certified, certified_stderr):
    """Parameter by parameter: value, error, and how many digits are NIST's."""
    print(f"{'':4}{'value':>18}{'std. error':>14}{'certified':>18}{'digits':>8}")
    rows = zip(solution.x, solution.stderr(), certified, strict=True)
    for i, (value, error, truth) in enumerate(rows, 1):
        digits = min(11.0, -np.log10(max(abs(value / truth - 1), 1e-11)))
        print(f"b{i:<3}{value:18.10e}{error:14.4e}{truth:18.10e}{digits:8.1f}")
    worst = np.max(np.abs(solution.stderr() / certified_stderr - 1))
    print(f"Standard errors agree with NIST's to {worst:.0e}.")
    print(f"{solution.message} ({solution.nfev} evaluations)\n")


def draw(data, plain, robust, spoilt):
    """Data, fits and residuals, as `quickstart.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x, y = data
    grid = np.linspace(x.min(), x.max(), 400)
    figure, (top, bottom) = plt.subplots(
        2, 1, sharex=True, figsize=(7, 6), height_ratios=[3, 1], layout="constrained"
    )
    outliers = spoilt != y
    top.plot(x, y, "o", ms=5, mfc="none", color="black", label="Thurber's data")
    top.plot(x[outliers], spoilt[outliers], "x", color="tab:red", label="spoilt points")
    top.plot(grid, mobility(plain.x, grid), color="tab:blue", label="least squares")
    top.plot(
        grid,
        mobility(robust.x, grid),
        "--",
        color="tab:orange",
        label="robust, with the spoilt points",
    )
    top.set_ylabel("electron mobility")
    top.legend(frameon=False)
    bottom.axhline(0, color="0.7", lw=1)
    bottom.plot(x, -residual(plain.x, data), "o", ms=4, color="tab:blue")
    bottom.plot(x, -residual(robust.x, data), "x", ms=5, color="tab:orange")
    bottom.set_xlabel("logarithm of the density")
    bottom.set_ylabel("residual")
    figure.savefig("quickstart.png", dpi=120)
    print("Saved quickstart.png")


def main():
    """Three fits, a table each, and a picture."""
    start, certified, stderr, data = read()

    print("Least squares")
    plain = jaxfit.solve(residual, start, data)
    print_table(plain, certified, stderr)

    print("With bounds: all parameters positive, b7 at most 0.045")
    upper = np.array([np.inf] * 6 + [0.045])
    bounded = jaxfit.solve(residual, start, data, bounds=(0.0, upper))
    for i, (value, error, side) in enumerate(
        zip(bounded.x, bounded.stderr(), bounded.active, strict=True), 1
    ):
        at = {-1: "at its lower bound", 0: "", 1: "at its upper bound"}[int(side)]
        print(f"b{i:<3}{value:18.10e}{error:14.4e}  {at}")
    print(f"{bounded.message} ({bounded.nfev} evaluations)\n")

    print("Robust: every seventh point spoilt by +250, Cauchy loss of scale 15")
    x, y = data
    spoilt = y + 250.0 * (jnp.arange(len(y)) % 7 == 3)
    loss = jaxfit.losses.Cauchy(15.0)
    robust = jaxfit.solve(residual, start, (x, spoilt), loss=loss)
    difference = np.abs((robust.x - certified) / stderr)
    print(f"Farthest from NIST's values: {difference.max():.1f} standard errors")
    print(f"{robust.message} ({robust.nfev} evaluations)\n")

    draw(data, plain, robust, np.asarray(spoilt))


if __name__ == "__main__":
    main()
