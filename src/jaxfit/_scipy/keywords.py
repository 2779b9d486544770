"""The keywords of `curve_fit`, as SciPy has them, checked."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxfit._core.options import DEFAULTS, Options
from jaxfit._core.rules import OURS, SCIPY_TESTS, Rules
from jaxfit._scipy import arguments
from jaxfit._scipy.watch import Watch


class Settings(NamedTuple):
    """Checked keywords."""

    tolerances: dict[str, float] | None
    max_nfev: int | None
    x_scale: Any
    loss: Any
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
    verbose=0,
    watch=Watch(None, 0),
)
_NO_MEANING = ("diff_step", "epsfcn", "tr_options")  # nothing is approximated


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
    for name in _NO_MEANING:
        kwargs.pop(name, None)
    arguments.refuse_unsupported(
        kwargs.pop("jac_sparsity", None), kwargs.pop("workers", None)
    )
    arguments.one_of(
        "tr_solver", kwargs.pop("tr_solver", None), (None, "exact", "lsmr")
    )
    maxfev = kwargs.pop("maxfev", None)
    if maxfev == 0 and method in (None, "lm"):
        maxfev = None  # leastsq's word for its default
    max_nfev = kwargs.pop("max_nfev", maxfev)
    x_scale = kwargs.pop("x_scale", None)
    diag = kwargs.pop("diag", None)
    if x_scale is None:
        x_scale = "jac" if diag is None else 1 / arguments.real_array(diag, "`diag`")
    loss = arguments.as_loss(kwargs.pop("loss", "linear"), kwargs.pop("f_scale", 1.0))
    if method == "lm" and loss is not None:
        raise ValueError("method='lm' supports only 'linear' loss function.")
    verbose = kwargs.pop("verbose", 0)
    arguments.one_of("verbose", int(verbose), (0, 1, 2))
    callback = kwargs.pop("callback", None)
    names = [name for name in ("ftol", "xtol", "gtol") if name in kwargs]
    tolerances = None
    if names:
        wanted: dict[str, Any] = dict.fromkeys(
            ("ftol", "xtol", "gtol"), arguments.SCIPY_TOLERANCE
        )
        wanted.update({name: kwargs.pop(name) for name in names})
        tolerances = arguments.tolerances(wanted, all_above_eps=method == "lm")
    if kwargs:
        raise TypeError(
            f"curve_fit() got an unexpected keyword argument {next(iter(kwargs))!r}."
        )
    return Settings(
        tolerances=tolerances,
        max_nfev=arguments.evaluation_limit(max_nfev, None),
        x_scale=x_scale,
        loss=loss,
        verbose=int(verbose),
        watch=Watch(callback, int(verbose)),
    )
