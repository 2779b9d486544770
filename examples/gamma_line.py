"""A gamma line on a background of few counts, and how much of it there is.

Counts of a detector in bins of 2 keV: the 662 keV line of caesium-137 on a sloping
background of two counts or less a bin. The fit integrates the model over each bin
(`edges=`) and takes Poisson's likelihood. Least squares with the roots of counts for
errors believes bins that happen to be low, and finds too little of everything. Two
spectra are fitted: one that shows the line, and one of a short measurement in which it
may be absent, for which the profile gives an upper limit. Prints the reports and what
2000 repetitions show, and saves `gamma_line.png`.
"""

import jax.numpy as jnp
import numpy as np

import jaxfit
from jaxfit import losses

EDGES = np.arange(600.0, 725.0, 2.0)  # keV
MIDDLE, WIDTH = 661.7, 3.0  # keV: where the line is, and the detector's resolution
TRUTH = {"area": 40.0, "center": MIDDLE, "width": WIDTH, "level": 0.8, "slope": -0.006}
SHORT = 0.08  # the time of the other measurement, in that of the first
SEEDS = {"long": 3, "short": 4}
ZERO = (0, None)
BOUNDS = {"area": ZERO, "level": ZERO, "width": (1, 10), "center": (640, 680)}
START = {"area": 20.0, "center": 660.0, "width": 4.0, "level": 1.0, "slope": 0.0}
KNOWN = {"center": MIDDLE, "width": WIDTH}  # in the short measurement
RISE = 3.841  # of the deviance at the ends of an interval of 95 %
REPEATED = 2000


def spectrum(energy, area, center, width, level, slope):
    """Counts per keV: a line of a number of counts, and a background that falls."""
    line = jnp.exp(-0.5 * ((energy - center) / width) ** 2)
    background = level * jnp.exp(slope * (energy - MIDDLE))
    return area / (width * jnp.sqrt(2 * jnp.pi)) * line + background


def measured(truth, seed, number=1):
    """Counts in the bins of some spectra, (number, bins)."""
    energy = np.linspace(EDGES[0], EDGES[-1], 50 * (EDGES.size - 1) + 1)
    fine = np.asarray(spectrum(energy[:-1] + 0.02, **truth)).reshape(-1, 50)
    expected = fine.mean(axis=1) * np.diff(EDGES)
    return np.random.default_rng(seed).poisson(expected, (number, expected.size))


def roots(counts):
    """What is often taken for errors: roots of counts, 1 where there are none."""
    return np.sqrt(np.maximum(counts, 1))


def fit_both(counts, start, **settings):
    """By Poisson's likelihood, and by least squares with roots of counts for errors."""
    settings |= {"y": counts, "edges": EDGES, "bounds": BOUNDS, "p0": start}
    likely = jaxfit.fit(spectrum, loss=losses.Poisson(), **settings)
    squares = jaxfit.fit(spectrum, sigma=roots(counts), absolute_sigma=True, **settings)
    return likely, squares


def repeat():
    """The level of the background in many spectra, by both."""
    many = measured(TRUTH, seed=5, number=REPEATED)
    settings = {"Y": many, "edges": EDGES, "bounds": BOUNDS, "p0": START}
    likely = jaxfit.fit_batch(spectrum, loss=losses.Poisson(), **settings)
    squares = jaxfit.fit_batch(
        spectrum, sigma=roots(many), absolute_sigma=True, **settings
    )
    levels = {}
    print(f"\n{REPEATED} spectra{'area':>18}{'level':>18}")
    for words, fits in {"likelihood": likely, "least squares": squares}.items():
        good = fits.success
        area, levels[words] = fits["area"][good], fits["level"][good]
        print(
            f"{words:15}{np.mean(area):10.1f} ± {np.std(area):.1f}"
            f"{np.mean(levels[words]):12.3f} ± {np.std(levels[words]):.3f}"
            f"   ({np.sum(~good)} failed)"
        )
    print(f"{'truth':15}{TRUTH['area']:10.1f}{TRUTH['level']:18.3f}")
    return levels


# The picture


def draw_spectrum(axis, fit, squares, title):
    """Counts in steps, both fits, and where further counts would fall."""
    middles = (EDGES[:-1] + EDGES[1:]) / 2
    band = fit.prediction_band()
    low, high = (np.append(side, side[-1]) for side in (band.lower, band.upper))
    axis.fill_between(
        *(EDGES, low, high),
        step="post",
        color="tab:blue",
        alpha=0.15,
        linewidth=0,
        label="95 % of further counts",
    )
    axis.stairs(fit.observed.data.y, EDGES, color="0.55", label="counts")
    axis.plot(middles, fit.best_fit, color="tab:blue", lw=2, label="likelihood")
    axis.plot(middles, squares.best_fit, "--", color="tab:red", label="least squares")
    expected = fit.expected_deviance
    axis.set_title(
        f"{title}\ndeviance {fit.deviance:.0f}, expected {expected.value:.0f} ± "
        f"{expected.deviation:.0f}",
        fontsize="medium",
    )
    axis.set(ylabel="counts in 2 keV", ylim=(0, None), xlim=(EDGES[0], EDGES[-1]))
    axis.yaxis.get_major_locator().set_params(integer=True)


def draw_residuals(axis, fit):
    """Roots of deviances with their signs."""
    middles = (EDGES[:-1] + EDGES[1:]) / 2
    axis.axhline(0, color="0.7", lw=0.8)
    axis.plot(middles, fit.deviance_residuals, "o", ms=3, color="tab:blue")
    axis.set(xlabel="energy, keV", ylabel="deviance\nresidual", ylim=(-3.5, 3.5))


def draw_levels(axis, levels):
    """What many spectra give for the background."""
    bins = np.linspace(0.2, 1.3, 56)
    for (words, values), color in zip(
        levels.items(), ("tab:blue", "tab:red"), strict=True
    ):
        axis.hist(values, bins, color=color, alpha=0.55, label=words)
    axis.axvline(TRUTH["level"], color="black", lw=1.2, label="truth")
    axis.set(xlabel="background, counts per keV", ylabel="spectra in a bin")
    axis.set_title(f"{REPEATED} such spectra", fontsize="medium")
    axis.legend(frameon=False, fontsize="small")


def draw_profile(axis, fit):
    """How the deviance rises about the area of a weak line."""
    (profile,) = fit.profile("area", points=81)
    area, rise = profile.values, profile.zeta**2
    _, upper = fit.intervals("profile")["area"]
    best, error = fit["area"].value, fit["area"].stderr
    parabola = np.linspace(0, best + 2.95 * error, 200)
    axis.plot(area, rise, color="tab:blue", lw=2, label="profile")
    axis.plot(
        *(parabola, ((parabola - best) / error) ** 2),
        ":",
        color="0.4",
        label="from the standard error",
    )
    axis.axhline(RISE, color="0.7", lw=0.8)
    axis.text(4.6, RISE + 0.1, "95 %", color="0.4", fontsize="small")
    axis.axvline(TRUTH["area"] * SHORT, color="black", lw=1.2, ymax=0.62, label="truth")
    axis.annotate(
        f"at most {upper:.1f}",
        (upper, RISE),
        (upper - 1.6, RISE + 1.6),
        ha="right",
        arrowprops={"arrowstyle": "->", "color": "tab:blue"},
        color="tab:blue",
    )
    axis.set(xlabel="area of the line, counts", ylabel="rise of the deviance")
    axis.set(xlim=(0, parabola[-1]), ylim=(0, 6.5))
    axis.set_title("How large may the line be?", fontsize="medium")
    axis.legend(frameon=False, fontsize="small", loc="upper left")


def draw(fits, levels):
    """Both spectra, their residuals, and what follows: `gamma_line.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 9), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=[3, 1.1, 2.4])
    titles = f"A line of {TRUTH['area']:.0f} counts", "A short measurement"
    for column, (title, (fit, squares)) in enumerate(zip(titles, fits, strict=True)):
        spectrum_axis = figure.add_subplot(grid[0, column])
        draw_spectrum(spectrum_axis, fit, squares, title)
        spectrum_axis.tick_params(labelbottom=False)
        draw_residuals(figure.add_subplot(grid[1, column], sharex=spectrum_axis), fit)
        if column == 0:
            spectrum_axis.legend(frameon=False, fontsize="small")
    draw_levels(figure.add_subplot(grid[2, 0]), levels)
    draw_profile(figure.add_subplot(grid[2, 1]), fits[1][0])
    figure.savefig("gamma_line.png", dpi=120)
    print("Saved gamma_line.png")


def main():
    """Fit both spectra and many more, print, draw."""
    strong = fit_both(measured(TRUTH, SEEDS["long"])[0], START)
    print(strong[0].report())
    print(strong[0].intervals("profile"))

    scaled = {name: SHORT * TRUTH[name] for name in ("area", "level")}
    start = {"area": 2.0, "level": 0.1, "slope": 0.0}
    counts = measured(TRUTH | scaled, SEEDS["short"])[0]
    weak = fit_both(counts, START | start, fixed=KNOWN)
    low, high = weak[0].intervals("profile")["area"]
    print(f"\nA short measurement, {counts.sum()} counts in all")
    print(weak[0])
    print(f"area of the line, 95 %: {low:.2f} .. {high:.2f}")
    draw((strong, weak), repeat())


if __name__ == "__main__":
    main()
