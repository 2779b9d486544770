"""The keywords of `curve_fit`, as SciPy has them, checked."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxfit._core.options import DEFAULTS, Options
from jaxfit._core.rules import OURS, SCIPY_TESTS, Rules
from jaxfit._scipy import arguments
from jaxfit._scipy.watch import Watch
from jaxfit.losses import Likelihood, Loss


class Settings(NamedTuple):
    """Checked keywords."""

    tolerances: dict[str, float] | None
    max_nfev: int | None
    x_scale: Any
    loss: Any
    relative_step: Any  # of differences, for a model on the host
    verbose: int
    watch: Watch

    @property
    def rules(self) -> Rules:
        """SciPy's tests where a tolerance is given."""
        return OURS if self.tolerances is None else SCIPY_TESTS

    def options(self, n: int) -> Options:
        """The tolerances and the limit; the scale is an input of its own."""
        if self.tolerances is None and self.max_nfev is None:
            return DEFAULTS
        tolerances = self.tolerances or dict.fromkeys(("ftol", "xtol", "gtol"))
        return arguments.options(**tolerances, max_steps=self.max_nfev)


_DEFAULT_SETTINGS = Settings(
    tolerances=None,
    max_nfev=None,
    x_scale="jac",
    loss=None,
    relative_step=None,
    verbose=0,
    watch=Watch(None, 0),
)


def settings_of(
    kwargs: dict[str, Any], method: str | None, jac: Callable | str | None
) -> Settings:
    """The keywords of `least_squares` and of `leastsq`, checked."""
    arguments.one_of("method", method, (None, "trf", "lm", "dogbox"))
    if not callable(jac):
        arguments.one_of("jac", jac, (None, "2-point", "3-point", "cs"))
    if not kwargs:
        return _DEFAULT_SETTINGS
    kwargs = dict(kwargs)
    _refuse_what_has_no_meaning(kwargs)
    x_scale, loss = _scales(kwargs), _loss(kwargs, method)
    relative_step = _relative_step(kwargs)
    tolerances = _tolerances(kwargs, method)
    max_nfev = _evaluations(kwargs, method)
    verbose = kwargs.pop("verbose", 0)
    arguments.one_of("verbose", int(verbose), (0, 1, 2))
    callback = kwargs.pop("callback", None)
    if kwargs:
        raise TypeError(
            f"curve_fit() got an unexpected keyword argument {next(iter(kwargs))!r}."
        )
    return Settings(
        tolerances=tolerances,
        max_nfev=max_nfev,
        x_scale=x_scale,
        loss=loss,
        relative_step=relative_step,
        verbose=int(verbose),
        watch=Watch(callback, int(verbose)),
    )


# Each of these takes its keywords out


def _refuse_what_has_no_meaning(kwargs: dict[str, Any]) -> None:
    if "args" in kwargs or "kwargs" in kwargs:
        raise ValueError(
            "'args' is not a supported keyword argument. Bind further arguments of the "
            "model with functools.partial."
        )
    for name in ("factor", "col_deriv"):
        if name in kwargs:
            raise TypeError(
                f"'{name}' belongs to MINPACK, which does not run here. Leave it out."
            )
    kwargs.pop("tr_options", None)
    arguments.refuse_unsupported(
        kwargs.pop("jac_sparsity", None), kwargs.pop("workers", None)
    )
    solver = kwargs.pop("tr_solver", None)
    arguments.one_of("tr_solver", solver, (None, "exact", "lsmr"))


def _scales(kwargs: dict[str, Any]) -> Any:
    """`x_scale`, or what MINPACK calls `diag`."""
    x_scale, diag = kwargs.pop("x_scale", None), kwargs.pop("diag", None)
    if x_scale is not None:
        return x_scale
    return "jac" if diag is None else 1 / arguments.real_array(diag, "`diag`")


def _relative_step(kwargs: dict[str, Any]) -> Any:
    """`diff_step`, or the root of what MINPACK calls `epsfcn`."""
    step, error = kwargs.pop("diff_step", None), kwargs.pop("epsfcn", None)
    if step is not None:
        return arguments.real_array(step, "`diff_step`")
    return None if error is None else arguments.real_array(error, "`epsfcn`") ** 0.5


def _loss(kwargs: dict[str, Any], method: str | None) -> Loss | Likelihood | None:
    if isinstance(kwargs.get("loss"), Likelihood):
        scale = kwargs.pop("f_scale", 1.0)
        if scale != 1:
            raise ValueError(
                f"`f_scale` is {scale!r}, and the loss is a likelihood, which has none."
            )
        return kwargs.pop("loss")
    loss = arguments.as_loss(kwargs.pop("loss", "linear"), kwargs.pop("f_scale", 1.0))
    if method == "lm" and loss is not None:
        raise ValueError("method='lm' supports only 'linear' loss function.")
    return loss


def _tolerances(kwargs: dict[str, Any], method: str | None) -> dict[str, float] | None:
    """SciPy's three, as soon as one is given."""
    names = "ftol", "xtol", "gtol"
    wanted = {name: kwargs.pop(name) for name in names if name in kwargs}
    if not wanted:
        return None
    every = dict.fromkeys(names, arguments.SCIPY_TOLERANCE) | wanted
    return arguments.tolerances(every, method == "lm", stacklevel=5)


def _evaluations(kwargs: dict[str, Any], method: str | None) -> int | None:
    """`max_nfev`, or what MINPACK calls `maxfev`."""
    maxfev = kwargs.pop("maxfev", None)
    if maxfev == 0 and method in (None, "lm"):
        maxfev = None  # leastsq's word for its default
    return arguments.evaluation_limit(kwargs.pop("max_nfev", maxfev), None)
