"""FitBenchmarking's controller of jaxfit."""

import numpy as np
from fitbenchmarking.controllers.base_controller import Controller
from fitbenchmarking.cost_func.nlls_cost_func import NLLSCostFunc
from fitbenchmarking.cost_func.weighted_nlls_cost_func import WeightedNLLSCostFunc

import jaxfit

MINIMIZERS = ["trf", "trf-tight"]
TOLERANCES = {"trf": 1e-8, "trf-tight": 1e-15}


class JaxfitController(Controller):
    """`jaxfit.least_squares` on the cost function that FitBenchmarking gives.

    Its functions are written in NumPy. jaxfit compiles them where it can, with exact
    derivatives of its own; what it cannot compile NumPy computes on the host, with
    differences. FitBenchmarking's Jacobian is not used. "trf" has the tolerances of
    SciPy, 1e-8, "trf-tight" 1e-15, at which rounding ends a fit.
    """

    controller_name = "jaxfit"
    algorithm_check = {
        **{name: [] for name in Controller.algorithm_check},
        "all": MINIMIZERS,
        "ls": MINIMIZERS,
        "trust_region": MINIMIZERS,
    }
    support_for_bounds = True

    def setup(self):
        """Residuals, the start and bounds."""
        self.residuals = residuals(self.cost_func)
        self.limits = (-np.inf, np.inf)
        if self.value_ranges is not None:
            self.limits = tuple(np.transpose(self.value_ranges))

    def fit(self):
        """What is timed."""
        tolerance = TOLERANCES[self.minimizer]
        self.result = jaxfit.least_squares(
            self.residuals,
            self.initial_params,
            bounds=self.limits,
            ftol=tolerance,
            xtol=tolerance,
            gtol=tolerance,
            max_nfev=500,
        )

    def cleanup(self):
        """The result as FitBenchmarking reads it; a flag of 1 is the limit of trips."""
        status = self.result.status
        self.flag = 0 if status > 0 else 1 if status == 0 else 2
        self.func_evals = int(self.result.nfev)
        self.final_params = np.asarray(self.result.x)


def residuals(cost_func):
    """The residuals of a cost function, made of what they depend on and no more.

    jaxfit reads on every call what a function is made of; behind `eval_r` that is the
    problem with its options, which takes longer than most of the fits.
    """
    problem = cost_func.problem
    function, x, y, e = (
        problem.function,
        problem.data_x,
        problem.data_y,
        problem.data_e,
    )
    if type(cost_func) is NLLSCostFunc:
        return lambda p: np.ravel(y - function(x, *p))
    if type(cost_func) is WeightedNLLSCostFunc:
        return lambda p: np.ravel((y - function(x, *p)) / e)
    return cost_func.eval_r
