"""The user's functions in a model, as functions of JAX."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from jaxfit._core.certificate import Status
from jaxfit._core.options import Options
from jaxfit._numpy.differences import Differences
from jaxfit._numpy.host import OnHost
from jaxfit._numpy.speaking import SpeakingNumPy
from jaxfit._numpy.ways import Differs, UserFunction, Way, compare, in_jax
from jaxfit._programs.compiled import prepared
from jaxfit._programs.host import double_precision
from jaxfit._scipy.observations import Points
from jaxfit.fitting._arguments import ProblemAndStarts
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._problem import Method, Problem
from jaxfit.fitting._several import Several
from jaxfit.models import FunctionModel, Model
from jaxfit.models._binned import Binned, points_of

SAMPLES = 8  # fits of a batch that are compared with NumPy

Result = TypeVar("Result")


class Asked(NamedTuple):
    """A problem whose functions are functions of JAX, and how they came."""

    problem: Problem
    users: tuple[UserFunction, ...]

    @property
    def is_on_host(self) -> bool:
        """Whether NumPy computes one of them."""
        return bool(self._on_host)

    @property
    def _on_host(self) -> list[OnHost]:
        parts = [part.plain for part in _parts(self.problem.model)]
        return [function for function in parts if isinstance(function, OnHost)]

    @property
    def in_numpy(self) -> Problem:
        """The problem with the functions as they came, which NumPy computes."""
        return _with_functions(self.problem, [user.function for user in self.users])

    @property
    def differences(self) -> Differences:
        """How all residuals are differentiated on the host."""
        lower, upper = self.problem.bounds or (None, None)
        epsilon = max(function.differences.epsilon for function in self._on_host)
        return Differences(lower=lower, upper=upper, epsilon=epsilon)

    def method(self, method: Method) -> Method:
        """With the tolerance that differences allow, where none is asked for."""
        options = method.options or Options()
        if not self.is_on_host or options.ftol is not None:
            return method
        ftol = self.differences.ftol
        return method._replace(options=dataclasses.replace(options, ftol=ftol))

    def check(self, data: Points, numbers: Numbers) -> None:
        """Hold compiled NumPy functions against NumPy, at starts and ends of fits.

        Of a batch some are looked at.

        Args:
            data: the points.
            numbers: those of a fit, or of many with a leading axis.

        Raises:
            Differs: where they are not the same.
        """
        model = self.problem.model
        pairs = zip(_parts(model), self.users, strict=True)
        spoken = [pair for pair in pairs if isinstance(pair[0].plain, SpeakingNumPy)]
        if not spoken:
            return
        start, end, status = map(np.asarray, (numbers.start, numbers.x, numbers.status))
        number = len(start) if start.ndim > 1 else 1
        chosen = np.unique(np.linspace(0, max(number - 1, 0), SAMPLES).astype(int))
        rows = [np.reshape(which, (number, -1))[chosen] for which in (start, end)]
        points = [self.problem.parameters(row[:, None]) for row in np.concatenate(rows)]
        x = _points_of_first(model, data.x)
        finite = data.y[np.isfinite(data.y)]
        size = float(np.max(np.abs(finite), initial=0))
        for part, user in spoken:
            own = [_own(part, _of_first(model, point)) for point in points]
            columns = {name: np.array([p[name] for p in own]) for name in own[0]}
            with double_precision(user.function):  # ahead of time: in a trace too
                program = prepared(_values, part, x, columns)
                values = np.asarray(program(part, x, columns))
            compare(user, own, values.ravel(), size)
            if (status == Status.NONFINITE_START).all() and np.isfinite(values).all():
                raise Differs(user, "traced by JAX its derivatives are not finite")


def with_functions(
    asked: ProblemAndStarts, x: PyTree, run: Callable[[Asked], Result], host: bool
) -> Result:
    """What `run` makes of a problem, whichever way its functions become those of JAX.

    Args:
        x: the coordinates.
        run: raises `Differs` where a compiled function differs from NumPy's.
        host: leave functions to NumPy, in silence.
    """
    problem = asked.problem
    known = _of_first(problem.model, {**problem.fixed, **asked.starts})
    x = _points_of_first(problem.model, x)
    users = tuple(_user(part, x, known, host) for part in _parts(problem.model))

    def chosen(*functions: Callable) -> Result:
        return run(Asked(_with_functions(problem, functions), users))

    return in_jax(users, chosen)


def _user(
    part: FunctionModel, x: PyTree, known: dict[str, Any], host: bool
) -> UserFunction:
    """The function of a part, where it starts."""
    own = {
        part.prefix + name: value
        for name, value in part.start(x, np.zeros(1), {}).items()
    }
    given = {name: np.ravel(known[name])[0] for name in own if name in known}
    parameters = own | given
    limits = np.array([part.bounds[name] for name in parameters])
    lower, upper = limits.T
    return UserFunction(
        function=part.plain,
        parameters=_own(part, parameters),
        data=x,
        call=part.called,
        name=part.label,
        ways=(Way.JAX, Way.NUMPY),
        is_for_host=host,
        differences=Differences(
            lower=lower, upper=upper, typical=np.abs([*parameters.values()])
        ),
    )


def _of_first(model: Model, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the first of several data sets, or of the only one."""
    return model.of(0, parameters) if isinstance(model, Several) else parameters


def _points_of_first(model: Model, x: PyTree) -> PyTree:
    """The points at which the functions of a model are evaluated."""
    if isinstance(model, Binned):
        return points_of(x)[0]
    return x[0] if isinstance(model, Several) else x


def _own(part: FunctionModel, parameters: dict[str, Any]) -> dict[str, Any]:
    """Its parameters without the prefix, as numbers."""
    own = part.without_prefix(parameters)
    return {name: np.float64(np.ravel(value)[0]) for name, value in own.items()}


def _is_function(node: Any) -> bool:
    return isinstance(node, FunctionModel)


def _parts(model: Model) -> list[FunctionModel]:
    """The user's functions in a model."""
    return list(filter(_is_function, jax.tree.leaves(model, is_leaf=_is_function)))


def _with_functions(problem: Problem, functions: Sequence[Callable]) -> Problem:
    """The problem with others in their places."""
    if not functions:
        return problem
    remaining = iter(functions)

    def other(node: Any) -> Any:
        if not _is_function(node):
            return node
        return dataclasses.replace(node, plain=next(remaining))

    model = jax.tree.map(other, problem.model, is_leaf=_is_function)
    return dataclasses.replace(problem, model=model)


def _values(
    part: FunctionModel, x: PyTree, columns: dict[str, Float[Array, " k"]]
) -> Inexact[Array, "k m"]:
    """The function at some points, of which all that it takes is given."""

    def at(parameters: dict[str, Any]) -> Array:
        return jnp.ravel(jnp.asarray(part.called(part.plain, parameters, x)))

    return jax.lax.map(at, columns)
