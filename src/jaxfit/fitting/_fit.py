"""`fit`: a model with named parameters and one data set, from start to result."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxfit._core.auto_scale import has_own_scale
from jaxfit._core.certificate import Status
from jaxfit._core.options import Options, check_loss
from jaxfit.fitting._arguments import (
    check_derivatives,
    method_from,
    problem_from,
)
from jaxfit.fitting._bins import bins_of
from jaxfit.fitting._errors_in_x import (
    check_method_with_errors,
    check_unwatched,
    with_errors_in_x,
)
from jaxfit.fitting._functions import Asked, with_functions
from jaxfit.fitting._likelihood import (
    check_exact_x,
    out_of_range,
    with_likelihood,
)
from jaxfit.fitting._multistart import best_of_many
from jaxfit.fitting._own_scale import check_scale_can_be_found, with_found_scale
from jaxfit.fitting._points import DataSet, Observed, observed
from jaxfit.fitting._problem import Method, from_middle, starts_about
from jaxfit.fitting._result import Fit
from jaxfit.fitting._run import fit_numbers, not_finite
from jaxfit.fitting._several import SeveralData, model_of
from jaxfit.fitting._watched import Step, Watch, watched_numbers
from jaxfit.fitting.output import _report
from jaxfit.interop.lmfit import Terms, without_lmfit
from jaxfit.losses import Likelihood, Loss
from jaxfit.models import as_model

CREEP = 0.01  # in units of chi-square: a tenth of a standard error, no gain any more


class FitError(RuntimeError):
    """A fit that did not end at a solution; `fit` has where it stood."""

    def __init__(self, message: str, fit: Fit):
        super().__init__(message, fit)  # both, so that a copy can be made from them
        self.fit = fit

    def __str__(self) -> str:
        return self.args[0]


def fit(
    model: Any,
    x: PyTree = None,
    y: Any = None,
    *,
    edges: Any = None,
    sigma: Any = None,
    sigma_x: Any = None,
    p0: Any = None,
    bounds: Any = None,
    fixed: Any = None,
    loss: Loss | Likelihood | None = None,
    options: Options | None = None,
    nan_policy: str = "raise",
    tie: Mapping[str, Any] | None = None,
    prior: Mapping[Any, Any] | None = None,
    absolute_sigma: bool = False,
    starts: int = 1,
    seed: int = 0,
    covariance: str | None = None,
    rowwise: bool = False,
    callback: Callable[[Step], Any] | None = None,
    time_limit: float | None = None,
    local: str | Iterable[str] = (),
    host: bool = False,
) -> Fit:
    """Fit a model with named parameters to one data set, or to several together.

    Several, of any lengths, are a list of x and a list of y, both of arrays, or in
    place of x and y one list of pairs (x, y). They share all parameters but for
    `local`. Residuals and `best_fit` are lists then, and `predict`, bands and
    `components` take `data_set=k`, counted from 1. (A list of numbers is an array, a
    tuple of arrays several coordinates, and a list of lists of one length an array.)

    Computed in float64 whatever JAX's setting is; compiled once for a model and the
    shapes of its data.

    Args:
        model: one of `jaxfit.models`, a sum or product of them, a plain function
            `f(x, a, b, ...)` in NumPy or `jax.numpy`, a text such as "gaussian +
            linear", or a `Model` of lmfit.
        x: coordinates of the shape of `y`; for several coordinates a tuple of arrays
            that broadcast to it. For a plain function whatever it takes. Dates (of
            NumPy, pandas or Python; with a time zone by UTC) become days since the
            first, or seconds if they span less than two days; spans of time likewise.
            The report says which.
        y: data, of any shape. Points that are masked in x, y or sigma are left out.
            Complex data go with a model that returns complex numbers: real and
            imaginary parts count by themselves, 2m numbers of m points.
        edges: of bins, in place of x, one more than `y` has values: `fit(model,
            y=counts, edges=edges)`, as `np.histogram` has them. The model is then a
            density, integrated over each bin (exactly where it knows its integral, else
            by five nodes), and `best_fit`, bands and pictures are those of bins;
            `predict` takes edges. It matters where bins are wide beside the structure:
            the value at the middle of a bin as wide as a peak's standard deviation is
            4 % too high. For several coordinates a tuple of edges, one for each axis of
            `y`. Not with `sigma_x`, dates or several data sets.
        sigma: standard errors of `y`, one or one for each point, of complex `y` those
            of each part; infinite ones leave their point out. Or, for a `y` of shape
            (m,), its covariance matrix (m, m), with variances on its diagonal, where
            standard errors are their roots. Only ratios count unless `absolute_sigma`.
            With a covariance matrix L Lᵀ points that are left out are dropped from the
            result too, and chi-square, losses, sandwich and standardised residuals are
            those of L⁻¹ (y - model).
        sigma_x: standard errors of x, for orthogonal distance regression (Boggs, Byrd
            and Schnabel, SIAM J. Sci. Stat. Comput. 8, 1987): each point may move along
            x too, and the sum of ((y - model(x + δ)) / sigma)² + (δ / sigma_x)² over
            all points is the least. One number, an array of the shape of x, or for
            several coordinates a tuple of such; None or 0 where x is exact. Needs
            `sigma`: only the ratios of all errors count unless `absolute_sigma`. Errors
            of parameters are those of (JᵀWJ)⁻¹ over parameters and all δ, times chi² /
            (points - parameters) unless `absolute_sigma`, as in ODRPACK. The model
            treats each point by itself. Not with a loss, a covariance of y, complex y
            or several data sets. `Fit.x_corrections` has δ.
        p0: starts by name, or one for each parameter in order. What is not given is
            guessed from the data, or 1 for a plain function without defaults. Or
            lmfit's `Parameters`, with their bounds, `vary` and expressions.
        bounds: (lower, upper) by name, None for none; in place of the model's own.
        fixed: values by name, or names that are fixed at their p0.
        loss: a robust loss of `jaxfit.losses`, in units of sigma; `Huber("auto")` and
            `Tukey("auto")` find their scale from the residuals. Or a likelihood, such
            as `losses.Poisson()` where y are counts, which knows the errors of y by
            itself: sigma is refused. A number of a likelihood may be an array of the
            shape of y, as in `losses.Binomial(trials)`.
        options: tolerances, see `jaxfit.Options`.
        nan_policy: "raise", or "omit" to leave out points with NaN.
        tie: by name a function of the other parameters, such as
            {"b_width": lambda p: p["a_width"]}, or the name of one. The model's bounds
            hold for what is tied too: a fit that ends outside has failed.
        prior: (mean, standard deviation) by name: one further residual each,
            (parameter - mean) / deviation, in units of sigma. Or (means, covariance
            matrix) by a tuple of names, {("a", "b"): ([1, 2], [[4, 1], [1, 9]])}, such
            as the result and `covariance` of an earlier fit: with L Lᵀ the covariance,
            the residuals L⁻¹ (parameters - means).
        absolute_sigma: sigma is known; otherwise it is scaled so that the reduced
            chi-square is 1, as in SciPy and lmfit.
        starts: fit from that many starts, guesses from parts of the data and
            quasi-random ones inside the bounds or around the guess, and keep the best;
            `Fit.minima` tells what was found.
        seed: of these starts.
        covariance: "gram", the inverse Gram matrix, with a likelihood the inverse
            expected information; "observed", the inverse of the cost's exact second
            derivatives (the observed information); "sandwich"; or None: the sandwich
            with a robust loss, and else "gram".
        rowwise: a function of your own treats each point by itself, as the models of
            the library do, so that another number of points compiles nothing.
        callback: called after each accepted step with a `jaxfit.fitting.Step`, whose
            `values` are the parameters by name; it has `chi_square`, `nfev` and
            `number` too. If it returns True or raises StopIteration, the fit ends. The
            fit then runs one compiled step at a time.
        local: of several data sets, the parameters that each has by itself, such as
            "height", which then are `height_1`, `height_2`; settings by the name
            "height" are for all of them.
        time_limit: seconds for the fit from its first evaluation, without compiling;
            looked at between steps, of which the last is finished.
        host: let NumPy compute functions of your own, without being told.

    Returns:
        A `Fit`. `print` it.

    Raises:
        ValueError, TypeError: for arguments that cannot be fitted.
        FitError: the fit found no solution, or was stopped; its attribute `fit` has
            where it stood.

    Warns:
        HostModelWarning: a function of your own cannot be compiled, why, and where.
    """
    given = without_lmfit(Terms(model, p0, bounds, fixed, tie))
    check_loss(loss)
    watch = Watch.of(callback, time_limit, starts)
    model = as_model(given.model)
    terms = {
        "p0": given.p0,
        "bounds": given.bounds,
        "fixed": given.fixed,
        "tie": given.tie,
        "prior": prior,
    }
    if edges is not None:
        bins = bins_of(model, x, y, edges, sigma_x)
        model, x = bins.model, bins.x
    check_exact_x(sigma_x, loss)
    several = SeveralData.of(x, y, sigma)
    if several is not None:
        seen = several.seen(nan_policy)
        model = model_of(model, seen, local)
        terms = {
            name: model.expanded_prior(term)
            if name == "prior"
            else model.expanded(term)
            for name, term in terms.items()
        }
    elif local != ():
        raise ValueError(f"local is {local!r}, and there is one data set.")
    else:
        seen = observed(x, y, sigma, nan_policy)
    seen = with_likelihood(with_errors_in_x(seen, sigma_x), loss)
    asked = problem_from(model, rowwise=rowwise, **terms)
    seen.check_enough()
    method = method_from(loss, options, absolute_sigma, covariance)
    check_method_with_errors(seen, method)
    runs = _Runs(asked.starts, seen, method, watch, starts, seed)
    result = with_functions(asked, seen.data.x, runs.fitted, bool(host))
    if not result.success:
        raise FitError(_report.failure(result), result)
    return result


class _Runs(NamedTuple):
    """What is asked of a fit besides its problem."""

    given: dict[str, Any]  # starts by name
    seen: Observed
    method: Method
    watch: Watch | None
    starts: int
    seed: int

    def fitted(self, asked: Asked) -> Fit:
        """The fit, wherever it ended."""
        seen, method, watch = self.seen, asked.method(self.method), self.watch
        problem = from_middle(asked.problem.for_data(seen), self.given, seen.data.x)
        given = starts_about(problem, self.given)
        check_unwatched(seen, watch is not None, asked.is_on_host)
        check_derivatives(method, asked.is_on_host)
        data_set, minima = seen.data_set._replace(starts=given), None
        if has_own_scale(method.loss):
            check_scale_can_be_found(asked.is_on_host)
            method = with_found_scale(problem, data_set, method)
        if self.starts != 1:
            best = best_of_many(problem, data_set, method, self.starts, self.seed)
            data_set, minima = best.data_set, best.minima
        if watch is None and asked.is_on_host:
            watch = Watch(None, None)
        if watch is None:
            numbers, remarks = fit_numbers(problem, data_set, method), ()
        else:
            numbers, remarks = watched_numbers(asked, problem, data_set, method, watch)
        asked.check(seen.data, numbers)
        result = Fit(
            problem=problem,
            observed=seen,
            method=method,
            numbers=numbers,
            minima=minima,
            remarks=remarks,
        )
        is_limited = watch is not None and watch.time_limit is not None
        if result.status == Status.MAX_STEPS and not is_limited:
            result = dataclasses.replace(result, remarks=_creeping(result, data_set))
        if result.status == Status.NONFINITE_START:
            wrong = not_finite(problem, data_set, result.numbers)
            wrong = out_of_range(seen, result.numbers.best) or wrong
            result = dataclasses.replace(result, remarks=(f"There {wrong}.",))
        return result


def _creeping(result: Fit, data_set: DataSet) -> tuple[str, ...]:
    """What moved, if the last half of all evaluations gained nothing.

    Where the best fit lies at infinity (a step between two points, a rate of zero) the
    cost comes to rest and the parameters do not: no gradient tells, but the way does.
    """
    options = dataclasses.replace(
        result.method.options or Options(), max_steps=max(result.nfev // 2, 1)
    )
    half = fit_numbers(
        result.problem, data_set, result.method._replace(options=options)
    )
    gained = max(2 * (half.cost - result.numbers.cost), 0.0)  # but for rounding
    scale = 1.0 if result.absolute_sigma else result.reduced_chi_square
    if not gained < CREEP * scale:
        return ()
    before, after = half.x, result.numbers.x
    size = np.maximum(np.abs(after), np.abs(before))
    moved = np.abs(after - before) / np.where(size > 0, size, 1)
    far = [k for k, part in enumerate(moved) if part >= 0.1 * np.max(moved) > 0]
    ways = [f"{result.varied[k]} from {before[k]:.4g} to {after[k]:.4g}" for k in far]
    if not ways:
        return ()
    what = "the deviance" if result.is_judged else "chi-square"
    return (
        f"The last {result.nfev - half.nfev} evaluations lowered {what} by "
        f"{gained:.1g} and took {', '.join(ways)}: the data do not determine where "
        "that ends, as with a plateau, a step or a rate beyond them. Fix or bound it, "
        "or simplify the model.",
    )
