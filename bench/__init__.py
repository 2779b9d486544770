"""Benchmarks: `python -m bench` fits the same problems with jaxfit and its peers."""

import jax

jax.config.update("jax_enable_x64", True)
