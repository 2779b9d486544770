"""What a row costs: robust losses of residuals, likelihoods of predictions."""

from jaxfit.losses._counts import Poisson
from jaxfit.losses._likelihood import (
    ExpectedDeviance,
    Likelihood,
    LikelihoodTerms,
    Prediction,
)
from jaxfit.losses._robust import Arctan, Cauchy, Huber, Linear, Loss, SoftL1, Tukey

__all__ = [
    "Arctan",
    "Cauchy",
    "ExpectedDeviance",
    "Huber",
    "Likelihood",
    "LikelihoodTerms",
    "Linear",
    "Loss",
    "Poisson",
    "Prediction",
    "SoftL1",
    "Tukey",
]
