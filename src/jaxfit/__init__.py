"""Nonlinear least squares as one compiled JAX program."""

from jaxfit import losses, models
from jaxfit._batch.batch import solve_batch
from jaxfit._batch.blocks import solve_blocks
from jaxfit._core.certificate import Status
from jaxfit._core.options import Options
from jaxfit._core.solution import Solution
from jaxfit._core.solve import solve
from jaxfit._joint.solution import JointSolution
from jaxfit._joint.solve import solve_joint
from jaxfit._numpy.ways import HostModelWarning
from jaxfit._rows.linearization import Linearization, merge
from jaxfit._rows.table import Shared
from jaxfit._rows.ways import Chunked, Sharded, Whole
from jaxfit._scipy.curve_fit import curve_fit
from jaxfit._scipy.least_squares import least_squares
from jaxfit._stream.feed import Weighted, npy_blocks
from jaxfit._stream.joint import solve_joint_stream
from jaxfit._stream.stream import solve_stream
from jaxfit._stream.warm import subsample_start, warm_start
from jaxfit.fitting import (
    BatchFit,
    Fit,
    FitError,
    IncidentalParametersWarning,
    curvefit,
    fit,
    fit_batch,
)
from jaxfit.losses import Prediction

__all__ = [
    "BatchFit",
    "Chunked",
    "Fit",
    "FitError",
    "HostModelWarning",
    "IncidentalParametersWarning",
    "JointSolution",
    "Linearization",
    "Options",
    "Prediction",
    "Sharded",
    "Shared",
    "Solution",
    "Status",
    "Weighted",
    "Whole",
    "curve_fit",
    "curvefit",
    "fit",
    "fit_batch",
    "least_squares",
    "losses",
    "merge",
    "models",
    "npy_blocks",
    "solve",
    "solve_batch",
    "solve_blocks",
    "solve_joint",
    "solve_joint_stream",
    "solve_stream",
    "subsample_start",
    "warm_start",
]
__version__ = "0.2.0"
