"""A spectrum with three overlapping peaks: what is known, and how well.

Two Voigt lines of one instrument share their Gaussian width by a tie, a third peak is
a broad Gaussian, and below them lies a flat ground. Where the lines are is known about;
the rest of the start is guessed. Prints the report, the intervals three ways, and what
a simpler model would have said. Saves `three_peaks.png` (data, fit, components,
residuals) and `three_peaks_profile.png` (how curved the model is).
"""

import textwrap

import numpy as np

import jaxfit
from jaxfit import models

ENERGY = np.linspace(280.0, 295.0, 240)  # eV
TRUTH = {
    **{"a_area": 900.0, "a_center": 284.8, "a_sigma": 0.35, "a_gamma": 0.22},
    **{"b_area": 520.0, "b_center": 286.0, "b_sigma": 0.35, "b_gamma": 0.30},
    **{"c_height": 95.0, "c_center": 288.3, "c_width": 0.95},
    "c": 150.0,
}
MODEL = (
    models.Voigt(prefix="a_")
    + models.Voigt(prefix="b_")
    + models.Gaussian(prefix="c_")
    + models.Constant()
)
ONE_INSTRUMENT = {"b_sigma": "a_sigma"}


def counts() -> np.ndarray:
    """Counts in each channel, as they would be recorded."""
    expected = np.asarray(MODEL(ENERGY, TRUTH))
    return np.random.default_rng(7).poisson(expected).astype(float)


def main() -> None:
    y = counts()
    settings = {
        "sigma": np.sqrt(np.maximum(y, 1.0)),
        "absolute_sigma": True,
        "tie": ONE_INSTRUMENT,
        "p0": {"a_center": 285.0, "b_center": 286.2, "c_center": 288.0},
    }
    fit = jaxfit.fit(MODEL, ENERGY, y, **settings)
    print(fit.report())

    names = ["a_center", "a_gamma", "b_area", "c_width"]
    kinds = {
        kind: fit.intervals(kind, 0.95) for kind in ("wald", "profile", "bootstrap")
    }
    print("\n95 % intervals" + "".join(f"{kind:>26}" for kind in kinds))
    for name in names:
        ends = (kinds[kind][name] for kind in kinds)
        print(f"{name:<14}" + "".join(f"{a:>14.4f} ..{b:>9.4f}" for a, b in ends))

    two = models.Voigt(prefix="a_") + models.Gaussian(prefix="c_") + models.Constant()
    start = {name: settings["p0"][name] for name in ("a_center", "c_center")}
    fewer = jaxfit.fit(two, ENERGY, y, **(settings | {"tie": None, "p0": start}))
    print(f"\nwith two peaks in place of three: AIC {fewer.aic - fit.aic:+.0f}")
    for warning in fewer.warnings():
        print(textwrap.fill(warning, 86, initial_indent="  ", subsequent_indent="  "))

    figure = fit.plot(
        xlabel="binding energy / eV", ylabel="counts", title="Three overlapping peaks"
    )
    figure.savefig("three_peaks.png", dpi=130)
    fit.plot_profile(names).savefig("three_peaks_profile.png", dpi=130)
    print("saved three_peaks.png, three_peaks_profile.png")


if __name__ == "__main__":
    main()
