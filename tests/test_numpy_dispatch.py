"""NumPy through JAX: values and slopes of what is mapped, writing, and refusals."""

import contextlib
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from beside_numpy import same_as_numpy

from jaxfit._numpy.compile import speaking_numpy
from jaxfit._numpy.needs import NeedsHost
from jaxfit._programs.program import compiler_options

X = np.array([-1.7, -0.6, 0.37, 0.8, 1.4, 2.3])
Y = np.array([0.9, -1.2, 0.45, 1.6, -0.66, 2.1])
UNIT, POSITIVE, LARGE = X / 3, np.abs(X) + 0.3, np.abs(X) + 1.2
MATRIX = np.array([[2.0, 0.3, -0.2], [0.3, 1.5, 0.4], [-0.2, 0.4, 1.1]])

# Functions by name, with what follows the arrays, at arguments of their domain
NUMPY = (
    (
        "exp exp2 expm1 sin cos tan sinh cosh tanh arctan arcsinh square negative "
        "positive absolute fabs sign cbrt conjugate deg2rad rad2deg degrees radians "
        "floor ceil trunc rint reciprocal isnan isinf isfinite signbit logical_not "
        "sinc i0 nan_to_num cumsum cumprod sum mean std var prod max min argmax argmin "
        "argsort sort median ptp diff gradient ravel flip roll:1 angle unwrap ediff1d "
        "any all count_nonzero nansum nanmean nanmax nanmin nanstd nanvar nanprod "
        "nancumsum fix round around:1 real imag isreal atleast_1d atleast_2d "
        "atleast_3d diag copy zeros_like ones_like full_like:3.0 tile:2 repeat:2 "
        "vander:3 isposinf isneginf percentile:30 quantile:0.4 expand_dims:0 "
        "reshape:(2,3) split:3 array_split:[2,4] pad:2 squeeze transpose shape "
        "size ndim take:[1,-1] delete:2 resize:(2,4) broadcast_to:(2,6) poly diagflat "
        "clip:-1,1 fft.rfft modf insert:2,0.5 average linalg.norm nanmedian",
        (X,),
    ),
    ("arcsin arccos arctanh", (UNIT,)),
    ("log log2 log10 log1p sqrt", (POSITIVE,)),
    ("arccosh", (LARGE,)),
    (
        "add subtract multiply divide true_divide maximum minimum fmax fmin arctan2 "
        "hypot logaddexp logaddexp2 copysign remainder mod fmod floor_divide divmod "
        "heaviside greater greater_equal less less_equal equal not_equal logical_and "
        "logical_or logical_xor dot inner outer vdot convolve correlate isclose "
        "allclose array_equal append polyadd polymul polyval kron "
        "broadcast_arrays",
        (X, Y),
    ),
    ("power float_power", (POSITIVE, Y)),
    (
        "trace diagonal linalg.inv linalg.det linalg.norm linalg.eigvalsh tril triu "
        "linalg.cholesky linalg.pinv linalg.slogdet linalg.matrix_power:3 rot90 "
        "fliplr flipud fft.fft fft.ifft fft.fft2 fft.fftshift fft.ifftshift cov "
        "corrcoef hsplit:3 vsplit:3 swapaxes:0,1 moveaxis:0,1 rollaxis:1 linalg.cond "
        "matrix_transpose linalg.matrix_transpose linalg.diagonal diag squeeze ravel "
        "reshape:(9,) atleast_2d atleast_3d expand_dims:0",
        (MATRIX,),
    ),
    ("matmul linalg.solve tensordot cross", (MATRIX, MATRIX + 1)),
)
SPECIAL = (
    (
        "erf erfc expit log_expit ndtr log_ndtr i0 i1 i0e i1e gamma gammaln "
        "rgamma digamma psi erfcx dawsn erfi wofz cbrt exp2 exp10 expm1 cosm1 exprel "
        "sindg cosdg tandg expi",
        (X,),
    ),
    ("erfinv", (UNIT,)),
    ("ndtri logit", (UNIT / 2 + 0.5,)),
    ("entr log1p exp1 spence loggamma", (POSITIVE,)),
    ("xlogy xlog1py rel_entr kl_div beta betaln", (POSITIVE, LARGE)),
    ("gammainc gammaincc poch binom", (LARGE, POSITIVE)),
    ("boxcox boxcox1p", (POSITIVE, Y)),
    ("inv_boxcox", (UNIT, Y)),
    ("huber pseudo_huber", (POSITIVE, 1.5 * Y)),
    ("voigt_profile", (X, POSITIVE, LARGE)),
)


def where_written(x, a):
    y = np.zeros_like(x)
    return np.log(x, out=y, where=x > a[0])


def by_kind(x):
    t = x[0]
    is_array = isinstance(x, np.ndarray) and hasattr(x, "__len__") and np.iterable(x)
    is_number = isinstance(t, float) and np.isscalar(t) and not np.iterable(t)
    if is_array and is_number and not hasattr(t, "__len__") and x.dtype == float:
        return 2.0 * x
    return -x


def written_unsafely(x, a):
    y = np.zeros_like(x, dtype=int)
    np.add(7 * x, a[0], out=y, casting="unsafe")
    np.add.at(y, slice(1, 3), 2)
    np.add.at(y, ..., 1)
    return y


FURTHER = {  # what names do not say
    "kinds of values": (by_kind, X),
    "unsafe casting": (written_unsafely, X, Y),
    "hypot at zero": (lambda x: np.hypot(x - X, 0 * x), X),
    "in another dtype": (lambda x: x.sum(dtype=np.complex128) * x, X),
    "with an initial value": (
        lambda x: np.min(x, where=x > 0, initial=9.0) * x + np.max(x, initial=5.0),
        X,
    ),
    "where": (lambda x, y: np.where(x < y, x**2, np.exp(y)), X, Y),
    "select": (lambda x, y: np.select([x < 0, x < 1], [x, x * y], 7.0), X, Y),
    "piecewise": (
        lambda x, y: np.piecewise(x, [x < y, x > 1], [np.sin, lambda t: t**3, 0.5]),
        *(X, Y),
    ),
    "interp": (lambda x, y: np.interp(x, [-1, 0, 1.0], y[:3], left=y[3]), X, Y),
    "trapezoid": (np.trapezoid, Y, np.sort(X)),
    "linspace": (lambda x: np.linspace(x[0], x[1], 7), X),
    "logspace": (lambda x: np.logspace(x[0], x[1], 4), X),
    "geomspace": (lambda x: np.geomspace(x[0], x[1], 4), POSITIVE),
    "stack": (lambda x, y: np.stack([x, y], axis=1) @ np.array([2.0, 3.0]), X, Y),
    "concatenate": (lambda x, y: np.concatenate([x, y[:2], [1, 2]]), X, Y),
    "hstack": (lambda x, y: np.hstack((x, y, 1.0)), X, Y),
    "vstack": (lambda x, y: np.vstack([x, y, np.arange(6)]), X, Y),
    "dstack": (lambda x, y: np.dstack([x, y]), X, Y),
    "column_stack": (lambda x, y: np.column_stack([x, np.ones_like(x), y]), X, Y),
    "block": (lambda x, y: np.block([[x, y], [y, 2 * x]]), X, Y),
    "einsum": (lambda m, x: np.einsum("ij,j,i", m, x[:3], x[3:]), MATRIX, X),
    "multi_dot": (lambda m: np.linalg.multi_dot([m, m, m]), MATRIX),
    "array": (lambda x: np.array([[x[0], x[1]], [2.0, x[2]]]), X),
    "array of rows": (lambda x, y: np.array([x, y * 2]).T @ [x[0], y[0]], X, Y),
    "objects": (lambda x: np.exp(np.array([x[0], x[1]])) + np.ones((3, 1)), X),
    "full": (lambda x: np.full(5, x[0]) * np.arange(5), X),
    "asarray": (lambda x: np.asarray(x) * np.asarray(x), X),
    "list": (lambda x: [x[0], x[1] + x[2], 3.0], X),
    "tuple": (lambda x: (x, x[0]), X),
    "dict": (lambda x: {"a": x, "b": [x[0], 1]}, X),
    "fft back": (lambda x: np.fft.irfft(np.fft.rfft(x)), X),
    "complex": (lambda x, y: abs(x + 1j * y) * np.angle(np.exp(1j * x)), X, Y),
    "parts": (lambda x, y: (x + 1j * y).real * (x - 1j * y).imag, X, Y),
    "faddeeva below": (lambda x, y: scipy.special.wofz(x - 1j * abs(y)), X, Y),
    "gauss of voigt": (lambda x: scipy.special.voigt_profile(x, 0.7, 0.0), X),
    "lorentz of voigt": (lambda x: scipy.special.voigt_profile(x, 0.0, 0.7), X),
    "betainc": (lambda x: scipy.special.betainc(1.5, 2.5, x), UNIT / 2 + 0.5),
    "betaincc": (lambda x: scipy.special.betaincc(1.5, 2.5, x), UNIT / 2 + 0.5),
    "expn": (lambda x: scipy.special.expn(3, x), POSITIVE),
    "zeta": (lambda x: scipy.special.zeta(3.0, x), LARGE),
    "reduce": (lambda m: np.add.reduce(m) + np.maximum.reduce(m, axis=1), MATRIX),
    "reduce more": (
        lambda m: np.multiply.reduce(m, axis=(0, 1), keepdims=True, initial=2.0),
        MATRIX,
    ),
    "reduce where": (lambda m: np.add.reduce(m, where=m > 0.35), MATRIX),
    "logical reduce": (lambda m: np.logical_and.reduce(m > 0), MATRIX),
    "accumulate": (lambda m: np.add.accumulate(m), MATRIX),
    "accumulate more": (lambda m: np.multiply.accumulate(m, axis=1), MATRIX),
    "accumulate max": (lambda x: np.maximum.accumulate(x), Y),
    "ufunc outer": (np.subtract.outer, X, Y),
    "at": (lambda x: [y := x * 1, np.add.at(y, [0, 0, 2], x[:3])][0], X),
    "log where": (where_written, POSITIVE, np.array([0.7])),
    "clip by name": (lambda x, y: np.clip(x, a_min=None, a_max=y), X, Y),
    "method clip": (lambda x: x.clip(0) + x.clip(max=1), X),
    "math-like": (lambda x: sum(float(k) * p for k, p in enumerate(x)), X),
    "powers": (lambda x: x**2 + x**-1 + x**3.0 + 2.0**x + x**0, X),
    "roots of numbers": (lambda x: x**0.5 + x ** np.float64(1.5), POSITIVE),
    "matrix of sum": (lambda m, x: m @ x[:3] + x[3:] @ m, MATRIX, X),
    "numbers left": (lambda x: 1 / x + (2 - x) + 3.1 % x + 7.1 // x + -x + +x, X),
    "arrays left": (lambda x: Y / x + (Y - x) + np.float64(2) * x, X),
    "index": (lambda x: x[::2] + x[[0, 1, -1]] * x[-1] + x[None, 1:4][0], X),
    "index by mask": (lambda x: x[Y > 0] ** 2, X),
    "index by traced": (lambda x: x[np.argsort(x)] * x[np.argmax(x)], X),
    "rows": (lambda m: sum(row * k for k, row in enumerate(m)), MATRIX),
    "types": (lambda x: (x > 0).astype(int) + (x > 1) * 2 + (3 * (x < 0)) / 2, X),
    "round": (lambda x: round(x[0], 1) + x.round(1), X),
    "gradient": (lambda x: np.gradient(x, 0.5), X),
    "gradient on a grid": (lambda x: np.gradient(x**2, np.sort(Y)), X),
    "diff": (lambda x: np.diff(x, n=2, prepend=0.0), X),
    "keepdims": (lambda m: m / m.sum(axis=1, keepdims=True), MATRIX),
    "deviation": (lambda m: m.std(axis=0, ddof=1) + m.var(), MATRIX),
    "same convolution": (lambda x: np.convolve(x, np.ones(3) / 3, mode="same"), X),
    "polynomial": (lambda x: np.polynomial.polynomial.polyval(Y, list(x[:3])), X),
    "polyval of a tuple": (lambda x: np.polyval(tuple(x[:3]), Y), X),
    "meshgrid": (lambda x, y: list(np.meshgrid(x, y, indexing="ij")), X, Y),
    "ellipsis": (lambda m: m[..., 0] + m[0, ...], MATRIX),
    "at least": (lambda x, m: np.atleast_2d(x, m[0], 3.0)[1] * x[:3], X, MATRIX),
    "divmod": (lambda x: divmod(x, 0.73)[1], X),
    "lists": (lambda x: x + [1, 2, 3, 4, 5, 6] + list(x), X),
    "jax left": (lambda x: jnp.asarray(Y) * np.sin(x), X),
    "len": (lambda x: x / len(x) + x.size + x.shape[0] + x.ndim, X),
    "upper triangle": (lambda m: np.linalg.eigvalsh(m, "U"), MATRIX),
    "linear system": (lambda m, x: np.linalg.solve(m, x[:3]), MATRIX, X),
    "least squares": (lambda m, x: np.linalg.lstsq(m, x[:3])[0], MATRIX, X),
}
METHODS = (
    "sum mean std var prod min max argmin argmax cumsum cumprod ravel flatten squeeze "
    "transpose copy conj conjugate any all argsort round:1 repeat:2 take:[2,0] "
    "reshape:-1,2 reshape:(3,2) astype:int astype:complex swapaxes:0,0 clip:0,1"
)


def parsed(names):
    for text in names.split():
        name, _, rest = text.partition(":")
        yield text, name, eval(f"[{rest}]")


def cases():
    for module, tables in ((np, NUMPY), (scipy.special, SPECIAL)):
        for names, arrays in tables:
            for text, name, rest in parsed(names):
                function = operator.attrgetter(name)(module)
                yield (
                    f"{module.__name__}.{text} {len(arrays)}",
                    (lambda *arrays, f=function, rest=rest: f(*arrays, *rest)),
                    arrays,
                )
    for text, name, rest in parsed(METHODS):
        method = operator.methodcaller(name, *rest)
        yield f"ndarray.{text}", method, (X,)
    for name, (function, *arrays) in FURTHER.items():
        yield name, function, tuple(arrays)


CASES = {name: (function, arrays) for name, function, arrays in cases()}


@pytest.fixture(scope="module")
def computed():
    """Value and slope of all cases, in few programs."""
    names, results = list(CASES), {}
    for part in (names[k::3] for k in range(3)):

        def values(arrays, part=part):
            return {
                name: speaking_numpy(CASES[name][0])(*arrays[name]) for name in part
            }

        def both(arrays, values=values):
            return jax.jvp(values, (arrays,), (jax.tree.map(direction, arrays),))

        arrays = {name: jax.tree.map(jnp.asarray, CASES[name][1]) for name in part}
        options = compiler_options(is_hasty=True)
        result, slope = jax.jit(both, compiler_options=options)(arrays)
        results |= {name: (result[name], slope[name]) for name in part}
    return results


def direction(array):
    return np.cos(np.arange(array.size) + 1.0).reshape(array.shape)


@pytest.mark.filterwarnings("ignore:numpy.fix is deprecated")
@pytest.mark.parametrize("name", CASES)
def test_value_and_slope(name, computed):
    """NumPy's value and dtype; the slope of central differences."""
    function, arrays = CASES[name]
    value, slope = computed[name]
    first, *others = arrays
    assert same_as_numpy(function, first, others, value)
    step = 1e-6
    beside = [
        jax.tree.map(np.asarray, leaves_of(function, arrays, sign * step))
        for sign in (1, -1)
    ]
    for after, before, leaf, one in zip(
        *beside, leaves(value), leaves(slope), strict=True
    ):
        assert leaf.dtype == after.dtype
        if after.dtype.kind in "fc":
            expected = (after - before) / (2 * step)
            scale = 1 + np.abs(expected).max() + np.abs(after).max()
            np.testing.assert_allclose(one, expected, rtol=0, atol=1e-8 * scale)


def leaves_of(function, arrays, step):
    return leaves(function(*(array + step * direction(array) for array in arrays)))


def leaves(value):
    """The arrays of a result, lists of which are arrays."""
    if isinstance(value, dict):
        return [leaf for k in sorted(value) for leaf in leaves(value[k])]
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [np.asarray(value)]


def divided_by_zero(x):
    with np.errstate(divide="ignore"):
        return 5 // (x - 1) + 7 % (x - 1) + np.fmod(3, x) + divmod(9, x)[1]


NARROW = {  # other dtypes than float64, in which JAX has other rules
    "mean": (np.mean, "i4"),
    "spread": (np.std, "u1"),
    "quantile": (lambda x: np.percentile(x, 30), "u2"),
    "fft": (np.fft.rfft, "i4"),
    "exp": (np.exp, "i4"),
    "exp of bytes": (np.exp, "u1"),
    "ratio": (lambda x, y: x / (y + 1), "u2 i4"),
    "product": (lambda x, y: x * y, "i4 f4"),
    "difference": (lambda x, y: np.subtract(x, y), "u1 u1"),
    "dot": (np.dot, "f4 i4"),
    "where": (lambda x, y: np.where(x > 0, x, y), "f4 i4"),
    "stack": (lambda x, y: np.stack([x, y]), "f4 i4"),
    "single": (lambda x: 2.0 * np.exp(x) + x.sum(), "f4"),
    "logic": (lambda x, y: (x > 1) + (y > 1) * 3 + np.mean(x > 0), "f4 i4"),
    "gamma": (scipy.special.gammaln, "i4"),
    "sum": (lambda x: x.sum() + np.add.reduce(x) - x.max(), "u1"),
    "list": (lambda x: [x[0], 1.5, 2], "f4"),
    "integers by zero": (divided_by_zero, "i8"),
    "integers": (lambda x: (x // 2) ** 2 + x % 3 - (x << 1), "i8"),
}


@pytest.mark.parametrize("name", NARROW)
def test_other_dtypes(name):
    """NumPy's dtype, and its value to the digits of float32 where that is in play."""
    function, dtypes = NARROW[name]
    arrays = [np.abs(2 * X).astype(dtype) for dtype in dtypes.split()]
    value = np.asarray(speaking_numpy(function)(*map(jnp.asarray, arrays)))
    truth = np.asarray(function(*arrays))
    assert value.dtype == truth.dtype
    np.testing.assert_allclose(value, truth, rtol=1e-6 if "f4" in dtypes else 1e-13)


# Programs that write, with NumPy's result as the truth


def masked(x, p):
    y = np.zeros_like(x)
    y[x > 0.5] = p[0] * x[x > 0.5] ** 2
    y[x <= 0.5] = p[1]
    return y


def masked_by_parameter(x, p):
    y = x * p[0]
    y[x < p[1]] = 0.0
    y[y > p[2]] = p[2]
    return y


def parts(x, p):
    y = np.empty_like(x)
    y[:2], y[2:4] = p[0], p[1] * x[2:4]
    y[4:] = [p[2], 1.0]
    y[-1] += p[0]
    y[1:3] *= x[1:3]
    return y


def in_place(x, p):
    y = p[0] * x
    same = y
    y += p[1]
    y -= x
    y *= 2.0
    y /= p[2]
    y **= 2
    y %= 0.7
    return same


def numbers_do_not_change(x, p):
    a = p[0]
    b = a
    b += 1
    b *= x[0]
    return a * x + b


def view_of_slice(x, p):
    y = p[0] * x
    v = y[2:5]
    w = v[::2]
    w[:] = p[1]
    v += 1
    y[3] = p[2]
    return y + v.sum() + w.sum()


def view_of_transpose(x, p):
    y = np.stack([p[0] * x, x])
    b = y.T
    b[0] = p[1]
    b[1:, 1] *= p[2]
    y.swapaxes(0, 1)[2] = 7.0
    np.moveaxis(y, 0, 1)[3, 0] = p[0]
    return y.ravel() + 0 * b.ravel("F")


def view_of_shape(x, p):
    y = p[0] * x
    b = y.reshape(2, 3)
    b[0] = p[1]
    y[4] = p[2]
    b[:, None].squeeze()[1, 2] += 1
    np.expand_dims(y, 0)[0, 3] = p[0]
    y.ravel()[2] = -1.0
    return y + b.sum()


def view_of_parts(x, p):
    z = p[0] * x + 1j * p[1]
    z.real[1:] += p[2]
    z.imag = x
    z.real = z.real * 2
    return z


def rows(x, p):
    y = np.stack([p[0] * x, x, x + p[1]])
    for k, row in enumerate(y):
        row += k
        row[0] = p[2]
    return y


def out(x, p):
    y = np.zeros_like(x)
    np.multiply(p[0], x, out=y)
    np.exp(y, out=y)
    np.cumsum(y, out=y)
    np.add(y[:-1], 1, out=y[1:])
    np.divide(1.0, x - p[1], out=y, where=x > p[1])
    np.sqrt(y, y)
    return y


def copies(x, p):
    y = p[0] * x
    z, w, u = y.copy(), y[[0, 1, 2, 3, 4, 5]], y.flatten()
    z[0] = w[1] = u[2] = 0.0
    y.fill(p[1])
    y[::2].fill(p[2])
    return [y, z, w, u, +y, y.astype(float), np.array(x)]


def overlapping(x, p):
    y = p[0] * x
    y[1:] = y[:-1]
    y[:3] += y[3:]
    y[::-1][:2] = p[1:]
    return y


def types(x, p):
    y = np.zeros(x.shape, int) + np.arange(6)
    y = np.zeros_like(y + 0 * x.astype(int))
    y[:] = p[0] * x
    z = np.zeros_like(x, dtype=complex)
    z[1:] = p[1]
    return z + y


def grid(x, p):
    m = np.outer(x, p)
    m[m > 1.0] = 1.0
    m[0, :], m[:, 0] = p, x
    m[[1, 2], [0, 1]] = p[0], p[1]
    m[np.arange(6) > 3] = p
    np.add.at(m, ([0, 0], [1, 1]), p[0])
    np.subtract.at(m, 2, p)
    np.copyto(m, p, where=m < -1)
    np.putmask(m, m > 2, p[0])
    m[..., 1] += 1
    m[:, None, 2] = 1
    return m


def recurrence(x, p):
    y = np.zeros_like(x)
    y[0] = p[0]
    for k in range(1, len(x)):
        y[k] = y[k - 1] * p[1] + x[k] * p[2]
    return y


def sorted_in_place(x, p):
    y = p[0] * x
    y.sort()
    y[np.argmax(x)] = p[1]
    return y


def known_numbers(x, p):
    scale = float(x.max()) if x.max() > 1 and int(x.size) == len(x) else 1.0
    return p[0] * x / scale + p[1] * math.exp(x[0]) + p[2] * np.flatnonzero(x > 0).sum()


def matrix_in_loop(x, p):
    result = []
    for t in x:
        m = np.array([[p[0], t], [0.5 * t, p[1]]])
        result.append((m @ m + np.eye(2)).ravel() @ [1.0, p[2], 2.0, 3.0])
    return np.array(result)


def no_parameters(x, p):
    return np.sin(x)


PROGRAMS = [
    *(masked, masked_by_parameter, parts, in_place, numbers_do_not_change),
    *(view_of_slice, view_of_transpose, view_of_shape, view_of_parts, rows, out),
    *(copies, overlapping, types, grid, recurrence, sorted_in_place, known_numbers),
    *(matrix_in_loop, no_parameters),
]
P = np.array([1.3, 0.6, 1.1])
FOR_KNOWN_X = {known_numbers, sorted_in_place}  # need the numbers of x


def name_of(function):
    return function.__name__


@pytest.fixture(scope="module")
def written():
    """All programs with x known, and with x traced."""

    def known(p):
        return {f.__name__: speaking_numpy(f)(X, p) for f in PROGRAMS}

    def both(x, p):
        with_traced = [f for f in PROGRAMS if f not in FOR_KNOWN_X]
        traced = {f.__name__: speaking_numpy(f)(x, p) for f in with_traced}
        return {"known": known(p), "traced": traced}

    options = compiler_options(is_hasty=True)
    return jax.jit(both, compiler_options=options)(jnp.asarray(X), jnp.asarray(P))


@pytest.mark.parametrize("function", PROGRAMS, ids=name_of)
@pytest.mark.parametrize("which", ["known", "traced"])
def test_writing(function, which, written):
    """What a program writes, views see, and copies do not."""
    if which == "traced" and function in FOR_KNOWN_X:
        with pytest.raises(NeedsHost):
            jax.eval_shape(speaking_numpy(function), X, P)
    else:
        assert same_as_numpy(function, X, [P], written[which][function.__name__])
    assert np.array_equal(P, [1.3, 0.6, 1.1])


SHARING = [  # cases in which NumPy's result shares memory with an argument
    name
    for name, (function, arrays) in CASES.items()
    if "fix" not in name
    for leaf in [leaves(function(*arrays))[0]]
    if any(np.may_share_memory(leaf, array) for array in arrays)
]


@pytest.mark.parametrize("name", SHARING)
def test_sharing(name):
    """What looks at an array sees what is written to it, or the host is needed."""
    function, arrays = CASES[name]

    def program(first, *others):
        arrays = [first * 1.0, *(1.0 * other for other in others)]
        result = function(*arrays)
        for array in arrays:
            array[...] = array / 2
        return result

    with contextlib.suppress(NeedsHost):
        value = speaking_numpy(program)(*map(jnp.asarray, arrays))
        assert same_as_numpy(program, arrays[0], arrays[1:], value)


# Models as users have them


def piecewise_lines(x, x0, y0, k1, k2):
    below, above = (lambda x: k1 * x + y0 - k1 * x0), (lambda x: k2 * x + y0 - k2 * x0)
    return np.piecewise(x, [x < x0], [below, above])


def written_by_masks(x, a, b):
    y = np.zeros_like(x)
    y[x > 2] = a * x[x > 2]
    y[x <= 2] = b
    return y


def peaks(x, *p):
    peaks = (p[k] * np.exp(-(((x - p[k + 1]) / p[k + 2]) ** 2)) for k in (0, 3))
    return sum(peaks)


def smoothed(x, a, b):
    return np.convolve(a * np.exp(-b * x), np.ones(5) / 5, mode="same")


def integrals(x, a, b):
    def integral(t):
        nodes = np.linspace(0, t, 30)
        return np.trapezoid(a * np.exp(-b * nodes), nodes)

    return np.array([integral(t) for t in x])


def faddeeva(x, a, s, g):
    return a * np.real(scipy.special.wofz((x - 2 + 1j * g) / s / np.sqrt(2)))


def gamma_density(x, a, k, t):
    return a * x ** (k - 1) * np.exp(-x / t) / (scipy.special.gamma(k) * t**k)


def interpolated(x, a, b):
    return a * np.interp(x * 1.0, np.linspace(0, 5, 11), np.arange(11) ** 2.0) + b


TYPICAL = {
    "exp": (lambda x, a, b, c: a * np.exp(-b * x) + c, 2, 1, 0.5),
    "gauss": (lambda x, h, m, s: h * np.exp(-0.5 * ((x - m) / s) ** 2), 2, 1, 0.5),
    "where": (
        lambda x, a, b, t: np.where(x < t, a * x, a * t + b * (x - t)),
        *(2, 1, 2.5),
    ),
    "piecewise": (piecewise_lines, 2, 1, 0.5, 0.2),
    "erf": (lambda x, a, m, s: a * scipy.special.erf((x - m) / s), 2, 1, 0.5),
    "peaks": (peaks, 2, 1, 0.5, 1, 3, 0.4),
    "polyval": (lambda x, *p: np.polyval(p, x), 2, 1, 0.5),
    "sinc": (lambda x, a, b: a * np.sinc(b * x), 2, 1),
    "interp": (interpolated, 2, 1),
    "convolve": (smoothed, 2, 1),
    "parts": (lambda x, a, b: np.concatenate([a * x[:9], b * x[9:]]), 2, 1),
    "masks": (written_by_masks, 2, 1),
    "math": (lambda x, a, b: a * math.exp(-b) * x, 2, 1),
    "if": (lambda x, a, b: (a if a > b else b) * x, 2, 1),
    "voigt": (
        lambda x, a, s, g: a * scipy.special.voigt_profile(x - 2, s, g),
        *(2, 0.3, 0.2),
    ),
    "faddeeva": (faddeeva, 2, 0.3, 0.2),
    "gamma": (gamma_density, 2, 2, 0.5),
    "hypot": (lambda x, a, b: np.hypot(a, b * x), 2, 1),
    "heaviside": (lambda x, a, b: a * np.heaviside(x - b, 0.5), 2, 1),
    "matmul": (lambda x, a, b: np.stack([x, x**2]).T @ np.array([a, b]), 2, 1),
    "cumsum": (lambda x, a, b: np.cumsum(a * np.exp(-b * x)), 2, 1),
    "abs": (lambda x, a, b: abs(a * x - b), 2, 1),
    "clip": (lambda x, a, b: np.clip(a * x, 0, b), 2, 1),
    "trapezoid": (integrals, 2, 1),
}
TIMES = np.linspace(0.1, 5, 20)


def test_typical_models():
    """Of 24 models 22 are compiled, and their values are NumPy's, slopes finite."""

    def compiled(name, p):
        return speaking_numpy(TYPICAL[name][0])(TIMES, *p)

    parameters = {name: jnp.array(p, float) for name, (_, *p) in TYPICAL.items()}
    for name in ("math", "if"):
        with pytest.raises(NeedsHost):
            jax.eval_shape(lambda p, name=name: compiled(name, p), parameters.pop(name))

    def both(parameters):
        def curves(parameters):
            return {name: compiled(name, p) for name, p in parameters.items()}

        return jax.jvp(curves, (parameters,), (parameters,))

    options = compiler_options(is_hasty=True)
    values, slopes = jax.jit(both, compiler_options=options)(parameters)
    assert len(values) == 22
    for name, (function, *p) in TYPICAL.items():
        if name in values:
            assert same_as_numpy(function, TIMES, p, values[name])
            assert np.isfinite(slopes[name]).all()


# What needs the host


def flattened_then_both(x, p):
    y = np.outer(x, p)
    y.ravel()[0] = 1.0
    return y


def base_then_flattened(x, p):
    y = np.outer(x, p)
    v = y.reshape(-1)
    y[0] = 1.0
    return v


def flipped(x, p):
    y = p[0] * x
    v = y[::-1].ravel()
    w = np.flip(y)
    w[0] = 1.0
    return y + v


def siblings(x, p):
    y = np.outer(x, p)
    a, b = y.ravel(), y.T.ravel()
    a[0] = 1.0
    return b


def split_rows(x, p):
    y = p[0] * x
    halves = np.split(y, 2)
    halves[0] += 1
    return y


def inner_view(x, p):
    y = np.outer(x, p)
    v = y.ravel()[3:]
    y[...] = 0
    return v


def swallowed(x, p):
    try:
        return x * float(p[0])
    except Exception:
        return x


def remembered(x, p):
    MEMORY.append(p)
    return x * MEMORY[0][0]


MEMORY = []


def twice(x, p):
    y = np.zeros_like(x)
    y[[0, 0]] = p[:2]
    return y


def changed_shape(x, p):
    y = p[0] * x
    y.shape = (2, 3)
    return y


class Opaque:
    def __array_ufunc__(self, *_, **__):
        return NotImplemented


REFUSED = {  # with words of the reason
    "view": (
        *(flattened_then_both, base_then_flattened, flipped, siblings, split_rows),
        inner_view,
    ),
    "float()": (
        swallowed,
        lambda x, p: math.exp(p[0]) * x,
        lambda x, p: p[0].item() * x,
        lambda x, p: x * p.tolist()[0],
        lambda x, p: x * int(p[0]),
        lambda x, p: x * round(p[0]),
    ),
    "np.minimum": (
        lambda x, p: x if p[0] > 1 else -x,
        lambda x, p: max(p[0], p[1]) * x,
        lambda x, p: x * (p[0] in [1.0, 2.0]),
        lambda x, p: x if np.allclose(p, 1) else -x,
    ),
    "length": (
        lambda x, p: sum(x for _ in range(p.astype(int)[0])),
        lambda x, p: np.zeros(p.astype(int)[0]),
        lambda x, p: x[: p.astype(int)[0]],
    ),
    "np.where(condition, a, b)": (
        lambda x, p: x[x > p[0]],
        lambda x, p: np.where(x > p[0])[0],
        lambda x, p: [y := x * 1, y.__setitem__(x > p[0], x * p[1])][0],
    ),
    "no counterpart": (
        lambda x, p: scipy.special.j1(x * p[0]),
        lambda x, p: scipy.special.ellipk(x * p[0]),
        lambda x, p: np.apply_along_axis(np.sum, 0, x * p[0]),
        lambda x, p: np.nextafter(x, p[0]),
        lambda x, p: np.frompyfunc(lambda t: t + 1, 1, 1)(x * p[0]),
        lambda x, p: np.emath.sqrt(x * p[0]),
    ),
    "": (
        *(remembered, twice, changed_shape),
        lambda x, p: np.arange(0, p[0], 0.1),
        lambda x, p: np.random.default_rng(1).normal(p[0], 1.0, 6),
        lambda x, p: scipy.special.lambertw(x * p[0]),
        lambda x, p: scipy.special.legendre(3)(x * p[0]).astype(complex).flat[0],
        lambda x, p: scipy.special.logsumexp(np.tile(x, 100) * p[0]),
        lambda x, p: scipy.special.polygamma(1, x * p[0]),
        lambda x, p: {p[0]: x}[p[0]],
        lambda x, p: f"{p[0]:.3f}" and x,
        lambda x, p: str(p[0]) and x,
        lambda x, p: (x * p[0]).flat[2],
        lambda x, p: (x * p[0]).astype(np.longdouble),
        lambda x, p: np.add(x, p[0], where=x > 0),
        lambda x, p: np.add.reduceat(x * p[0], [0, 3]),
        lambda x, p: np.unique(x * p[0]),
        lambda x, p: np.nonzero(x * p[0])[0],
        lambda x, p: np.array([x, p], dtype=object),
        lambda x, p: np.fill_diagonal(np.outer(x, p), 0),
        lambda x, p: np.nan_to_num(x * p[0], copy=False),
        lambda x, p: np.gradient(x * p[0], edge_order=2),
        lambda x, p: jnp.exp(x * p[0]) + np.exp(p[0]),
        lambda x, p: [y := x * 1, y.__setitem__(x.astype(int), p[0])][0],
        lambda x, p: np.cumsum((x * p[0]).astype(np.uint8)),
        lambda x, p: scipy.special.erf(x * p[0] + 1j),
        lambda x, p: scipy.special.factorial(x * p[0]),
        lambda x, p: Opaque() * x,
        lambda x, p: np.vectorize(lambda t: t if t > p[0] else 0.0)(x),
        lambda x, p: np.choose([0, 1, 0, 1, 0, 1], [x, x * p[0]]),
    ),
}


@pytest.mark.parametrize(
    ("words", "function"),
    [(words, function) for words, fs in REFUSED.items() for function in fs],
)
def test_needs_host(words, function):
    """A reason, and the user's line."""
    MEMORY.clear()
    with pytest.raises(NeedsHost) as info:
        jax.eval_shape(lambda *a: [speaking_numpy(function)(*a) for _ in "12"], X, P)
    assert words in info.value.reason
    assert info.value.reason.startswith("it ")
    assert __file__ in info.value.place


OTHERS = {  # errors that are the user's
    ZeroDivisionError: lambda x, p: x / (1 // 0),
    NameError: lambda x, p: undefined_name * x,
    IndexError: lambda x, p: x[17],
    KeyError: lambda x, p: {}["a"],
    RuntimeError: lambda x, p: raised(RuntimeError("no")),
    ValueError: lambda x, p: raised(ValueError("of the user")),
    TypeError: lambda x, p: len(3),
}


def raised(error):
    raise error


@pytest.mark.parametrize("kind", OTHERS)
def test_other_errors_pass(kind):
    """They are the user's."""
    with pytest.raises(kind):
        jax.eval_shape(speaking_numpy(OTHERS[kind]), X, P)


@pytest.mark.parametrize("index", [6, -7, (0, 0), [1, 9], np.ones(5, bool), 1.5, "a"])
@pytest.mark.parametrize("write", [False, True])
def test_wrong_index(index, write):
    """It is an error as in NumPy, and nothing that JAX would take in its place."""

    def function(x, p):
        y = p[0] * x
        if write:
            y[index] = 0.0
        return y[index]

    for call in (function, lambda x, p: jax.eval_shape(speaking_numpy(function), x, p)):
        with pytest.raises((IndexError, NeedsHost)):
            call(X, P)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda y: y * (1 + 2e-9),
        lambda y: np.where(np.arange(6) == 2, np.nan, y),
        lambda y: y[:-1],
        lambda y: y[:, None],
        lambda y: np.where(np.arange(6) == 2, np.inf, y),
    ],
)
def test_same_as_numpy(spoilt):
    """It holds for the same, and not for anything else."""
    y = 2.0 * X
    assert same_as_numpy(lambda x, a: a * x, X, [2.0], y)
    assert same_as_numpy(lambda x, a: a * x, X, [2.0], y * (1 + 1e-10))
    assert not same_as_numpy(lambda x, a: a * x, X, [2.0], spoilt(y))
    assert not same_as_numpy(lambda x, a: spoilt(a * x), X, [2.0], y)
