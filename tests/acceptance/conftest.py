"""Stacks and guests for the tests of this folder.

One stack runs at a time and is handed from test to test as long as these ask for the same settings. A test that failed
gets its stack thrown away, so that the next begins from nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from probe.build import build
from tests.acceptance.faults import Faults
from tests.acceptance.guest import DISK, PACE, TPM, Guest
from tests.acceptance.stack import PORTS, Stack

TOOLS = ("qemu-system-x86_64", "qemu-img", "qemu-storage-daemon", "swtpm", "swtpm_setup", "gcc")
NODES = ("alpha", "beta")
# So few that migrations meet each other there.
SCARCE_PORTS = PORTS[:12]
_FAILED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and put those beside each other that share a stack."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.real)
    begin = next((place for place, item in enumerate(items) if item in ours), 0)
    rest = [item for item in items if item not in ours]
    items[:] = [*rest[:begin], *sorted(ours, key=_settings_of), *rest[begin:]]


def _settings_of(item: pytest.Item) -> tuple[bool, ...]:
    names = getattr(item, "fixturenames", ())
    return tuple(name in names for name in ("postgres_url", "faults"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember that a test failed, and show the ends of all logs with it."""
    report = yield
    if report.failed:  # type: ignore[attr-defined]  # a wrapper's yield gives the report
        item.stash[_FAILED] = True
        pool = getattr(item, "funcargs", {}).get("stacks")
        if pool is not None and pool.current is not None:
            report.sections.append(("logs of the stack", pool.current.log_tails()))  # type: ignore[attr-defined]
    return report


class Stacks:
    """Holds the stack that runs now, and gives it to who wants one with the same settings."""

    def __init__(self) -> None:
        self.current: Stack | None = None
        self._settings: Mapping[str, str] = {}

    def give(self, settings: dict[str, str]) -> Stack:
        """A stack with these settings, that runs."""
        if self.current is not None and self._settings != settings:
            self.remove()
        if self.current is None:
            self.current, self._settings = Stack(NODES, settings), dict(settings)
            self.current.up()
        return self.current

    @contextmanager
    def alone(self, nodes: tuple[str, ...], settings: dict[str, str]) -> Iterator[Stack]:
        """A stack of other nodes, instead of the one that is handed on: that would hold the same ports."""
        self.remove()
        stack = Stack(nodes, settings)
        try:
            stack.up()
            yield stack
        finally:
            left = stack.remove()
        assert not left, "\n".join(map(str, left))

    def remove(self) -> None:
        """Stop the stack; `down --vms` must have ended all of it."""
        if self.current is None:
            return
        stack, self.current = self.current, None
        left = stack.remove()
        assert not left, "\n".join(["left running by `haulier down --vms`:", *map(str, left)])


@pytest.fixture(scope="session")
def stacks() -> Iterator[Stacks]:
    """The pool of one. Without the tools the tests skip here and fail in CI."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        reason = f"the acceptance tests need {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    pool = Stacks()
    try:
        yield pool
    finally:
        pool.remove()


@pytest.fixture
def settings() -> dict[str, str]:
    """Environment variables beside the usual ones; modules give their own."""
    return {"HAULIER_PORTS": f"{SCARCE_PORTS[0]}-{SCARCE_PORTS[-1]}"}


@pytest.fixture
def stack(request: pytest.FixtureRequest, stacks: Stacks, settings: dict[str, str]) -> Iterator[Stack]:
    """A running stack with the nodes alpha and beta. Its VMs are stopped after the test."""
    stack = stacks.give(settings)
    yield stack
    if stacks.current is not stack:
        return
    if request.node.stash.get(_FAILED, False):
        stacks.remove()
        return
    for vm in stack.table("vm"):
        if vm["state"] in ("running", "paused"):
            stack.haulier("vm", "stop", vm["name"], "--now").done()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled probe guest."""
    return build(tmp_path_factory.mktemp("probe-image"))


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """Programs that fail when told to; modules that want them give `faults.settings` to their stack."""
    faults = Faults(tmp_path_factory.mktemp("faults"))
    yield faults
    faults.kinds.remove()


_numbers = count(1)


@pytest.fixture
def make_guest(stack: Stack, image: Path) -> Callable[..., Guest]:
    """Makes VMs with names of their own; defined and started unless told otherwise."""

    def make(
        *conf: str,
        node: str = "alpha",
        append: str = "",
        memory_mib: int = 64,
        define: bool = True,
        start: bool = True,
    ) -> Guest:
        boot = f'-kernel {image} -append "{PACE} {append}"'
        guest = Guest(stack, f"vm{next(_numbers)}", boot, conf or (DISK, TPM), memory_mib)
        if define:
            guest.define(node)
        if define and start:
            guest.start()
        return guest

    return make


@pytest.fixture
def guest(make_guest: Callable[..., Guest]) -> Guest:
    """A running VM on alpha with a disk and a TPM."""
    return make_guest()
