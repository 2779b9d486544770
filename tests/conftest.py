"""Under test: float64, strict dtype promotion, eight devices; warnings are errors."""

import jax
from hypothesis import settings

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)

settings.register_profile("jaxfit", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("jaxfit")
