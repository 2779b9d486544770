"""SciPy's own tests of `curve_fit` and `least_squares`, of the two of jaxfit.

    python tests/scipys_own.py [arguments of pytest]

The installed test modules are run as they are; only the two names that they import are
jaxfit's. Each test that cannot pass stands in a table with the reason. A test that
fails and is not in the table is a failure, and so is one in the table that passes, or
that is not there.
"""

import sys
from collections.abc import Sequence

import pytest

import jaxfit

MODULES = "scipy.optimize.tests.test_minpack", "scipy.optimize.tests.test_least_squares"
REPLACED = {"curve_fit": jaxfit.curve_fit, "least_squares": jaxfit.least_squares}

METHODS = "TestTRF", "TestDogbox", "TestLM"
_REASONS = {
    ("TestCurveFit::test_gh4555b",): "its reference, MINPACK's covariance, is right to "
    "six digits and is asked for to seven; ours has twelve",
    ("TestTRF::test_numerical_jac", "TestDogbox::test_numerical_jac"): "jac_sparsity: "
    "Jacobians are dense",
    ("TestTRF::test_with_bounds", "TestDogbox::test_with_bounds"): "jac_sparsity: "
    "Jacobians are dense",
    tuple(f"{name}::test_workers" for name in METHODS): "workers: no differences are "
    "taken that could be spread",
    tuple(f"{name}::test_nfev" for name in METHODS): "it counts calls of the function, "
    "which is compiled, and called to be held against what the program gave",
}
CANNOT_PASS = {test: reason for tests, reason in _REASONS.items() for test in tests}


class OnJaxfit:
    """A plugin of pytest: what is replaced, and which failures are expected."""

    @pytest.hookimpl(tryfirst=True)  # before pytest's -k takes some out
    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        """Replace the names in the modules, and mark what stands in the table."""
        for module in {item.module for item in items}:
            for name in REPLACED.keys() & vars(module).keys():
                setattr(module, name, REPLACED[name])
        items[:] = [item for item in items if _is_ours(item)]
        for item in items:
            reason = CANNOT_PASS.get(_name(item))
            if reason is not None:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
        unknown = CANNOT_PASS.keys() - {_name(item) for item in items}
        if unknown:
            raise pytest.UsageError(f"SciPy has no tests {sorted(unknown)}.")


def _is_ours(item: pytest.Function) -> bool:
    """Whether it is a test of one of the two functions."""
    return item.module.__name__ != MODULES[0] or item.cls.__name__ == "TestCurveFit"


def _name(item: pytest.Function) -> str:
    """As `TestTRF::test_workers`."""
    return item.nodeid.partition("::")[2]


def main(arguments: Sequence[str] = ()) -> int:
    """Run the tests; the exit code of pytest."""
    options = ["-c", "/dev/null", "-p", "no:cacheprovider", "-ra", "-q"]
    return pytest.main([*options, *arguments, "--pyargs", *MODULES], [OnJaxfit()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
