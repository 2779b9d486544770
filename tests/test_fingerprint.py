"""Functions that are taken for equal give equal results, whatever is changed in them.

The program is a call and no fit: what is compiled, and when, is the same.
"""

import argparse
import collections
import dataclasses
import enum
import functools
import sys
import types
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import lmfit
import numpy as np
import pandas
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxfit
from jaxfit._programs import compiled as _compile
from jaxfit._programs.compiled import compiled
from jaxfit._programs.digest import lasting_digest
from jaxfit._programs.fingerprint import Reading

X = np.linspace(0.0, 1.0, 5)


@pytest.fixture(autouse=True)
def _fresh_cache():
    _compile._programs.clear()
    _compile._static.clear()


def called(fn, x):
    return fn(x)


def value(fn):
    """What a program of the function gives."""
    return np.asarray(compiled(called, fn, X))


def programs():
    return len(_compile._programs)


# Whatever holds a number, and how the number is changed


@dataclasses.dataclass
class Config:
    k: float = 2.0
    inside: object = None


class Slotted:
    __slots__ = ("k",)

    def __init__(self, k):
        self.k = k


class Base:
    scale = 2.0


class Derived(Base):
    def __init__(self):
        self.data = 2.0 * np.ones(5)

    @property
    def seen(self):
        return self.data

    def by_attribute(self, x):
        return self.data * x

    def by_property(self, x):
        return self.seen * x

    def by_class(self, x):
        return self.scale * x


def set_item(key):
    def change(holder, number):
        holder[key] = number

    return change


def set_attribute(name):
    return lambda holder, number: setattr(holder, name, number)


def column(frame, number):
    frame["y"] = number


def in_place(array, number):
    array[:] = number


HOLDERS = {
    "list": (lambda: [2.0], lambda h: h[0], set_item(0)),
    "dict": (lambda: {"k": 2.0}, lambda h: h["k"], set_item("k")),
    "nested": (
        lambda: {"a": [1.0, {"k": 2.0}]},
        lambda h: h["a"][1]["k"],
        lambda h, v: set_item("k")(h["a"][1], v),
    ),
    "deque": (lambda: collections.deque([2.0]), lambda h: h[0], set_item(0)),
    "ordered": (
        lambda: collections.OrderedDict(k=2.0),
        lambda h: h["k"],
        set_item("k"),
    ),
    "default": (
        lambda: collections.defaultdict(float, k=2.0),
        lambda h: h["k"],
        set_item("k"),
    ),
    "namespace": (
        lambda: argparse.Namespace(k=2.0),
        lambda h: h.k,
        set_attribute("k"),
    ),
    "simple namespace": (
        lambda: types.SimpleNamespace(k=2.0),
        lambda h: h.k,
        set_attribute("k"),
    ),
    "dataclass": (Config, lambda h: h.k, set_attribute("k")),
    "slots": (lambda: Slotted(2.0), lambda h: h.k, set_attribute("k")),
    "array": (lambda: np.full(5, 2.0), lambda h: h, in_place),
    "object array": (
        lambda: np.array([2.0], object),
        lambda h: h[0],
        lambda h, v: h.__setitem__(0, v),
    ),
    "frame": (
        lambda: pandas.DataFrame({"y": np.full(5, 2.0)}),
        lambda h: h["y"].to_numpy(),
        column,
    ),
    "frame in a dataclass": (
        lambda: Config(inside=pandas.DataFrame({"y": np.full(5, 2.0)})),
        lambda h: h.inside["y"].to_numpy(),
        lambda h, v: column(h.inside, v),
    ),
    "series": (
        lambda: pandas.Series(np.full(5, 2.0)),
        lambda h: h.to_numpy(),
        in_place,
    ),
    "data array": (
        lambda: xarray.DataArray(np.full(5, 2.0)),
        lambda h: h.to_numpy(),
        in_place,
    ),
    "lmfit": (
        lambda: lmfit.create_params(k=2.0),
        lambda h: h["k"].value,
        lambda h, v: setattr(h["k"], "value", v),
    ),
    "masked array": (
        lambda: np.ma.masked_array(np.full(5, 2.0)),
        lambda h: h.filled(),
        in_place,
    ),
    "module": (lambda: types.ModuleType("own"), lambda h: h.k, set_attribute("k")),
    "submodule": (
        lambda: types.SimpleNamespace(inner=types.ModuleType("own.inner")),
        lambda h: h.inner.k,
        lambda h, v: setattr(h.inner, "k", v),
    ),
    "function": (lambda: lambda: 0, lambda h: h.k, set_attribute("k")),
    "default of a helper": (
        lambda: lambda k=2.0: k,
        lambda h: h(),
        lambda h, v: setattr(h, "__defaults__", (v,)),
    ),
    "keyword of a helper": (
        lambda: lambda *, k=2.0: k,
        lambda h: h(),
        lambda h, v: h.__kwdefaults__.update(k=v),
    ),
}
HELD_BY = {
    "closure": lambda held, get: lambda x: get(held) * x,
    "default": lambda held, get: lambda x, held=held: get(held) * x,
    "keyword": lambda held, get: lambda x, *, held=held: get(held) * x,
    "partial": lambda held, get: functools.partial(lambda held, x: get(held) * x, held),
    "attribute": lambda held, get: types.MethodType(
        lambda self, x: get(self.held) * x, types.SimpleNamespace(held=held)
    ),
    "method": lambda held, get: types.MethodType(
        lambda self, x: get(self.inside) * x, Config(inside=held)
    ),
    "global": lambda held, get: eval(
        "lambda x: get(held) * x", {"held": held, "get": get}
    ),
    "jitted": lambda held, get: jax.jit(lambda x: get(held) * x),
    "nested": lambda held, get: lambda x: (lambda z: get(held) * z)(x),
}


@pytest.mark.parametrize(
    ("kind", "way"),
    [(k, "closure") for k in HOLDERS]
    + [(k, w) for w in HELD_BY if w != "closure" for k in ("list", "deque")],
)
def test_a_change_in_place_is_seen(kind, way):
    make, get, change = HOLDERS[kind]
    holder = make()
    change(holder, 2.0)
    fn = HELD_BY[way](holder, get)
    for number in (2.0, 7.0):
        change(holder, number)
        np.testing.assert_array_equal(value(fn), number * X)


def test_methods_properties_and_classes():
    holder = Derived()
    functions = holder.by_attribute, holder.by_property
    for number in (2.0, 7.0):
        holder.data[:] = number
        Base.scale = number
        for fn in (*functions, holder.by_class):
            np.testing.assert_array_equal(value(fn), number * X)
    holder.data = np.full(5, 9.0)
    for fn in functions:
        np.testing.assert_array_equal(value(fn), 9 * X)
    Base.scale = 2.0


class Hidden:
    __slots__ = ("__k",)
    factor = 1.0

    def __init__(self, k):
        self.__k = k

    def put(self, k):
        self.__k = k

    def __call__(self, x):
        return self.__k * x


class Pair(tuple):
    def __new__(cls, a, b):
        return super().__new__(cls, (a, b))


class Checked:
    def __init__(self, k):
        self.__dict__["k"] = k

    @property
    def k(self):
        return self.__dict__["k"]


class Meta(type):
    scale = 2.0


class WithMeta(metaclass=Meta):
    pass


class Planet(enum.Enum):
    EARTH = 1


class Decorated:
    scale = 2.0

    def __init__(self, function):
        functools.update_wrapper(self, function)

    def __call__(self, x):
        return self.scale * self.__wrapped__(x)


class Closing:
    def __init__(self):
        self.k, self.is_open = 2.0, [True]

    def __del__(self):
        self.is_open[0] = False

    def __call__(self, x):
        assert self.is_open[0]
        return self.k * x


class Chain:
    def __init__(self, k, rest):
        self.k, self.rest = k, rest


own_module = types.ModuleType("a_module_of_the_user")


def of_module(module, x):
    return module.k * x


def passing_a_module(x):
    return of_module(own_module, x)


def importing(x):
    import a_module_of_the_user  # pyright: ignore[reportMissingImports]

    return a_module_of_the_user.k * x


def test_unusual_objects(monkeypatch):
    """Each is a function of x that gives k * x, and how to set k."""
    monkeypatch.setitem(sys.modules, "a_module_of_the_user", own_module)
    hidden, checked, closing = Hidden(2.0), Checked(2.0), Closing()
    pair = Pair(1.0, 2.0)
    pair.k = 2.0  # pyright: ignore[reportAttributeAccessIssue]
    planet, entry = Planet.EARTH, Config()
    referred, table = Config(), {}
    table[Hidden] = entry
    keyed = Decorated(lambda x: x)
    by_object = {keyed: 2.0}
    ends, deep = range(0, 3, 2), None
    for _ in range(1000):
        deep = Chain(1.0, deep)
    holder = types.SimpleNamespace(of=weakref.ref(referred), ends=ends)
    swapped = np.arange(5, dtype=">f8")
    cases = [
        (hidden, hidden.put),
        (lambda x: pair[0] * pair.k * x, lambda k: setattr(pair, "k", k)),
        (lambda x: checked.k * x, lambda k: checked.__dict__.update(k=k)),
        (lambda x: WithMeta.scale * x, lambda k: setattr(Meta, "scale", k)),
        (lambda x: planet.k * x, lambda k: setattr(planet, "k", k)),
        (Decorated(lambda x: x), lambda k: setattr(Decorated, "scale", k)),
        (closing, lambda k: setattr(closing, "k", k)),
        (lambda x: holder.of().k * x, lambda k: setattr(referred, "k", k)),
        (
            lambda x: by_object.get(keyed, 0.0) * x,
            lambda k: by_object.update({keyed: k}),
        ),
        (lambda x: deep.k * x, lambda k: setattr(deep, "k", k)),
        (passing_a_module, lambda k: setattr(own_module, "k", k)),
        (importing, lambda k: setattr(own_module, "k", k)),
        (lambda x: swapped.astype(float)[0] * x, lambda k: swapped.fill(k)),
    ]
    for fn, change in cases:
        for number in (2.0, 7.0):
            change(number)
            np.testing.assert_array_equal(value(fn), number * X)


def test_values_that_look_alike():
    """Ranges, sets in their order, arrays of the same bits."""
    holder = Config()
    one = np.zeros(1, [("a", float)])
    pairs = [
        (range(0, 3, 2), range(0, 4, 2), lambda v: v.stop),
        ({0, 8}, {8, 0}, lambda v: next(iter(v))),
        ([np.array(2)], [np.array([2])], lambda v: v[0].ndim),
        (one, one.view([("b", float)]), lambda v: ord(v.dtype.names[0])),
        (np.float32(2), np.array(2, np.float32), lambda v: isinstance(v, np.generic)),
    ]
    for first, second, number in pairs:
        for held in (first, second):
            holder.inside = collections.deque([held])
            fn = lambda x, get=number: float(get(holder.inside[0])) * x  # noqa: E731
            np.testing.assert_array_equal(value(fn), float(number(held)) * X)


def test_a_number_is_not_told_from_an_input():
    """Where a function would do something else in silence."""

    @functools.singledispatch
    def dispatched(k, x):
        return -k * x

    dispatched.register(float, lambda k, x: k * x)

    def matched(k, x):
        match k:
            case float():
                return k * x
        return -k * x

    for by_type in (
        dispatched,
        matched,
        lambda k, x: {"2.0": k}.get(f"{k}", -k) * x,
        lambda k, x: {"2.0": k}.get(str(k), -k) * x,
        lambda k, x: k * x if np.isscalar(k) else -k * x,
        lambda k, x: k * x if isinstance(k, float) else k * jnp.abs(x),
    ):
        k = 2.0
        got = np.asarray(compiled(called, lambda x, k=k, f=by_type: f(k, x), -X))
        np.testing.assert_array_equal(got, -2.0 * X)


def test_random_numbers_are_drawn_anew():
    rng = np.random.default_rng(0)
    drawn = {float(value(lambda x: x + rng.normal())[0]) for _ in range(3)}
    np.random.seed(0)  # noqa: NPY002
    for _ in range(3):
        drawn.add(float(value(lambda x: x + np.random.normal())[0]))  # noqa: NPY002
    assert len(drawn) == 6


def test_what_is_read_from_outside_is_read_anew(tmp_path, monkeypatch):
    import os

    path = tmp_path / "number"

    def from_file(x):
        with open(path) as file:
            return float(file.read()) * x

    def from_environment(x):
        return float(os.environ["A_NUMBER"]) * x

    def by_name(x):
        return globals()["NAMED"] * x

    for number in (2.0, 7.0):
        path.write_text(str(number))
        monkeypatch.setenv("A_NUMBER", str(number))
        monkeypatch.setitem(globals(), "NAMED", number)
        for fn in (from_file, from_environment, by_name):
            np.testing.assert_array_equal(value(fn), number * X)


NAMED = 0.0


def test_what_a_function_wrote_and_another_replaces():
    table = memo = None

    def lazy(x):
        nonlocal table
        if table is None:
            table = np.ones(5)
        return table * x

    memo = {}

    def cached(x):
        if "t" not in memo:
            memo["t"] = np.ones(5)
        return memo["t"] * x

    counted = {"n": 0, "k": 1.0}

    def counting(x):
        counted["n"] += 1
        return counted["k"] * x

    log, factor = [], [1.0]

    def logging(x):
        log.append("called")
        return factor[0] * x

    for number in (1.0, 4.0):
        if number > 1:
            table, memo["t"] = np.full(5, number), np.full(5, number)
        counted["k"] = factor[0] = number
        for fn in (lazy, cached, counting, logging):
            for _ in range(2):
                np.testing.assert_array_equal(value(fn), number * X)
    assert log[0] == "called"


# Numbers as inputs


def test_new_numbers_are_the_same_program():
    """Of closures, defaults, partial arguments, attributes, globals."""

    makers = {
        "closure": lambda k: lambda x: k * x,
        "array": lambda k: (lambda a: lambda x: a * x)(np.full(5, k)),
        "jax array": lambda k: (lambda a: lambda x: a * x)(jnp.full(5, k)),
        "object": lambda k: types.MethodType(lambda self, x: self.k * x, Config(k)),
        "list": lambda k: (lambda a: lambda x: a[0] * x)([k]),
        "jitted": lambda k: jax.jit(lambda x: k * x),
        "nested": lambda k: lambda x: (lambda z: k * z)(x),
        "default": lambda k: lambda x, k=k: k * x,
        "partial": lambda k: functools.partial(lambda k, x: k * x, k),
    }
    for make in makers.values():
        before = programs()
        for number in (2.0, 7.0, 9.0):
            np.testing.assert_array_equal(value(make(number)), number * X)
        assert programs() == before + 1


def test_numbers_that_are_asked_for_stay_numbers():
    """By `if`, `range`, NumPy, or a look at the type; each value by itself."""

    def branching(k, shift):
        return lambda x: (k * x if k > 5 else -k * x) + shift

    def looping(k, shift):
        return lambda x: sum(x for _ in range(int(k))) + shift

    def in_numpy(k, shift):
        return lambda x: np.exp(np.full(5, k)) * x + shift

    def by_type(k, shift):
        a = np.full(5, k)
        return lambda x: (k if isinstance(a, np.ndarray) else -k) * x + shift

    def by_error(k, shift):
        def fn(x):
            try:
                return float(k) * x + shift
            except TypeError:
                return -k * x + shift

        return fn

    for make in (branching, looping, in_numpy, by_type, by_error):
        before = programs()
        for k in (2.0, 7.0):
            for shift in (0.0, 1.0, 2.0):
                expected = np.asarray(make(k, shift)(X))
                np.testing.assert_allclose(value(make(k, shift)), expected, rtol=1e-15)
        assert programs() == before + 2  # one for each k, whatever the shift


def test_a_tracer_is_not_left_behind():
    log: list = []
    memo: dict = {}

    def make(k):
        def fn(x):
            log.append(k)
            memo["last"] = k * x
            return k * x

        return fn

    for number in (2.0, 7.0):
        np.testing.assert_array_equal(value(make(number)), number * X)
    assert all(isinstance(k, float) for k in log)
    assert not memo


def test_a_tracer_is_left_in_no_container():
    last, by_name = collections.deque(maxlen=2), collections.defaultdict(list)
    space, k = types.SimpleNamespace(log=[]), 2.0

    class Model:
        cache = None

    @functools.lru_cache
    def table():
        return jnp.ones(5)

    def fn(x):
        last.append(k * x)
        by_name["a"].append(k * x)
        space.log = [*space.log, k * x]
        if Model.cache is None:
            Model.cache = jnp.ones(5)
        return k * x * Model.cache * table()

    for _ in range(2):
        np.testing.assert_array_equal(value(fn), k * X)
        held = [*last, *by_name["a"], *space.log, Model.cache, table()]
        assert not any(isinstance(item, jax.core.Tracer) for item in held)


def test_errors_are_those_of_the_function():
    y = np.ones(3)

    def fn(x):
        return x - y

    with pytest.raises(TypeError, match=r"broadcast|incompatible"):
        value(fn)


# Random objects, mutated at random

scalars = st.sampled_from([0.0, -0.0, 1.0, 2.0, 0.5, 3, 1, True, None, "a"])
leaves = st.one_of(scalars, scalars.map(lambda s: np.array([s or 0, 1.0], float)))


def wrapped(child):
    return st.one_of(
        st.lists(child, min_size=1, max_size=3),
        st.dictionaries(st.sampled_from("abk"), child, min_size=1),
        st.tuples(child, child),
        child.map(lambda v: Config(1.0, v)),
        child.map(lambda v: types.SimpleNamespace(v=v)),
        child.map(lambda v: argparse.Namespace(v=v)),
        child.map(lambda v: collections.deque([v])),
        child.map(lambda v: functools.partial(tuple, [v])),
        child.map(lambda v: lambda w=v: w),
        child.map(lambda v: (lambda: lambda: v)()),
    )


trees = st.recursive(leaves, wrapped, max_leaves=4)


def numbers_in(node, depth=0):
    """All that a random object holds, as numbers, by what a function can reach."""
    if isinstance(node, np.ndarray) or type(node) in (float, int, bool):
        return [node]
    if node is None or isinstance(node, str):
        return [float(len(node or ""))]
    if isinstance(node, dict):
        return [n for v in node.values() for n in numbers_in(v)]
    if isinstance(node, (list, tuple, collections.deque)):
        return [float(len(node)), *(n for v in node for n in numbers_in(v))]
    if isinstance(node, functools.partial):
        return numbers_in(node())
    if isinstance(node, types.FunctionType):
        return numbers_in(node())
    return [n for v in vars(node).values() for n in numbers_in(v)]


def mutate(node, number):
    """Change one thing somewhere, in place; whether anything could be changed."""
    if isinstance(node, np.ndarray):
        node[0] = len(number) if isinstance(number, str) else number
        return True
    if isinstance(node, (list, collections.deque)):
        if not mutate(node[0], number):
            node[0] = number
        return True
    if isinstance(node, dict):
        key = next(iter(node))
        if not mutate(node[key], number):
            node[key] = number
        return True
    if isinstance(node, tuple):
        return any(mutate(item, number) for item in node)
    if isinstance(node, functools.partial):
        return mutate(node.args[0], number)
    if isinstance(node, types.FunctionType):
        if node.__defaults__:
            if not mutate(node.__defaults__[0], number):
                node.__defaults__ = (number,)
        elif not mutate(node.__closure__[0].cell_contents, number):
            node.__closure__[0].cell_contents = number
        return True
    if hasattr(node, "__dict__"):
        name = list(vars(node))[-1]
        if not mutate(getattr(node, name), number):
            setattr(node, name, number)
        return True
    return False


@settings(max_examples=60)
@given(trees, st.lists(st.sampled_from([0.0, 1.0, 5.0, 7, "ab"]), max_size=3))
def test_equal_by_fingerprint_is_equal_by_result(tree, changes):
    def fn(x):
        total = x
        for k, number in enumerate(numbers_in(tree), 1):
            total = total + k * jnp.sum(jnp.asarray(number, float))
        return total

    for change in (None, *changes):
        if change is not None:
            mutate(tree, change)
        np.testing.assert_allclose(value(fn), np.asarray(fn(X)), rtol=1e-14)


# What a function is in another process


def test_digests_of_other_models_differ():
    def keyword(k):
        def fn(x, *, scale=k):
            return scale * x

        return fn

    for make in (
        keyword,
        lambda k: lambda x, scale=k: scale * x,
        lambda k: lambda x: k * x,
        lambda k: Config(k),
        lambda k: functools.partial(called, k),
        lambda k: jnp.full(3, k),
        lambda k: pandas.Series([k]),
    ):
        digests = [lasting_digest(make(k)) for k in (1.0, 1.0, 2.0)]
        assert digests[0] == digests[1] != digests[2]
    assert lasting_digest(open) is not None
    with open(__file__) as file:
        assert lasting_digest(lambda x: file) is None


# Fits


def test_modules_that_are_held_are_known():
    def calculates(x, np=np):
        return np.exp(x)

    def reads(x, np=np):
        return np.load(x)

    for function, is_known in ((calculates, True), (reads, False)):
        reading = Reading()
        first = reading(function).key
        assert reading.is_known is is_known
        assert Reading()(function).key == first


def test_annotations_of_a_union_are_read():
    @eqx.filter_jit
    def decay(t: object, rate: float | None = None, *, steps: int | None = None):
        return jnp.exp(-rate * t)  # diffrax.diffeqsolve is such a function

    reading = Reading()
    first = reading(decay).key
    assert reading.is_known
    assert Reading()(decay).key == first


def test_a_loop_over_new_data_compiles_once():
    t, rng = np.linspace(0, 4, 50), np.random.default_rng(0)
    for _ in range(3):
        y = 2.5 * np.exp(-1.3 * t) + 0.05 * rng.normal(size=50)
        fit = jaxfit.least_squares(lambda p: p[0] * jnp.exp(-p[1] * t) - y, [1.0, 1.0])  # noqa: B023
        again = jaxfit.least_squares(
            lambda p, y: p[0] * jnp.exp(-p[1] * t) - y, [1.0, 1.0], args=(y,)
        )
        np.testing.assert_allclose(fit.x, again.x, rtol=1e-12)
    assert programs() == 2
