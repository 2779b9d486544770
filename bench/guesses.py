"""How often a guess leads to a wrong minimum: `python -m bench.guesses [--count 100]`.

Data sets are simulated, and each is fitted from the model's own guess; those that end
wrong are fitted again with several starts. An end is wrong if its chi-square is 5 %
above that of the true parameters, or if the fit is refused and the one that starts at
the truth is not. The table is that of docs/guides/guesses.md.
"""

import argparse
import fnmatch
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

import jaxfit
from bench.report import ROOT, markdown
from jaxfit import models
from jaxfit.models import Model

sys.path.append(str(ROOT / "tests"))
from simulated import CASES

WRONG = 1.05  # chi-square, in that of the truth
BACKGROUNDS = {
    "nothing": None,
    "constant": models.Constant(prefix="bg_"),
    "linear": models.Linear(prefix="bg_"),
    "quadratic": models.Quadratic(prefix="bg_"),
}
DEGREES = {"nothing": -1, "constant": 0, "linear": 1, "quadratic": 2}


class Sets(NamedTuple):
    """Simulated data sets of one kind."""

    name: str
    model: Model
    x: np.ndarray
    truth: dict[str, np.ndarray]  # (N,) by name
    y: np.ndarray  # (N, m), NaN where there is none
    deviation: np.ndarray  # (N,), of the errors


def beside(
    name: str,
    curve: Model,
    x: np.ndarray,
    truth: dict[str, np.ndarray],
    noise: np.ndarray,
    background: str = "nothing",
    rise: float = 2.0,
    missing: str = "nothing",
    seed: int = 0,
) -> Sets:
    """Data sets of a curve on a background.

    Args:
        rise: of the background over the range of x, in ranges of the curve.
        noise: standard deviation (N,).
        missing: "nothing", or the "gap" or "scattered" points that are left out.
    """
    random = np.random.default_rng(seed + 1)
    number, degree = len(noise), DEGREES[background]
    values = np.stack(
        [curve(x, {k: v[i] for k, v in truth.items()}) for i in range(number)]
    )
    size = np.ptp(values, axis=1)
    part = BACKGROUNDS[background]
    model = curve if part is None else curve + part
    if part is not None:
        along = 2 * (x - x.min()) / np.ptp(x) - 1
        powers = 0.5 * rise * size * random.uniform(-0.7, 0.7, (degree + 1, number))
        powers[0] = size * random.uniform(-4, 4, number)
        if degree > 0:
            powers[1] = 0.5 * rise * size * random.choice([-1, 1], number)
        own = [
            np.polynomial.Polynomial(row, (x.min(), x.max()), (-1, 1)).convert().coef
            for row in powers.T
        ]
        own = np.array([np.pad(row, (0, degree + 1 - len(row))) for row in own])
        truth = truth | dict(zip(part.names, own.T[::-1], strict=True))
        values = values + np.polynomial.polynomial.polyval(along, powers)
    y = values + noise[:, None] * random.normal(size=values.shape)
    if missing == "gap":
        y[:, int(0.3 * len(x)) : int(0.63 * len(x))] = np.nan
    if missing == "scattered":
        y[random.random(y.shape) < 0.3] = np.nan
    name = f"{name} on {background}" if part is not None else name
    return Sets(name, model, x, truth, y, noise)


def curves(count: int) -> Iterator[Callable[[], Sets]]:
    """Every curve of the library on every background."""
    for case in CASES:
        if isinstance(case.x, tuple) or case.model.is_background:
            continue
        for background in BACKGROUNDS:

            def build(case=case, background=background):
                truth, y = case.draw(count, seed=1)
                noise = 0.5 * case.noise * np.ptp(y, axis=1)
                x = np.asarray(case.x)
                return beside(
                    case.name, case.model, x, truth, noise, background, seed=5
                )

            yield build


def wave(
    count: int,
    damped: bool = False,
    background: str = "linear",
    rise: float = 3.0,
    missing: str = "nothing",
    points: int = 200,
    uneven: bool = False,
    error: float = 0.1,
) -> Sets:
    """Sines, or damped ones of at least one and a half periods in their lifetime."""
    random = np.random.default_rng(0)
    periods = random.uniform(1.5 if damped else 0.6, points / 5, count)
    truth = {
        "amplitude": random.uniform(0.5, 5, count),
        "frequency": periods / 10,
        "phase": random.uniform(-3, 3, count),
    }
    if damped:
        most = np.minimum(12, np.maximum(0.6 * periods, 0.4))
        logarithm = random.uniform(math.log(0.3), np.log(most))
        truth["rate"] = np.exp(logarithm) / 10
    x = np.linspace(0, 10, points)
    if uneven:
        x = np.sort(random.uniform(0, 10, points))
    return beside(
        f"{'damped ' if damped else ''}sine, {points} points"
        + (", uneven" if uneven else "")
        + (f", {missing}" if missing != "nothing" else "")
        + f", rise {rise:g}",
        models.DampedSine() if damped else models.Sine(),
        x,
        truth,
        error * truth["amplitude"],
        background,
        rise=rise / 2,
        missing=missing,
    )


def waves(count: int) -> Iterator[Callable[[], Sets]]:
    """Plain and damped sines on slopes, with gaps, at few and at uneven points."""
    for rise in (3, 10, 50):
        yield lambda rise=rise: wave(count, rise=rise)
    yield lambda: wave(count, background="quadratic", rise=30)
    yield lambda: wave(count, rise=10, uneven=True)
    yield lambda: wave(count, rise=10, missing="gap")
    yield lambda: wave(count, rise=10, points=24)
    for settings in (
        {},
        {"background": "quadratic"},
        {"missing": "gap"},
        {"uneven": True},
    ):
        yield lambda settings=settings: wave(count, True, error=0.03, **settings)


def pair(
    count: int, apart: float, ratio: float, background: str, kind=models.Gaussian
) -> Sets:
    """Two peaks of one width, a number of widths apart."""
    random = np.random.default_rng(0)
    width, center = random.uniform(0.5, 1.5, count), random.uniform(4, 6, count)
    height = random.uniform(1, 5, count)
    truth = {"a_height": height, "a_center": center, "a_width": width}
    truth |= {
        "b_height": ratio * height,
        "b_center": center + apart * width,
        "b_width": width,
    }
    return beside(
        f"2 {kind.__name__}s {apart:g} widths apart, heights 1 and {ratio:.2f}",
        kind(prefix="a_") + kind(prefix="b_"),
        np.linspace(0, 20, 101),
        truth,
        0.02 * height,
        background,
        rise=1.0,
    )


def several(
    count: int,
    number: int,
    background: str = "linear",
    apart: tuple[float, float] = (2.5, 6.0),
    both_signs: bool = False,
    missing: str = "nothing",
) -> Sets:
    """Gaussians of different widths and heights, 0.3 to 1."""
    random = np.random.default_rng(number)
    width = np.exp(random.uniform(-1, 1, (count, number)) * math.log(1.4))
    steps = random.uniform(*apart, (count, number - 1))
    steps = steps * 0.5 * (width[:, 1:] + width[:, :-1])
    center = np.cumsum(np.concatenate([np.zeros((count, 1)), steps], axis=1), axis=1)
    span = 12 + apart[1] * (number - 1)
    center += 0.5 * (span - center[:, -1:]) * random.uniform(0.6, 1.4, (count, 1))
    height = 5 * np.exp(random.uniform(math.log(0.3), 0, (count, number)))
    if both_signs:
        height *= random.choice([-1, 1], height.shape)
    curve, truth = None, {}
    for k in range(number):
        one = models.Gaussian(prefix=f"p{k}_")
        curve = one if curve is None else curve + one
        columns = height[:, k], center[:, k], width[:, k]
        truth |= dict(zip(one.names, columns, strict=True))
    assert curve is not None
    return beside(
        f"{number} {'peaks and dips' if both_signs else 'peaks'} "
        f"{apart[0]:g} to {apart[1]:g} widths apart"
        + (f", {missing}" if missing != "nothing" else ""),
        curve,
        np.linspace(0, span, int(8 * span)),
        truth,
        np.full(count, 0.1),
        background,
        rise=1.0,
        missing=missing,
    )


def peaks(count: int) -> Iterator[Callable[[], Sets]]:
    """Two and more peaks."""
    for apart, ratio in ((2.4, 1.0), (2.4, 0.5), (2.4, 1 / 3), (2.5, 0.5), (3, 0.5)):
        for background in ("nothing", "linear"):
            yield lambda a=(apart, ratio, background): pair(count, *a)
    yield lambda: pair(count, 2.5, 0.5, "quadratic")
    yield lambda: pair(count, 2.5, 0.5, "linear", models.Lorentzian)
    for number in (3, 4, 5, 6):
        yield lambda number=number: several(count, number)
    yield lambda: several(count, 3, "nothing")
    yield lambda: several(count, 3, "quadratic")
    yield lambda: several(count, 3, missing="scattered")
    yield lambda: several(count, 3, apart=(3.5, 6.0), both_signs=True)
    yield lambda: several(max(count // 4, 1), 16, apart=(7.0, 9.0))


FAMILIES = {"waves": waves, "peaks": peaks, "curves": curves}


class Tally(NamedTuple):
    """What became of data sets."""

    wrong: int
    still_wrong: int  # with more starts
    number: int


def tally(sets: Sets, starts: int) -> Tally:
    """How many data sets end wrong, from the guess and then from several starts."""
    wrong = still = 0
    for k, y in enumerate(sets.y):
        truth = {name: values[k] for name, values in sets.truth.items()}
        residual = (np.asarray(sets.model(sets.x, truth)) - y) / sets.deviation[k]
        expected = float(np.nansum(residual**2))
        if not _ends_wrong(sets, k, truth, expected):
            continue
        wrong += 1
        still += starts < 2 or _ends_wrong(sets, k, truth, expected, starts=starts)
    return Tally(wrong, still, len(sets.y))


def _ends_wrong(sets: Sets, k: int, truth, expected: float, **settings) -> bool:
    success, end = _fitted(sets, k, **settings)
    if success:
        return end > WRONG * expected
    return _fitted(sets, k, p0=truth)[0]


def _fitted(sets: Sets, k: int, **settings) -> tuple[bool, float]:
    """Whether a fit succeeds, and its chi-square."""
    settings |= {"sigma": sets.deviation[k], "nan_policy": "omit"}
    try:
        fit = jaxfit.fit(sets.model, sets.x, sets.y[k], **settings)
    except jaxfit.FitError:
        return False, math.inf
    return True, fit.chi_square


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="data sets of each kind")
    parser.add_argument(
        "--starts", type=int, default=16, help="1: from the guess alone"
    )
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--only", default="*", help="names, as a pattern")
    arguments = parser.parse_args()
    rows = []
    for family in arguments.family or FAMILIES:
        for build in FAMILIES[family](arguments.count):
            sets = build()
            if not fnmatch.fnmatch(sets.name, arguments.only):
                continue
            begin = time.perf_counter()
            found = tally(sets, arguments.starts)
            rows.append((sets.name, found.number, found.wrong, found.still_wrong))
            seconds = time.perf_counter() - begin
            print(*rows[-1], f"{seconds:.0f} s", sep="\t", file=sys.stderr, flush=True)
    more = f"wrong with starts={arguments.starts}"
    print(markdown(("data", "sets", "wrong", more), rows))


if __name__ == "__main__":
    main()
