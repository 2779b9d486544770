"""What a row costs: robust losses of residuals, likelihoods of predictions."""

from jaxfit.losses._amplitudes import Gamma, Rician, StudentT
from jaxfit.losses._counts import Binomial, Poisson, PoissonGaussian
from jaxfit.losses._likelihood import (
    ExpectedDeviance,
    Likelihood,
    LikelihoodTerms,
    Prediction,
)
from jaxfit.losses._robust import Arctan, Cauchy, Huber, Linear, Loss, SoftL1, Tukey

__all__ = [
    "Arctan",
    "Binomial",
    "Cauchy",
    "ExpectedDeviance",
    "Gamma",
    "Huber",
    "Likelihood",
    "LikelihoodTerms",
    "Linear",
    "Loss",
    "Poisson",
    "PoissonGaussian",
    "Prediction",
    "Rician",
    "SoftL1",
    "StudentT",
    "Tukey",
]
