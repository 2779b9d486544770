"""The user's functions as functions of JAX, for the front doors of SciPy's."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxfit._core.certificate import Status
from jaxfit._numpy.differences import Differences
from jaxfit._numpy.host import OnHost
from jaxfit._numpy.ways import Differs, UserFunction, Way, compare, in_jax
from jaxfit._programs.host import double_precision
from jaxfit._scipy.arguments import CallableLoss
from jaxfit._scipy.request import Door, ScipyRequest, Seen
from jaxfit._scipy.watch import Watch, watched_fit

ANY_NUMBER = 7  # of residuals, to ask a loss for


class Fitted(NamedTuple):
    """A fit that was run."""

    report: Any  # the door's
    request: ScipyRequest  # with functions of JAX


def fitted(
    door: Door,
    request: ScipyRequest,
    watch: Watch,
    differences: Differences,
    is_on_host: bool,
) -> Fitted:
    """The fit, whichever way the user's functions become functions of JAX.

    Args:
        request: with the functions as they came.
        differences: how a model that only NumPy can compute is differentiated.
        is_on_host: whether the model is to be left to NumPy, in silence.
    """
    users = _Users.of(door, request, differences, is_on_host)
    names = [name for name, user in users._asdict().items() if user is not None]

    def run(*functions: Callable) -> Fitted:
        return _run(
            door, _with(request, dict(zip(names, functions, strict=True))), watch, users
        )

    return in_jax([getattr(users, name) for name in names], run)


def _with(request: ScipyRequest, functions: dict[str, Callable]) -> ScipyRequest:
    """The request with functions of JAX by name, and tolerances that they allow."""
    rho = functions.pop("rho", None)
    if rho is not None:
        assert request.loss is not None
        request = request._replace(loss=dataclasses.replace(request.loss, function=rho))
    on_host = [g for g in functions.values() if isinstance(g, OnHost)]
    options = request.options
    if on_host and options.ftol is None:
        ftol = max(g.differences.ftol for g in on_host)
        options = dataclasses.replace(options, ftol=ftol)
    return request._replace(options=options, **functions)


class _Users(NamedTuple):
    """The functions of a request, as they came."""

    f: UserFunction
    jac: UserFunction | None
    rho: UserFunction | None  # SciPy's kind of a loss

    @classmethod
    def of(
        cls,
        door: Door,
        request: ScipyRequest,
        differences: Differences,
        is_on_host: bool,
    ) -> "_Users":
        """Those of a request."""
        comparison = door.comparison
        assert comparison is not None

        def of(function: Callable, name: str) -> UserFunction:
            return UserFunction(
                function=function,
                parameters=request.x0,
                data=request.data,
                call=door.call,
                held=comparison.held,
                name=getattr(function, "__name__", name),
                is_for_host=is_on_host,
                differences=differences,
            )

        loss = request.loss
        return cls(
            f=of(request.f, "The model"),
            jac=None if request.jac is None else of(request.jac, "`jac`"),
            rho=_rho(loss.function) if isinstance(loss, CallableLoss) else None,
        )


def _rho(function: Callable) -> UserFunction:
    return UserFunction(
        function=function,
        parameters=np.ones(ANY_NUMBER),
        data=None,
        call=lambda f, z, _: f(z),
        name=getattr(function, "__name__", "`loss`"),
        ways=(Way.JAX,),
    )


def _run(door: Door, request: ScipyRequest, watch: Watch, users: _Users) -> Fitted:
    with double_precision(request.f):
        report = watched_fit(door, request, watch)
    if any(request.compared):
        seen = Seen.unpacked(np.asarray(report[0]), door, len(request.x0))
        _compare(request, users, seen)
    return Fitted(report, request)


def _compare(request: ScipyRequest, users: _Users, seen: Seen) -> None:
    """Hold what compiled functions gave against NumPy's, at the start and at the end.

    Raises:
        Differs: where they differ, or a derivative is not finite.
    """
    compared, rest = request.compared, seen.values
    for user in [users.f] * compared.f + [users.jac] * compared.jac:
        assert user is not None
        rest = compare(user, (request.x0, seen.x), rest, seen.size)
    is_lost = seen.status == Status.NONFINITE_START and compared.f
    if is_lost and np.isfinite(seen.values).all():
        raise Differs(users.f, "traced by JAX its derivatives are not finite")
