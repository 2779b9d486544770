"""Blocks from a disk: the answer of all rows at once, through every interruption."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, decay, residual

from jaxfit import (
    Options,
    Shared,
    Weighted,
    losses,
    npy_blocks,
    solve,
    solve_stream,
    warm_start,
)
from jaxfit._stream.feed import Feed

TESTS = Path(__file__).parent
ROWS, BLOCK = 1003, 100
DATA, _ = decay(rows=ROWS)


def cut(data, block=BLOCK):
    rows = len(jax.tree.leaves(data)[0])
    return [
        jax.tree.map(lambda leaf, i=i: leaf[i : i + block], data)
        for i in range(0, rows, block)
    ]


BLOCKS = cut(DATA)


@pytest.fixture(scope="module")
def whole():
    return solve(residual, START, DATA)


@pytest.fixture(scope="module")
def streamed():
    return solve_stream(residual, START, BLOCKS)


def assert_near(found, expected):
    assert found.status == expected.status
    assert abs(int(found.steps) - int(expected.steps)) <= 1
    assert found.count == expected.count
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-11)
    np.testing.assert_allclose(found.covariance(), expected.covariance(), rtol=1e-9)


def assert_identical(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


class Source:
    """Blocks that note what is read, and may be cut off."""

    def __init__(self, blocks=BLOCKS, reads=None):
        self.blocks, self.left, self.read = blocks, reads, []

    def __iter__(self):
        return self.iter_from(0)

    def iter_from(self, index):
        for number in range(index, len(self.blocks)):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            self.read.append(number)
            yield self.blocks[number]


# Sources of blocks


def test_list(streamed, whole):
    assert_near(streamed, whole)


def test_blocks_of_many_lengths(whole):
    lengths = [0, 10, 300, 3, 0, 690]
    ends = np.cumsum(lengths)
    blocks = [
        jax.tree.map(lambda leaf, i=i: leaf[ends[i] - lengths[i] : ends[i]], DATA)
        for i in range(len(lengths))
    ]
    assert_near(solve_stream(residual, START, blocks), whole)


def test_a_buffer_that_is_used_again(streamed):
    class Reused:
        def __iter__(self):
            buffer = np.empty((2, BLOCK))
            for t, y in BLOCKS:
                buffer[0, : len(t)], buffer[1, : len(t)] = t, y
                yield buffer[0, : len(t)], buffer[1, : len(t)]
                buffer[:] = np.nan

    assert_identical(solve_stream(residual, START, Reused()), streamed)


def test_files(tmp_path, streamed):
    files = tmp_path / "t.npy", tmp_path / "y.npy"
    for file, leaf in zip(files, DATA, strict=True):
        np.save(file, leaf)
    blocks = npy_blocks(files, BLOCK)
    assert (blocks.rows, blocks.block, len(blocks)) == (ROWS, BLOCK, 11)
    assert_identical(solve_stream(residual, START, blocks), streamed)
    (t, _), weights = next(iter(blocks.iter_from(10)))
    np.testing.assert_array_equal(t, DATA[0][1000:])
    assert weights is None


def test_files_with_weights_shared_values_and_losses(tmp_path):
    weights = np.linspace(0.5, 2, ROWS)
    np.save(tmp_path / "y.npy", DATA[1])
    np.save(tmp_path / "w.npy", weights)
    memory = np.memmap(tmp_path / "t.raw", float, "w+", shape=ROWS)
    memory[:] = DATA[0]
    blocks = npy_blocks(
        Weighted((memory, tmp_path / "y.npy", Shared(0.25)), tmp_path / "w.npy"), 128
    )

    def shifted(x, data):
        return residual(x, data[:2]) + data[2]

    setting = {"loss": losses.Cauchy(0.1), "bounds": (0, [5.0, 5.0, 0.2])}
    found = solve_stream(shifted, START, blocks, **setting)
    data = DATA[0], DATA[1], Shared(0.25)
    expected = solve(shifted, START, data, weights=weights, **setting)
    assert found.active[2] == 1
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-11)
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-13)


def test_as_many_passes_as_evaluations():
    """A stream goes the way of all rows at once, which kinks change."""

    def valley(x, data, size):
        return jnp.stack([10 * data * (x[1] - size(x[0]) ** 2), data * (1 - x[0])], -1)

    def smooth(x, data):
        return valley(x, data, lambda u: u)

    def kinked(x, data):
        return valley(x, data, jnp.abs)

    x0, data, evaluations = np.array([-1.2, 1.0]), np.ones(8), []
    for fn in (smooth, kinked):
        at_once = solve(fn, x0, data)
        streamed = solve_stream(fn, x0, [data[:3], data[3:]])
        assert at_once.success
        np.testing.assert_allclose(streamed.x, at_once.x, rtol=1e-10)
        assert streamed.nfev == at_once.nfev
        evaluations.append(int(streamed.nfev))
    assert evaluations[0] != evaluations[1]  # else the test shows nothing


def test_one_program_serves_all_blocks():
    traces = []

    def counted(x, data):
        traces.append(data[0].shape)
        return residual(x, data)

    solve_stream(counted, START, cut(DATA, 77))
    assert traces == [(77,)]


# Interruptions


@pytest.mark.parametrize("reads", [3, 11, 17, 29])
def test_goes_on_where_it_stopped(tmp_path, streamed, reads):
    path = tmp_path / "fit.state"
    with pytest.raises(KeyboardInterrupt):
        solve_stream(
            residual,
            START,
            Source(reads=reads),
            checkpoint=path,
            checkpoint_every=2,
        )
    assert [file.name for file in tmp_path.iterdir()] == (
        ["fit.state"] if reads >= 2 else []
    )
    source = Source()
    found = solve_stream(residual, START, source, checkpoint=path, checkpoint_every=2)
    assert_identical(found, streamed)
    passes = int(streamed.nfev)
    assert reads + len(source.read) <= passes * len(BLOCKS) + 3


GROWING = [
    jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], DATA)
    for a, b in itertools.pairwise([0, 50, 120, 300, ROWS])
]


@pytest.mark.parametrize("reads", [2, 3, 5])
def test_goes_on_with_blocks_that_grow(tmp_path, reads):
    expected = solve_stream(residual, START, GROWING)
    call = {"checkpoint": tmp_path / "fit.npz", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        solve_stream(residual, START, Source(GROWING, reads), **call)
    assert_identical(solve_stream(residual, START, Source(GROWING), **call), expected)


def test_a_block_is_as_long_as_the_longest_before_it():
    """However far the reader is ahead of who computes."""
    capacities = []
    for block in Feed(GROWING, check_numbers=True).read(0):
        time.sleep(0.05)
        capacities.append(block.capacity)
        assert block.data[0].shape == (block.capacity,)
    assert capacities == [50, 70, 180, 703]


def test_goes_on_without_iter_from(tmp_path, streamed):
    path = tmp_path / "fit.npz"
    with pytest.raises(KeyboardInterrupt):
        solve_stream(
            residual, START, Source(reads=15), checkpoint=path, checkpoint_every=3
        )

    class Plain:
        def __iter__(self):
            return iter(BLOCKS)

    assert_identical(solve_stream(residual, START, Plain(), checkpoint=path), streamed)


@pytest.fixture
def finished(tmp_path, streamed):
    path = tmp_path / "fit.npz"
    assert_identical(solve_stream(residual, START, BLOCKS, checkpoint=path), streamed)
    return path


def test_a_finished_fit_reads_nothing(finished, streamed):
    source = Source()
    found = solve_stream(residual, START, source, checkpoint=finished)
    assert source.read == []
    assert_identical(found, streamed)


def test_goes_on_without_x64(tmp_path):
    path = tmp_path / "fit.npz"
    blocks = [jax.tree.map(np.float32, block) for block in BLOCKS]
    start = START.astype(np.float32)
    with jax.enable_x64(False):
        expected = solve_stream(residual, start, blocks)
        with pytest.raises(KeyboardInterrupt):
            solve_stream(
                residual, start, Source(blocks, 15), checkpoint=path, checkpoint_every=1
            )
        found = solve_stream(residual, start, Source(blocks), checkpoint=path)
    assert_identical(found, expected)


KILLED = """
import sys, time
import jax
jax.config.update("jax_enable_x64", True)
from problems import START, residual
from test_stream import BLOCKS
from jaxfit import solve_stream

class Slow:
    def __iter__(self):
        return self.iter_from(0)

    def iter_from(self, index):
        for block in BLOCKS[index:]:
            print("block", flush=True)
            time.sleep(0.005)
            yield block

solve_stream(residual, START, Slow(), checkpoint=sys.argv[1], checkpoint_every=1)
print("done", flush=True)
"""


def test_killed_at_random_moments(tmp_path, streamed):
    path = tmp_path / "fit.npz"
    rng = random.Random(0)
    environment = os.environ | {"PYTHONPATH": str(TESTS), "JAX_PLATFORMS": "cpu"}
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(rng.randint(2, 30)):
            line = process.stdout.readline()
            if line == "done\n":
                break
        time.sleep(0.005 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    found = solve_stream(residual, START, Source(), checkpoint=path)
    assert_identical(found, streamed)


# Checkpoints that are refused


def other_model(x, data):
    return 2 * residual(x, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x0": 2 * START}, "x0"),
        ({"x0": list(START)}, "x0"),
        ({"bounds": (0, 10)}, "bounds"),
        ({"loss": losses.Huber(1.0)}, "loss"),
        ({"options": Options(ftol=1e-3)}, "options"),
        ({"blocks": BLOCKS[:-1]}, "rows"),
        ({"fn": other_model}, "code"),
        ({"nan_policy": "omit"}, "nan_policy"),
    ],
)
def test_the_checkpoint_of_another_fit(finished, change, message):
    before = finished.read_bytes()
    call = {"fn": residual, "x0": START, "blocks": BLOCKS} | change
    with pytest.raises(ValueError, match=message) as raised:
        solve_stream(**call, checkpoint=finished)
    assert str(finished) in str(raised.value)
    assert finished.read_bytes() == before


def test_another_model_or_other_data_halfway(tmp_path):
    path = tmp_path / "fit.npz"
    with pytest.raises(KeyboardInterrupt):
        solve_stream(
            residual, START, Source(reads=15), checkpoint=path, checkpoint_every=3
        )
    before = path.read_bytes()
    with pytest.raises(ValueError, match="program"):
        solve_stream(other_model, START, Source(), checkpoint=path)
    singles = [jax.tree.map(np.float32, block) for block in BLOCKS]
    with pytest.raises(ValueError, match="data"):
        solve_stream(residual, START, Source(singles), checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-200], "damaged"),
        (lambda content: content[:500] + b"\0\0\0" + content[503:], "damaged"),
        (lambda content: b"", "damaged"),
        (lambda content: b"t,y\n1,2\n", "damaged"),
    ],
)
def test_a_damaged_checkpoint(finished, damage, message):
    content = damage(finished.read_bytes())
    finished.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        solve_stream(residual, START, BLOCKS, checkpoint=finished)
    assert str(finished) in str(raised.value)
    assert finished.read_bytes() == content


def test_damage_of_all_kinds(finished, streamed):
    """An error that names the file, or an answer that the damage did not touch."""
    content, rng, refusals = finished.read_bytes(), random.Random(0), []
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        finished.write_bytes(damaged)
        try:
            found = solve_stream(residual, START, BLOCKS, checkpoint=finished)
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert_identical(found, streamed)
    assert refusals
    assert all(str(finished) in refusal for refusal in refusals)


def rewrite(path, **changes):
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def test_a_foreign_or_newer_checkpoint(finished):
    rewrite(finished, jaxfit_checkpoint=np.asarray(99))
    with pytest.raises(ValueError, match="newer jaxfit"):
        solve_stream(residual, START, BLOCKS, checkpoint=finished)
    rewrite(finished, jaxfit_checkpoint=np.asarray(1))
    with pytest.raises(ValueError, match="older"):
        solve_stream(residual, START, BLOCKS, checkpoint=finished)
    np.savez(finished, a=np.zeros(3))
    with pytest.raises(ValueError, match="something else"):
        solve_stream(residual, START, BLOCKS, checkpoint=finished)


def test_a_checkpoint_without_a_folder(tmp_path):
    path = tmp_path / "not there" / "fit.npz"
    with pytest.raises(FileNotFoundError, match="not there"):
        solve_stream(residual, START, BLOCKS, checkpoint=path)


def test_the_file_is_plain(finished):
    with np.load(finished, allow_pickle=False) as archive:
        assert json.loads(str(archive["fit"]))["rows"] == ROWS
        assert all(archive[name].dtype != object for name in archive.files)


# Bad blocks


def test_a_generator_is_refused():
    with pytest.raises(TypeError, match="read only once"):
        solve_stream(residual, START, (block for block in BLOCKS))
    with pytest.raises(TypeError, match="expected something to iterate"):
        solve_stream(residual, START, 3)


def bad_blocks(number, block):
    return [*BLOCKS[:number], block, *BLOCKS[number + 1 :]]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ((BLOCKS[3][0], BLOCKS[3][1].astype(np.float32)), "Block 3 has other arrays"),
        ((BLOCKS[3][0],), "Block 3 has other arrays"),
        ((BLOCKS[3][0], np.ones((BLOCK, 2))), "Block 3 has other arrays"),
        ((BLOCKS[3][0], BLOCKS[3][1][:-1]), "Block 3: The numbers of rows differ"),
        ((BLOCKS[3][0], 1.0), "Block 3: .*no rows"),
        ((BLOCKS[3][0], np.full(BLOCK, np.nan)), "Block 3 has NaN .* 100 of its 100"),
    ],
)
def test_a_bad_block(tmp_path, block, message):
    path = tmp_path / "fit.npz"
    blocks = Source(bad_blocks(3, block))
    with pytest.raises(ValueError, match=message):
        solve_stream(residual, START, blocks, checkpoint=path, checkpoint_every=2)
    assert path.exists()


def test_a_bad_block_of_a_list():
    blocks = bad_blocks(3, (BLOCKS[3][0], BLOCKS[3][1][:-1]))
    with pytest.raises(ValueError, match="Block 3: The numbers of rows differ"):
        solve_stream(residual, START, blocks)


def test_shared_text(tmp_path, streamed):
    """It is neither a file nor an array."""

    def named(x, data):
        t, y, name = data
        assert name == "a name"
        return residual(x, (t, y))

    blocks = npy_blocks((*DATA, Shared("a name")), BLOCK)
    assert_identical(solve_stream(named, START, blocks), streamed)


def test_a_block_that_raises(tmp_path, streamed):
    class Broken(Source):
        def iter_from(self, index):
            for number, block in enumerate(super().iter_from(index), index):
                if number == 5:
                    raise OSError("the disk is gone")
                yield block

    path = tmp_path / "fit.npz"
    call = {"checkpoint": path, "checkpoint_every": 2}
    with pytest.raises(RuntimeError, match=r"Block 5 .* the disk is gone"):
        solve_stream(residual, START, Broken(), **call)
    assert_identical(solve_stream(residual, START, Source(), **call), streamed)


def test_nan_is_omitted_or_of_weight_zero():
    t, y = np.array(DATA[0]), np.array(DATA[1])
    bad = [5, 17, 700]
    y[bad] = np.nan
    good = np.delete(np.arange(ROWS), bad)
    expected = solve(residual, START, (DATA[0][good], DATA[1][good]))
    found = solve_stream(residual, START, cut((t, y)), nan_policy="omit")
    assert_near(found, expected)
    weights = np.where(np.isnan(y), 0.0, 1.0)
    blocks = [Weighted(*block) for block in cut(((t, y), weights))]
    assert_near(solve_stream(residual, START, blocks), expected)
    found = solve_stream(residual, START, cut((t, y)), nan_policy="propagate")
    assert found.status == -1


def test_passes_that_differ():
    class Shrinking:
        def __init__(self):
            self.passes = itertools.count()

        def __iter__(self):
            return iter(BLOCKS if next(self.passes) == 0 else BLOCKS[:-1])

    with pytest.raises(ValueError, match="1000 rows in 10 blocks"):
        solve_stream(residual, START, Shrinking())


def test_a_model_that_cannot_be_traced_is_explained():
    def eager(x, data):
        return data[1] - np.exp(x[1] * data[0])

    for fit in (solve_stream, warm_start):
        rows = DATA if fit is warm_start else BLOCKS
        with pytest.raises(TypeError, match=r"eager cannot be traced .*test_stream"):
            fit(eager, START, rows)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no rows"):
        solve_stream(residual, START, [])
    with pytest.raises(ValueError, match="nan_policy is 'drop'"):
        solve_stream(residual, START, BLOCKS, nan_policy="drop")
    with pytest.raises(ValueError, match="checkpoint_every is 0"):
        solve_stream(residual, START, BLOCKS, checkpoint_every=0)
    with pytest.raises(ValueError, match="block is 0"):
        npy_blocks([DATA[0]], 0)
    crossed = solve_stream(residual, START, BLOCKS, bounds=(1.0, 0.0))
    assert crossed.status == -4


def test_progress(capsys, streamed, monkeypatch):
    monkeypatch.setattr("jaxfit._programs.progress.SHOWN_EVERY", 0)
    found = solve_stream(residual, START, BLOCKS, progress=True)
    assert_identical(found, streamed)
    line = capsys.readouterr().err
    for word in ("pass 1: ", "pass 8: ", "rows/s", "cost", "radius", "s left"):
        assert word in line
    assert line.endswith("\n")


def test_float32_and_a_pytree_of_parameters():
    x0 = {"a": np.float32(1), "b": np.float32(1), "c": np.float32(0)}

    def named(x, data):
        return residual(jnp.stack([x["a"], x["b"], x["c"]]), data)

    blocks = [jax.tree.map(np.float32, block) for block in BLOCKS]
    found = solve_stream(named, x0, blocks)
    assert found.success
    assert found.x["a"].dtype == np.float32
    expected = solve(residual, START, DATA)
    error = (float(found.x["b"]) - expected.x[1]) / expected.stderr()[1]
    assert abs(error) < 1e-2
