"""`JaxFitter`: our fit as a fitter of astropy's models.

    fitter = JaxFitter(calc_uncertainties=True)
    fitted = fitter(model, x, y, weights=1 / sigma)

Called as astropy's own fitters are, with what they do about fixed, bounded and tied
parameters, weights, units and points that are not finite.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from astropy.modeling import fitting
from astropy.modeling.core import Model  # while astropy imports us, it stands here only
from astropy.utils.exceptions import AstropyUserWarning

from jaxfit._scipy.curve_fit import curve_fit
from jaxfit._scipy.least_squares import least_squares
from jaxfit.interop._astropy_models import Residuals


class JaxFitter(fitting.Fitter):
    """Trust Region Reflective least squares with exact derivatives, compiled.

    The fit is that of `jaxfit.curve_fit`: a success is a certificate. A model of the
    same structure, fitted to as many points, is compiled once.

    Args:
        calc_uncertainties: set `cov_matrix` and `stds` of the fitted model.

    Attributes:
        fit_info: of the latest fit: success, message, status, nfev, fvec, param_cov
            (None where no degree of freedom is left).
    """

    supported_constraints = ["fixed", "tied", "bounds"]

    def __init__(self, calc_uncertainties: bool = False) -> None:
        self.fit_info: dict[str, Any] = {}
        self._calc_uncertainties = calc_uncertainties

    @fitting.fitter_unit_support
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: Model,
        x: Any,
        y: Any,
        z: Any = None,
        weights: Any = None,
        maxiter: int | None = None,
        acc: float | None = None,
        epsilon: float | None = None,
        estimate_jacobian: bool = False,
        filter_non_finite: bool = False,
        *,
        inplace: bool = False,
    ) -> Model:
        """Fit a model to data.

        Args:
            model: an astropy model with one output; fixed, bounded and tied parameters
                are respected.
            x, y: data, and for a model of two coordinates `z`: x and y are then these.
            weights: what residuals are multiplied with, 1/sigma: the covariance is then
                that of known errors.
            maxiter: the largest number of evaluations of the model.
            acc: a relative tolerance, SciPy's `xtol` and `ftol`; None for all digits.
            epsilon: a relative step, where a model that cannot be compiled is
                differentiated by differences.
            estimate_jacobian: accepted; derivatives are exact.
            filter_non_finite: leave out points that are not finite.
            inplace: change the model itself, not a copy.

        Returns:
            The fitted model.

        Warns:
            AstropyUserWarning: the fit found no solution: see `fit_info`.
        """
        fitted = fitting._validate_model(
            model, self.supported_constraints, copy=not inplace
        )
        if model.n_outputs != 1:
            raise ValueError(
                f"The model has {model.n_outputs} outputs, {model.outputs}; one that "
                "is fitted has one."
            )
        fitted.sync_constraints = False
        arrays = fitting._convert_input(x, y, z)
        weights = None if weights is None else np.asarray(weights, float)
        data = _Data.of(*arrays, weights=weights, omit=filter_non_finite)
        start, _, bounds = fitting.model_to_fit_params(fitted)
        if not len(start):
            raise ValueError("Every parameter is fixed or tied; let one vary.")
        settings = {
            "p0": start,
            "bounds": tuple(np.array(side, float) for side in bounds),
            "method": "trf",
            "max_nfev": maxiter,
        }
        if acc is not None:
            settings |= {"xtol": acc, "ftol": acc}
        if epsilon is not None:
            settings["diff_step"] = epsilon
        residuals = Residuals.of(fitted)
        x, self.fit_info = _solved(
            residuals, data, np.array(fitted.parameters), settings
        )
        fitting.fitter_to_model_params(fitted, x, False)
        if not self.fit_info["success"]:
            warnings.warn(
                f"The fit may be unsuccessful; check: \n    {self.fit_info['message']}",
                AstropyUserWarning,
                stacklevel=3,
            )
        covariance = self.fit_info["param_cov"]
        if self._calc_uncertainties and covariance is not None:
            _write_uncertainties(fitted, covariance)
        fitted.sync_constraints = True
        return fitted


def _write_uncertainties(model: Model, covariance: np.ndarray) -> None:
    """Write the covariance of the free parameters into the model, as astropy does."""
    names = [n for n in model.param_names if not (model.fixed[n] or model.tied[n])]
    model.cov_matrix = fitting.Covariance(covariance, names)
    model.stds = fitting.StandardDeviations(covariance, names)


def _solved(
    residuals: Callable, data: "_Data", parameters: np.ndarray, settings: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Where a fit ended, and what is told of it."""
    points = data._asdict() | {"parameters": parameters}
    number, is_absolute = data.observed.size, data.weights is not None
    try:
        x, covariance, details, message, status = curve_fit(
            residuals,
            points,
            np.zeros(number),
            absolute_sigma=is_absolute,
            full_output=True,
            **settings,
        )
    except RuntimeError as error:
        details = _where_it_stood(residuals, points, settings)
        x, covariance, message, status = details.x, None, str(error), 0
    if not (is_absolute or number > len(x)):
        covariance = None
    return x, {
        "success": status > 0,
        "message": message,
        "status": status,
        "nfev": details["nfev"],
        "fvec": details["fvec" if status > 0 else "fun"],
        "param_cov": covariance,
    }


def _where_it_stood(
    residuals: Callable, points: dict[str, Any], settings: dict[str, Any]
) -> Any:
    """The end of a fit that found no solution, by SciPy's tests."""
    start, others = settings["p0"], {k: v for k, v in settings.items() if k != "p0"}
    return least_squares(
        lambda p, points: residuals(points, *p),
        start,
        x_scale="jac",
        args=(points,),
        **others,
    )


class _Data(NamedTuple):
    """The points of a fit, flat, without those that are masked."""

    coordinates: tuple[np.ndarray, ...]
    observed: np.ndarray
    weights: np.ndarray | None

    @classmethod
    def of(cls, *arrays: Any, weights: Any, omit: bool) -> "_Data":
        """Coordinates, observations and weights, of which all or none may be NaN."""
        *coordinates, observed = map(np.asarray, arrays)
        if weights is not None:
            weights = np.broadcast_to(np.asarray(weights, float), observed.shape)
        known = [*coordinates, observed, *([] if weights is None else [weights])]
        is_seen = ~np.logical_or.reduce([*map(np.ma.getmaskarray, arrays)])
        is_finite = np.logical_and.reduce([np.isfinite(array) for array in known])
        is_kept = is_seen & is_finite
        if not is_kept.any():
            raise ValueError("All input data or weights are non-finite or masked.")
        number = np.sum(is_seen & ~is_finite)
        if number:
            if not omit:
                raise fitting.NonFiniteValueError(
                    f"{number} of {is_finite.size} points are not finite "
                    "in x, y, z or weights. Leave them out, filter_non_finite=True."
                )
            warnings.warn(
                "Non-Finite input data has been removed by the fitter.",
                AstropyUserWarning,
                stacklevel=4,
            )
        kept = [np.array(array[is_kept], float) for array in known]
        *coordinates, observed = kept[: len(arrays)]
        return cls(tuple(coordinates), observed, None if weights is None else kept[-1])
