"""Two processes, each with its own rows, make one fit over the loopback address."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from problems import START, decay, residual

from jaxfit import solve

TESTS = Path(__file__).parent
ROWS = 1003

PROGRAM = """
import json, sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
address, process = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, num_processes=2, process_id=process)
from problems import START, decay, residual
from jaxfit import Sharded, solve
data, _ = decay(rows={rows})
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
cut = 600  # the processes own unequal parts
own = jax.tree.map(lambda leaf: leaf[:cut] if process == 0 else leaf[cut:], data)
rows, data, _ = Sharded(mesh, "rows", 50).place(own)
fit = solve(residual, START, data, rows=rows)
print(json.dumps({{
    "x": np.asarray(fit.x).tolist(),
    "covariance": np.asarray(fit.covariance()).tolist(),
    "steps": int(fit.steps),
    "count": int(fit.count),
    "success": bool(fit.success),
    "devices": len(jax.devices()),
}}))
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_two_processes():
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"PYTHONPATH": str(TESTS), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(rows=ROWS), address, str(process)],
            env=environment,
            stdout=subprocess.PIPE,
        )
        for process in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    assert first == second
    assert first["devices"] == 8
    data, _ = decay(rows=ROWS)
    whole = solve(residual, START, data)
    assert first["success"]
    assert first["count"] == ROWS
    assert abs(first["steps"] - int(whole.steps)) <= 1
    np.testing.assert_allclose(first["x"], whole.x, rtol=1e-11)
    np.testing.assert_allclose(first["covariance"], whole.covariance(), rtol=1e-9)
    assert jax.process_count() == 1
