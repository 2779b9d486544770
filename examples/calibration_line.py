"""A calibration line whose standards are known no better than the readings.

Solutions of known concentration are made by dilution, which has errors of its own, and
read in a photometer. With `sigma_x` the line is fitted by orthogonal distance
regression: each standard may move along both axes, by how well it is known. Taken as
exact, the standards give errors of the line that are too small, and readings that look
too bad for it. Then the line is read backwards: the concentration of a sample, with the
error that line and reading leave. Prints both, and saves `calibration_line.png`.
"""

import numpy as np

import jaxfit
from jaxfit import models

SLOPE, INTERCEPT = 0.0482, 0.012  # absorbance for each mg/l, and of the blank
STANDARDS = np.array([0, 1, 2, 4, 6, 8, 10, 12, 15, 18, 20.0])  # mg/l
READING, READING_ERROR = 0.46, 0.004  # of the sample


def measured() -> dict[str, np.ndarray]:
    """The standards as labelled, their readings, and the errors of both."""
    random = np.random.default_rng(7)
    sigma_x = 0.045 * STANDARDS  # of diluting; the blank is exact
    sigma = np.hypot(0.004, 0.01 * SLOPE * STANDARDS)
    y = SLOPE * STANDARDS + INTERCEPT + sigma * random.normal(size=STANDARDS.size)
    x = STANDARDS + sigma_x * random.normal(size=STANDARDS.size)
    return {"x": x, "y": y, "sigma": sigma, "sigma_x": sigma_x}


def read_back(fit: jaxfit.Fit, reading: float, error: float) -> tuple[float, float]:
    """The concentration that belongs to a reading, and its standard error."""
    slope, intercept = fit.values["slope"], fit.values["intercept"]
    concentration = (reading - intercept) / slope
    derivative = np.array([-concentration, -1]) / slope  # by slope and intercept
    variance = derivative @ fit.covariance @ derivative + (error / slope) ** 2
    return concentration, np.sqrt(variance)


def main() -> None:
    data = measured()
    both = jaxfit.fit(models.Linear(), **data, absolute_sigma=True)
    exact = {**data, "sigma_x": None}
    y_only = jaxfit.fit(models.Linear(), **exact, absolute_sigma=True)
    print(both)
    print("\n                        slope                intercept     chi² / dof")
    for words, fit in {"errors in both": both, "standards exact": y_only}.items():
        slope, intercept = fit["slope"], fit["intercept"]
        print(
            f"{words:<16}{slope.value:>10.5f} ± {slope.stderr:.5f}"
            f"{intercept.value:>12.5f} ± {intercept.stderr:.5f}"
            f"{fit.reduced_chi_square:>12.2f}"
        )
    print(f"{'truth':<16}{SLOPE:>10.5f}{INTERCEPT:>22.5f}")

    value, error = read_back(both, READING, READING_ERROR)
    print(f"\nA sample that reads {READING} has {value:.2f} ± {error:.2f} mg/l.")

    figure = both.plot(
        xlabel="concentration, mg/l",
        ylabel="absorbance",
        title="A calibration line, errors in both",
    )
    axis = figure.axes[0]
    left, bottom = axis.get_xlim()[0], axis.get_ylim()[0]
    axis.plot([left, value, value], [READING, READING, bottom], "C0:")
    axis.errorbar(
        value, READING, READING_ERROR, error, "C0s", markersize=5, label="sample"
    )
    axis.set(xlim=(left, None), ylim=(bottom, None))
    axis.legend(frameon=False, fontsize="small")
    figure.savefig("calibration_line.png", dpi=130)
    print("saved calibration_line.png")


if __name__ == "__main__":
    main()
