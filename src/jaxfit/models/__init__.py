"""Models with named parameters that add up, multiply, and guess their own start."""

from jaxfit._numpy.faddeeva import faddeeva
from jaxfit.models._compose import Product, Sum
from jaxfit.models._curves import (
    Arrhenius,
    BiExponential,
    Constant,
    Exponential,
    FourParameterLogistic,
    Hill,
    Linear,
    MichaelisMenten,
    Polynomial,
    PowerLaw,
    Quadratic,
    StretchedExponential,
)
from jaxfit.models._images import EllipticGaussian2D, Gaussian2D
from jaxfit.models._model import FunctionModel, Model
from jaxfit.models._parse import as_model, parse
from jaxfit.models._peaks import (
    BreitWigner,
    Doniach,
    ExponentialGaussian,
    Gaussian,
    Lorentzian,
    Moffat,
    Pearson7,
    PseudoVoigt,
    SkewedGaussian,
    Voigt,
)
from jaxfit.models._waves import (
    DampedOscillator,
    DampedSine,
    Gompertz,
    Logistic,
    Sine,
    Step,
)

__all__ = [
    "Arrhenius",
    "BiExponential",
    "BreitWigner",
    "Constant",
    "DampedOscillator",
    "DampedSine",
    "Doniach",
    "EllipticGaussian2D",
    "Exponential",
    "ExponentialGaussian",
    "FourParameterLogistic",
    "FunctionModel",
    "Gaussian",
    "Gaussian2D",
    "Gompertz",
    "Hill",
    "Linear",
    "Logistic",
    "Lorentzian",
    "MichaelisMenten",
    "Model",
    "Moffat",
    "Pearson7",
    "Polynomial",
    "PowerLaw",
    "Product",
    "PseudoVoigt",
    "Quadratic",
    "Sine",
    "SkewedGaussian",
    "Step",
    "StretchedExponential",
    "Sum",
    "Voigt",
    "as_model",
    "faddeeva",
    "parse",
]
