"""FitBenchmarking's controller of jaxfit."""

import numpy as np
from fitbenchmarking.controllers.base_controller import Controller
from fitbenchmarking.cost_func.nlls_cost_func import NLLSCostFunc
from fitbenchmarking.cost_func.weighted_nlls_cost_func import WeightedNLLSCostFunc

import jaxfit

MINIMIZERS = ["least_squares", "fit"]
EVALUATIONS = 500  # at most, as FitBenchmarking's controllers of SciPy


class JaxfitController(Controller):
    """jaxfit on the cost function that FitBenchmarking gives.

    Its functions are written in NumPy. jaxfit compiles them where it can, with exact
    derivatives of its own; what it cannot compile NumPy computes on the host, with
    differences. FitBenchmarking's Jacobian is not used. "least_squares" takes the path
    of SciPy's trf to SciPy's tolerances, "fit" goes its own way to the certificate of
    `jaxfit.Solution`, and computes errors too.
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
        """The function, and bounds."""
        size = len(self.initial_params)
        pairs = self.value_ranges or [(-np.inf, np.inf)] * size
        self.limits = tuple(np.transpose(pairs))
        self.ranges = {f"p{i}": pair for i, pair in enumerate(pairs)}
        if self.minimizer == "fit":
            self.function = model(self.problem.function, size)
        else:
            self.function = residuals(self.cost_func)

    def fit(self):
        """What is timed."""
        if self.minimizer == "fit":
            self.result = self._fit()
            return
        self.result = jaxfit.least_squares(
            self.function,
            self.initial_params,
            bounds=self.limits,
            max_nfev=EVALUATIONS,
        )

    def _fit(self):
        try:
            fit = jaxfit.fit(
                self.function,
                self.data_x,
                self.data_y,
                p0=self.initial_params,
                sigma=self.data_e,
                bounds=self.ranges,
                options=jaxfit.Options(max_steps=EVALUATIONS),
            )
        except jaxfit.FitError as error:
            return error.fit.numbers
        return fit.numbers

    def cleanup(self):
        """The result as FitBenchmarking reads it; a flag of 2 is no success."""
        self.flag = 0 if self.result.success else 2
        self.func_evals = int(self.result.nfev)
        self.final_params = np.asarray(self.result.x, float)


def model(function, size):
    """The same function with its parameters named, which `fit` asks for."""
    names = ", ".join(f"p{i}" for i in range(size))
    return eval(f"lambda x, {names}: function(x, {names})", {"function": function})


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
