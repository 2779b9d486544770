"""A plate of 384 compounds: one dose-response curve each, all fitted in one call.

Every compound is given in ten doses. A four-parameter logistic gives its EC50 with an
error; `fit_batch` guesses a start for every curve from its data. Some compounds do
nothing, some are too weak to reach their plateau, and some wells were lost. What a
curve does not determine is told by its status or its error: no inactive compound gets
an EC50. One compound is then looked at whole, with profile intervals. Prints the plate,
and saves `dose_response.png` (maps), `dose_response_curves.png` and
`dose_response_compound.png`.
"""

import time

import jax
import numpy as np

import jaxfit
from jaxfit import models

jax.config.update("jax_num_cpu_devices", 2)

ROWS, COLUMNS = 16, 24
DOSES = 1e-9 * 3.0 ** np.arange(10)  # mol/l
NOISE = 4.0  # per cent of the control
LOST = 0.02  # the part of the wells without a reading


def plate() -> tuple[np.ndarray, np.ndarray]:
    """Responses (ROWS, COLUMNS, doses) in per cent; true EC50, infinite for none."""
    random = np.random.default_rng(384)
    shape = ROWS, COLUMNS, 1
    ec50 = 10 ** random.uniform(-8.5, -5.2, shape)
    ec50 = np.where(random.random(shape) < 0.1, np.inf, ec50)
    slope, top = random.uniform(0.8, 2.0, shape), random.uniform(70, 110, shape)
    response = top / (1 + (ec50 / DOSES) ** slope)
    response = response + NOISE * random.normal(size=response.shape)
    lost = random.random(response.shape) < LOST
    return np.where(lost, np.nan, response), ec50[..., 0]


def main() -> None:
    response, ec50 = plate()
    model = models.FourParameterLogistic()
    settings = {
        "sigma": NOISE,
        "absolute_sigma": True,
        "bounds": {
            "ec50": (1e-11, 1e-3),
            "slope": (0.2, 6.0),
            "bottom": (-30.0, 30.0),
            "top": (0.0, 200.0),
        },
        "options": jaxfit.Options(max_steps=100),  # a curve of noise alone may creep
    }
    jaxfit.fit_batch(model, DOSES, response, **settings)  # compile
    begin = time.perf_counter()
    fits = jaxfit.fit_batch(model, DOSES, response, **settings)
    print(f"{fits.success.size} curves in {1e3 * (time.perf_counter() - begin):.0f} ms")
    print(fits)

    pec50, error = fits["pec50"], fits.derived_errors["pec50"]
    known = fits.success & (error < 0.2)
    off = (pec50 + np.log10(ec50))[known] / error[known]
    print(f"\n{known.sum()} EC50 known to within 0.2 decades;")
    print(f"of these {np.mean(np.abs(off) < 1):.0%} are within one error of the truth,")
    print(f"of {np.isinf(ec50).sum()} inactive compounds {known[np.isinf(ec50)].sum()}")

    row, column = np.unravel_index(np.argmax(np.where(known, error, 0)), error.shape)
    one = fits.fit((row, column))
    print(f"\nThe least certain of them, {chr(65 + row)}{column + 1}:\n{one}\n")
    print(one.intervals("profile", 0.95))

    fits.plot(["pec50", "span", "slope"]).savefig("dose_response.png", dpi=130)
    chosen = [(r, c) for r in (0, 6, 12) for c in (1, 9, 17)]
    fits.plot_fits(chosen, xscale="log").savefig("dose_response_curves.png", dpi=130)
    figure = one.plot(xscale="log", xlabel="dose, mol/l", ylabel="response, %")
    figure.savefig("dose_response_compound.png", dpi=130)
    print("saved dose_response.png and, behind the same name, _curves and _compound")


if __name__ == "__main__":
    main()
