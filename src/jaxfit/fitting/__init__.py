"""The face for people: fits by name, their results, intervals and pictures."""

from jaxfit.fitting._batch_fit import BatchFit, fit_batch
from jaxfit.fitting._fit import Fit, FitError, Parameter, fit
from jaxfit.fitting._xarray import curvefit

__all__ = [
    "BatchFit",
    "Fit",
    "FitError",
    "Parameter",
    "curvefit",
    "fit",
    "fit_batch",
]
