"""One cluster a pytest process, handed from cell to cell; a cell that failed gets its cluster thrown away."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from probe.build import build
from tests.acceptance.conftest import TOOLS
from tests.acceptance.guest import DISK, PACE, TPM, Guest
from tests.matrix.cluster import Cluster
from tests.matrix.network import TOOLS as NETWORK_TOOLS
from tests.matrix.network import is_possible

# Where `make matrix` wants each cell's result, a line of JSON.
_RESULTS = os.environ.get("HAULIER_MATRIX_RESULTS")
_FAILED = pytest.StashKey[bool]()
_numbers = count(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember that a cell failed, and show the ends of all logs with it."""
    report = yield
    if report.failed:  # type: ignore[attr-defined]  # a wrapper's yield gives the report
        item.stash[_FAILED] = True
        pool = getattr(item, "funcargs", {}).get("clusters")
        if pool is not None and pool.current is not None:
            report.sections.append(("logs", pool.current.log_tails(lines=120)))  # type: ignore[attr-defined]
    return report


class Clusters:
    """Holds the cluster that runs now."""

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        self.current: Cluster | None = None
        self._new_folder = new_folder

    def give(self) -> Cluster:
        """One that runs."""
        if self.current is None:
            self.current = Cluster(self._new_folder())
            self.current.up()
        return self.current

    def remove(self) -> None:
        """Stop it; `down --vms` must have ended all of it."""
        if self.current is not None:
            cluster, self.current = self.current, None
            left = cluster.remove()
            assert not left, "\n".join(["left running by `haulier down --vms`:", *map(str, left)])


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    """The pool of one. Without root or the tools the cells skip here and fail in CI."""
    missing = [tool for tool in (*TOOLS, *NETWORK_TOOLS) if shutil.which(tool) is None]
    if missing or not is_possible():
        reason = f"the matrix needs {', '.join(missing) or 'root, for network namespaces'}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    pool = Clusters(lambda: tmp_path_factory.mktemp("points"))
    try:
        yield pool
    finally:
        pool.remove()


@pytest.fixture
def cluster(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[Cluster]:
    """A running cluster; its VMs are stopped after the cell, and take no room any more."""
    cluster = clusters.give()
    yield cluster
    if request.node.stash.get(_FAILED, False):
        clusters.remove()
        return
    for vm in cluster.table("vm"):
        if vm["state"] in ("running", "paused"):
            cluster.haulier("vm", "stop", vm["name"], "--now").done()
    cluster.empty_volumes()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled probe guest."""
    return build(tmp_path_factory.mktemp("probe-image"))


@pytest.fixture
def guest(cluster: Cluster, image: Path) -> Guest:
    """A running VM on the source with a disk, a TPM, and a volume that QEMU does not open."""
    spare = "unused0: local:{name}/spare.raw,size=4M"
    guest = Guest(cluster, f"vm{next(_numbers)}", f'-kernel {image} -append "{PACE}"', conf=(DISK, TPM, spare))
    guest.define()
    guest.start()
    return guest


@pytest.fixture
def results() -> Path | None:
    """Where the cells' results are kept for the page, a line each; None if nobody wants them."""
    return Path(_RESULTS) if _RESULTS else None
