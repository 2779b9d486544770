"""What is asked of SciPy's front doors, and how it becomes a fit."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxfit._core.derivative import Outcome
from jaxfit._core.fit import Request, Setup, run, set_up
from jaxfit._core.options import Options
from jaxfit._core.rules import Rules
from jaxfit._numpy.host import OnHost, fresh, values_of
from jaxfit._numpy.speaking import SpeakingNumPy
from jaxfit._programs.compiled import compiled, lean_first, specialised
from jaxfit._programs.errors import what_is_not_finite
from jaxfit._programs.host import pack
from jaxfit.losses import Likelihood, Loss


class Door(NamedTuple):
    """A front door: what its users' functions mean, and what it reports; static."""

    call: Callable  # (f, x, data) -> what the user's function, or its jac, returns
    form: str  # of the parameters among the arguments, see `AtPoint`
    residual: Callable  # (f, x, data) -> residuals
    jacobian: Callable  # (jac, x, data) -> their derivatives
    report: Callable  # (setup, outcome, request) -> what is reported of a fit
    rules: Rules
    comparison: "Comparison | None" = None  # None: nothing is compared


class Comparison(NamedTuple):
    """What holding a compiled function against NumPy takes."""

    held: Callable  # (f, data) -> one that is called alike, and knows the data
    size: Callable  # (data, outcome) -> what the values of f are differences of
    shapes: Callable  # n -> those of the numbers that the door's report begins with


class ScipyRequest(NamedTuple):
    """What is asked of a fit, checked and in double precision; a pytree."""

    f: Callable
    jac: Callable | None
    x0: np.ndarray
    data: PyTree
    bounds: tuple[np.ndarray, np.ndarray] | None
    weights: PyTree
    loss: Loss | Likelihood | None
    options: Options
    x_scale: np.ndarray | None  # None: 'jac'
    absolute_sigma: np.bool_ | bool = False
    problem: PyTree = None  # what else is looked at in the end

    @property
    def compared(self) -> "Compared":
        """Which of its functions are compared; outside of programs."""
        return Compared(*(isinstance(g, SpeakingNumPy) for g in (self.f, self.jac)))

    @property
    def is_on_host(self) -> bool:
        """Whether a function has to be called between trips."""
        return isinstance(self.f, OnHost) or isinstance(self.jac, OnHost)

    def at_point(self, door: Door, x: np.ndarray) -> "ScipyRequest":
        """With what functions on the host give at a point in their places."""
        f, jac = self.f, self.jac
        if isinstance(f, OnHost):
            values = self._values(door, f)
            f = f.at_point(values, x, door.form, is_constant=jac is not None)
        if isinstance(jac, OnHost):
            values = self._values(door, jac)
            jac = jac.at_point(values, x, door.form, is_constant=True)
        return self._replace(f=f, jac=jac)

    def spread(self, door: Door, x: np.ndarray) -> "ScipyRequest | None":
        """With what differences vary by for derivatives; None: they are exact."""
        f = self.f
        if not isinstance(f, OnHost) or self.jac is not None:
            return None
        return self._replace(f=f.spread(self._values(door, f), x, door.form))

    def _values(self, door: Door, function: OnHost) -> Callable[[np.ndarray], PyTree]:
        """The function of the parameters alone."""

        def at(x: np.ndarray) -> PyTree:
            if x.tobytes() == function.where:
                return values_of(function.first)
            values = door.call(function.function, x.copy(), fresh(self.data))
            is_tree = isinstance(values, dict)
            return jax.tree.map(values_of, values) if is_tree else values_of(values)

        return at


def setup_of(door: Door, request: ScipyRequest, is_lean: bool = False) -> Setup:
    """The fit that is asked for."""
    jac, options = request.jac, request.options
    if jac is not None:
        jac = functools.partial(door.jacobian, jac)
    if request.x_scale is not None:
        options = options.scaled(request.x_scale)
    asked = Request(
        fn=functools.partial(door.residual, request.f),
        jac=jac,
        x0=request.x0,
        data=request.data,
        bounds=request.bounds,
        weights=request.weights,
        loss=request.loss,
        options=options,
    )
    return set_up(asked, door.rules, is_lean)


# Programs


class Compared(NamedTuple):
    """Which functions of a request were written in NumPy, and are traced."""

    f: bool
    jac: bool


class Seen(NamedTuple):
    """What these functions gave in the program."""

    status: Any
    size: Any  # of what the values may be small differences of
    x: Any
    values: Any  # of f at the start and at the end, and of jac; a vector

    @classmethod
    def packed(
        cls,
        door: Door,
        request: ScipyRequest,
        compared: Compared,
        start: jax.Array,
        outcome: Outcome,
    ) -> jax.Array:
        """All as one vector."""
        called = [request.f] * compared.f + [request.jac] * compared.jac
        points = start, outcome.x
        values = [door.call(g, x, request.data) for g in called for x in points]
        assert door.comparison is not None
        size = door.comparison.size(request.data, outcome)
        return pack([outcome.status, size, outcome.x, *values])

    @classmethod
    def unpacked(cls, vector: np.ndarray, door: Door, n: int) -> "Seen":
        """What follows the numbers of a report on a fit of n parameters."""
        assert door.comparison is not None
        vector = vector[sum(map(math.prod, door.comparison.shapes(n))) :]
        status, size = vector[:2].tolist()
        return cls(int(status), size, vector[2 : n + 2], vector[n + 2 :])


def whole_fit(door: Door, request: ScipyRequest) -> Any:
    """A fit as one program."""
    return lean_first(specialised(_whole, door, request.compared), request)


def not_finite(door: Door, request: ScipyRequest, count: int | None) -> str:
    """What is not finite at the start of a fit, in words; of the first residuals."""
    residual, jacobian = compiled(specialised(_at_start, door), request)
    return what_is_not_finite(
        np.asarray(residual)[:count], np.asarray(jacobian)[:count]
    )


def _whole(door: Door, compared: Compared, is_lean: bool, request: ScipyRequest) -> Any:
    def report(setup: Setup, outcome: Outcome) -> Any:
        return told(door, compared, request, setup, outcome)

    return run(setup_of(door, request, is_lean), report)


def told(
    door: Door,
    compared: Compared,
    request: ScipyRequest,
    setup: Setup,
    outcome: Outcome,
) -> Any:
    """The report of a fit, inside of a program; a `Seen` follows in its vector."""
    report = door.report(setup, outcome, request)
    if not any(compared):
        return report
    vector, *rest = report
    seen = Seen.packed(door, request, compared, setup.start, outcome)
    return jnp.concatenate([vector, seen]), *rest


def _at_start(door: Door, request: ScipyRequest) -> tuple[jax.Array, jax.Array]:
    setup = setup_of(door, request)
    return setup.rows.residual_and_jacobian(setup.start)
