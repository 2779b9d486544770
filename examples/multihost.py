"""One fit of rows that lie on many hosts, or on many devices of one.

Every process holds its own part of the data. `jaxfit.Sharded` lets each device reduce
its own rows to n x n numbers, and only these cross the network.

    python examples/multihost.py                     # the devices of this machine
    python examples/multihost.py --processes 2       # two processes on this machine

On two hosts, the same on both but for the number (0 on the host that is named):

    python examples/multihost.py --coordinator host0:1234 --processes 2 --process 0
    python examples/multihost.py --coordinator host0:1234 --processes 2 --process 1

Under SLURM, which tells each process who it is:

    srun --nodes 2 --ntasks-per-node 1 python examples/multihost.py --cluster
"""

import argparse
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxfit

ROWS = 2_000_000  # of each process
TRUTH = np.array([2.5, 1.3, 0.5])


def residual(x, data):
    """A decay with offset."""
    t, y = data
    return x[0] * jnp.exp(-x[1] * t) + x[2] - y


def own_rows(process: int):
    """What this process would read from its own disk; the numbers of rows differ."""
    rng = np.random.default_rng(process)
    t = rng.uniform(0, 4, ROWS + 1000 * process)
    y = TRUTH[0] * np.exp(-TRUTH[1] * t) + TRUTH[2] + 0.05 * rng.normal(size=len(t))
    return t, y


def fit() -> None:
    """The same lines in every process."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))  # of all processes
    rows = jaxfit.Sharded(mesh, "rows", size=65536)
    rows, data, _ = rows.place(own_rows(jax.process_index()))
    x0 = np.array([1.0, 1.0, 0.0])
    start = time.perf_counter()
    solution = jax.block_until_ready(jaxfit.solve(residual, x0, data, rows=rows))
    seconds = time.perf_counter() - start
    # a program of all processes, as everything that is computed from the result
    x, errors = np.asarray(solution.x), np.asarray(solution.stderr())
    if jax.process_index() == 0:
        print(f"{len(jax.devices())} devices in {jax.process_count()} processes")
        print(f"{solution.count} rows, {solution.nfev} passes, {seconds:.2f} s")
        for i, name in enumerate("abc"):
            print(f"{name} = {x[i]:.6f} ± {errors[i]:.6f}")
        print(solution.message)


def start_here(processes: int) -> None:
    """So many processes on this machine, which find each other by its own address."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
    command = [sys.executable, __file__, "--coordinator", address]
    command += ["--processes", str(processes), "--process"]
    started = [subprocess.Popen([*command, str(i)]) for i in range(processes)]
    failed = [process for process in started if process.wait() != 0]
    if failed:
        raise SystemExit(f"{len(failed)} of {processes} processes failed.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int)
    parser.add_argument("--coordinator", help="host:port of process 0")
    parser.add_argument("--cluster", action="store_true", help="SLURM and the like")
    arguments = parser.parse_args()
    if arguments.processes > 1 and arguments.process is None:
        start_here(arguments.processes)
        return
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # GPUs have NCCL
    if arguments.cluster:
        jax.distributed.initialize()
    elif arguments.process is not None:
        jax.distributed.initialize(
            arguments.coordinator, arguments.processes, arguments.process
        )
    fit()


if __name__ == "__main__":
    main()
