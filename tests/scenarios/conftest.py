"""The stack and the guests are those of the acceptance tests."""

from tests.acceptance.conftest import faults, image, make_guest, pytest_runtest_makereport, stack, stacks

__all__ = ["faults", "image", "make_guest", "pytest_runtest_makereport", "stack", "stacks"]
