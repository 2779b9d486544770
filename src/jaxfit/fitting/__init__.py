"""The face for people: fits by name, their results, intervals and pictures."""

from jaxfit.fitting._batch_fit import fit_batch
from jaxfit.fitting._batch_result import BatchFit
from jaxfit.fitting._fit import FitError, fit
from jaxfit.fitting._fitted import Parameter
from jaxfit.fitting._incidental import IncidentalParametersWarning
from jaxfit.fitting._result import Fit
from jaxfit.fitting._watched import Step
from jaxfit.fitting._xarray import curvefit

__all__ = [
    "BatchFit",
    "Fit",
    "FitError",
    "IncidentalParametersWarning",
    "Parameter",
    "Step",
    "curvefit",
    "fit",
    "fit_batch",
]
