"""Under test: float64, strict dtype promotion, eight devices; warnings are errors.

What a test jits by itself is compiled without optimisations, which takes half the time;
what the library compiles is compiled as for its users.
"""

import gc

import jax
from hypothesis import settings

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)

jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_traceback_in_locations_limit", 0)  # of errors that none reads
gc.set_threshold(100_000, 50, 50)  # a trace makes many objects, and few circles

settings.register_profile("jaxfit", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("jaxfit")
