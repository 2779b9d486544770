"""Under test: float64, strict dtype promotion, eight devices; warnings are errors.

Every annotation of the library is checked when a function is called.

What a test jits by itself is compiled without optimisations, which takes half the time,
and in most files so is what the library compiles: the same program.
"""

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("jaxfit", "typed.checked")  # before any of it is imported

from jaxfit._programs import compiled as _compile  # noqa: E402

AS_FOR_USERS = {  # files whose programs are compiled as they are for users
    *("test_nist", "test_certificate", "test_one_function", "test_first"),
    *("test_curve_fit", "test_least_squares", "test_fit_batch", "test_stream"),
}

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)


settings.register_profile("jaxfit", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("jaxfit")


@pytest.fixture(scope="module", autouse=True)
def _in_haste(request):
    name = request.module.__name__.rpartition(".")[2]
    _compile.always_in_haste = name not in AS_FOR_USERS
    yield
    _compile.always_in_haste = False
    jax.clear_caches()  # thousands of executables are more than a process may map
