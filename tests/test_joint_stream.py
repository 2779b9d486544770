"""Joint fits of blocks from a disk: the answer of all at once, however interrupted."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxfit import (
    JointSolution,
    Options,
    Shared,
    Status,
    Weighted,
    losses,
    npy_blocks,
    solve_joint,
    solve_joint_stream,
)

B, M = 40, 12
RNG = np.random.default_rng(0)
T = np.linspace(0, 4, M)
U = np.stack([RNG.uniform(1, 3, B), RNG.uniform(-1, 1, B)], axis=1)
NOISE = RNG.normal(size=(B, M))
CLEAN = U[:, :1] * np.exp(-1.3 * T) + U[:, 1:]
Y = CLEAN + 0.05 * NOISE
WEIGHTS = RNG.uniform(0.5, 2, (B, M))
X0, U0 = np.array([1.0]), np.tile([1.0, 0.0], (B, 1))
ALL_ALIKE = Shared(U0[0])
ENDS = (0, 15, 15, 18, 33, 40)  # of items, one of them empty
THREE = (0, 15, 30, 40)


def decay(x, u, data):
    """Heights and offsets of its own for each block, one rate for all."""
    t, y = data
    return u[0] * jnp.exp(-x[0] * t) + u[1] - y


def cut(leaves, ends=ENDS):
    """Items of blocks."""
    pairs = list(itertools.pairwise(ends))
    return [[leaf[a:b] for leaf in leaves] for a, b in pairs]


def items_of(y, ends=ENDS):
    """Items of data."""
    return [(Shared(T), part) for (part,) in cut([y], ends)]


ITEMS = items_of(Y)
WEIGHTED = [Weighted((Shared(T), y), w) for y, w in cut([Y, WEIGHTS])]
BOUNDS = {"bounds": (0.9, 5.0), "local_bounds": ([0.0, -9.0], [2.0, 0.5])}


class Source:
    """Items that may be cut off, and note what is read."""

    def __init__(self, items, reads=None):
        self.items, self.left, self.read = items, reads, []

    def __iter__(self):
        return self.iter_from(0)

    def iter_from(self, index):
        for number in range(index, len(self.items)):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            self.read.append(number)
            yield self.items[number]


def assert_near(stream, memory, rtol=1e-10):
    assert isinstance(stream, JointSolution)
    assert stream.status == memory.status
    assert stream.count == memory.count
    assert_array_equal(stream.local_status > 0, memory.local_status > 0)
    assert_allclose(stream.x, memory.x, rtol=rtol)
    assert_allclose(stream.cost, memory.cost, rtol=rtol)
    for a, b in zip(*map(jax.tree.leaves, (stream.local, memory.local)), strict=True):
        assert isinstance(a, np.ndarray)
        assert_allclose(a, b, rtol=rtol, atol=rtol)
    for name in ("covariance", "local_covariance", "cross_covariance"):
        one, other = (np.asarray(getattr(fit, name)()) for fit in (stream, memory))
        assert_allclose(one, other, rtol=1e-8, atol=1e-9 * np.max(np.abs(other)))
    assert_array_equal(stream.factors.is_used, memory.factors.is_used)
    assert_array_equal(stream.factors.active, memory.factors.active)
    assert_array_equal(stream.local_free, memory.local_free)


def assert_identical(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        assert_array_equal(a, b)


# The answer


@pytest.mark.parametrize(
    "setting",
    [
        {},
        BOUNDS,
        BOUNDS | {"loss": losses.SoftL1(0.05)},
    ],
    ids=["plain", "bounds", "bounds and loss"],
)
def test_as_in_memory(setting):
    stream = solve_joint_stream(decay, X0, U0, ITEMS, **setting)
    memory = solve_joint(decay, X0, U0, (Shared(T), Y), **setting)
    assert_near(stream, memory)
    if "bounds" in setting:
        assert stream.success
        assert stream.active[0] == -1
        assert {*np.unique(stream.local_active)} == {0, 1}
    assert_allclose(stream.local_stderr(), memory.local_stderr(), rtol=1e-8)


@pytest.mark.parametrize("linear", [False, True])
def test_weights(linear):
    stream = solve_joint_stream(decay, X0, ALL_ALIKE, WEIGHTED, linear=linear)
    memory = solve_joint(
        decay, X0, ALL_ALIKE, (Shared(T), Y), weights=WEIGHTS, linear=linear
    )
    assert_near(stream, memory)


@pytest.mark.parametrize("noise", [0.05, 1e-7, 1e-13])
@pytest.mark.parametrize("ends", [ENDS, (0, 40)], ids=["ragged", "one"])
def test_blocks_that_differ_in_their_data_alone(noise, ends):
    y = CLEAN + noise * NOISE
    source = Source(items_of(y, ends))
    stream = solve_joint_stream(decay, X0, U0, source, linear=True)
    memory = solve_joint(decay, X0, U0, (Shared(T), y), linear=True)
    rtol = 1e-9 if noise > 1e-10 else 1e-2  # of what is left of the digits
    assert stream.status == memory.status
    assert_allclose(stream.x, memory.x, rtol=1e-12)
    assert_allclose(stream.local, memory.local, rtol=1e-11, atol=1e-12)
    assert_allclose(stream.cost, memory.cost, rtol=rtol)
    assert_allclose(stream.local_covariance(), memory.local_covariance(), rtol=rtol)
    assert_allclose(stream.cross_covariance(), memory.cross_covariance(), rtol=rtol)
    assert stream.count == memory.count
    passes = 3 if noise < 1e-5 else 2
    assert source.read.count(len(ends) - 2) - (len(ends) <= 3) == passes


def test_a_first_item_that_is_unlike_the_others():
    """Its mean is a bad centre, and what that costs is made good by another pass."""
    y = CLEAN + 1e-3 * NOISE
    y[:15] = 1e6 * NOISE[:15]
    shifted = CLEAN + 1e-3 * NOISE + 1e4
    shifted[:15] -= 1e4
    for blocks in (y, shifted):
        stream = solve_joint_stream(decay, X0, U0, items_of(blocks), linear=True)
        memory = solve_joint(decay, X0, U0, (Shared(T), blocks), linear=True)
        assert_allclose(stream.x, memory.x, rtol=1e-8)
        assert_allclose(stream.cost, memory.cost, rtol=1e-9)


def test_pytrees_and_several_files(tmp_path):
    """Parameters by name; items of `.npy` files; starts of which some are shared."""
    np.save(tmp_path / "y.npy", Y)
    np.save(tmp_path / "offset.npy", U0[:, 1])

    def named(x, u, data):
        return decay(x["rate"][None], [u["height"], u["offset"]], data)

    offset = np.load(tmp_path / "offset.npy", mmap_mode="r")
    starts = {"rate": 1.0}, {"height": Shared(1.0), "offset": offset}
    blocks = npy_blocks((Shared(T), tmp_path / "y.npy"), 15)
    stream = solve_joint_stream(named, *starts, blocks)
    plain = solve_joint_stream(decay, X0, U0, items_of(Y, THREE))
    assert_allclose(stream.x["rate"], plain.x[0], rtol=1e-14)
    assert stream.local["height"].shape == (B,)
    assert_allclose(stream.local["offset"], plain.local[:, 1], rtol=1e-12)
    assert_allclose(
        stream.local_stderr()["height"], plain.local_stderr()[:, 0], rtol=1e-12
    )


def test_float32():
    items = [(Shared(T.astype("f")), y.astype("f")) for _, y in ITEMS]
    for linear in (False, True):
        fit = solve_joint_stream(
            decay, X0.astype("f"), U0.astype("f"), items, linear=linear
        )
        assert fit.success
        assert fit.local.dtype == np.float32
        memory = solve_joint(decay, X0, U0, (Shared(T), Y))
        assert abs(float(fit.x[0]) - memory.x[0]) < 0.1 * memory.stderr()[0]


# Interruptions


def interrupted(tmp_path, items, reads, **setting):
    """A fit that is cut off when so many items were read, and goes on."""
    path = tmp_path / f"{reads}.npz"
    call = {"checkpoint": path, "checkpoint_every": 1} | setting
    cut_off = False
    try:
        solve_joint_stream(decay, X0, ALL_ALIKE, Source(items, reads), **call)
    except KeyboardInterrupt:
        cut_off = True
    fit = solve_joint_stream(decay, X0, ALL_ALIKE, Source(items), **call)
    return fit, cut_off, path


@pytest.mark.parametrize("noise", [None, 0.05, 1e-9], ids=["steps", "mixed", "by QR"])
def test_goes_on_to_the_same_bits(tmp_path, noise):
    items, setting = items_of(Y, THREE), {}
    if noise is not None:
        items = items_of(CLEAN + noise * NOISE, THREE)
        setting = {"linear": True}
    source = Source(items)
    expected = solve_joint_stream(decay, X0, ALL_ALIKE, source, **setting)
    for reads in range(1, len(source.read) + 1):
        fit, cut_off, path = interrupted(tmp_path, items, reads, **setting)
        assert cut_off or reads >= len(source.read) - 2
        assert_identical(fit, expected)
    again = Source(items)
    fit = solve_joint_stream(decay, X0, ALL_ALIKE, again, checkpoint=path, **setting)
    assert again.read == []
    assert_identical(fit, expected)


def test_the_checkpoint_of_another_fit(tmp_path):
    path = tmp_path / "fit.npz"
    solve_joint_stream(decay, X0, U0, ITEMS, checkpoint=path)
    for change, word in [
        ({"u0": 2 * U0}, "u0"),
        ({"local_bounds": (-9, 9)}, "local_bounds"),
        ({"linear": True}, "linear"),
        ({"fn": lambda x, u, data: 2 * decay(x, u, data)}, "code"),
    ]:
        call = {"fn": decay, "x0": X0, "u0": U0, "blocks": ITEMS} | change
        with pytest.raises(ValueError, match=rf"another fit.*{word}"):
            solve_joint_stream(**call, checkpoint=path)


# What is refused, or told


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(
    ("number", "has"), [(39, "40"), (41, "40"), (30, "33 or more")]
)
def test_other_numbers_of_starts(linear, number, has):
    u0 = np.ones((number, 2))
    message = f"u0 has starts for {number} blocks, and the items have {has}"
    with pytest.raises(ValueError, match=message):
        solve_joint_stream(decay, X0, u0, Source(ITEMS), linear=linear)
    if number != 30:
        with pytest.raises(ValueError, match=message):
            solve_joint_stream(decay, X0, u0, ITEMS, linear=linear)


def bad_item(y):
    return [*ITEMS[:3], (Shared(T), y), *ITEMS[4:]]


def test_a_bad_item():
    y = ITEMS[3][1].copy()
    y[4, 2] = np.nan
    with pytest.raises(ValueError, match=r"Item 3 has NaN .* 1 of its 15 blocks.* 4"):
        solve_joint_stream(decay, X0, U0, bad_item(y))
    with pytest.raises(ValueError, match="Item 3 has other arrays"):
        solve_joint_stream(decay, X0, U0, Source(bad_item(np.ones((15, 3)))))
    fit = solve_joint_stream(decay, X0, U0, bad_item(y), nan_policy="propagate")
    assert fit.status == Status.NONFINITE_START
    assert "Blocks 22 could not be fitted" in fit.message
    weights = np.where(np.isnan(y), 0.0, 1.0)
    items = [Weighted(item, np.ones_like(item[1])) for item in ITEMS]
    items[3] = Weighted((Shared(T), y), weights)
    fit = solve_joint_stream(decay, X0, U0, items)
    assert fit.success
    assert fit.count == Y.size - 1


def test_bad_arguments():
    call = decay, X0, U0
    with pytest.raises(ValueError, match="rows of an item are whole blocks"):
        solve_joint_stream(*call, ITEMS, nan_policy="omit")
    with pytest.raises(ValueError, match="nan_policy is 'drop'"):
        solve_joint_stream(*call, ITEMS, nan_policy="drop")
    with pytest.raises(ValueError, match="checkpoint_every is 0"):
        solve_joint_stream(*call, ITEMS, checkpoint_every=0)
    with pytest.raises(TypeError, match="read only once"):
        solve_joint_stream(*call, iter(ITEMS))
    with pytest.raises(ValueError, match=r"u0 has the shape \(\)"):
        solve_joint_stream(decay, X0, 1.0, ITEMS)
    with pytest.raises(ValueError, match="numbers of blocks differ"):
        solve_joint_stream(decay, X0, (np.ones(3), np.ones(4)), ITEMS)
    with pytest.raises(ValueError, match="blocks has no blocks"):
        solve_joint_stream(decay, X0, ALL_ALIKE, [])
    with pytest.raises(ValueError, match="not seen to be affine"):
        solve_joint_stream(
            lambda x, u, data: decay(x, u**2, data), X0, U0, ITEMS, linear=True
        )
    crossed = solve_joint_stream(*call, ITEMS, local_bounds=(1.0, 0.0))
    assert crossed.status == Status.INVALID_BOUNDS
    outside = solve_joint_stream(*call, ITEMS, bounds=(2.0, 3.0))
    assert outside.status == Status.INVALID_BOUNDS


def test_passes_that_differ():
    class Changing(Source):
        def __iter__(self):
            self.read.append(0)
            return iter(self.items if len(self.read) == 1 else self.other)

    for other in (ITEMS[:-1], [*ITEMS, ITEMS[0]]):
        source = Changing(ITEMS)
        source.other = other
        with pytest.raises(ValueError, match=r"This pass found .* in \d items"):
            solve_joint_stream(decay, X0, ALL_ALIKE, source)


@pytest.mark.parametrize("linear", [False, True])
def test_progress(capsys, monkeypatch, linear):
    monkeypatch.setattr("jaxfit._programs.progress.SHOWN_EVERY", 0)
    solve_joint_stream(
        decay, X0, U0, ITEMS, progress=True, linear=linear, options=Options(ftol=1e-3)
    )
    line = capsys.readouterr().err
    words = (
        ("sums", "local parameters") if linear else ("pass 1", "last pass", "radius")
    )
    for word in (*words, "blocks/s", "cost", "s left in the pass"):
        assert word in line
