"""The real tools, and places for VMs in which nothing is left running."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haulier.hypervisor import machine
from haulier.hypervisor.carrier import stop_carrier
from haulier.hypervisor.layout import NodeLayout, VmPlace
from haulier.hypervisor.swtpm import stop_swtpm
from tests.contract.real import (
    TOOLS,
)


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    missing = [name for name in TOOLS if not shutil.which(name)]
    if missing and os.environ.get("CI"):
        pytest.fail(f"missing in CI: {missing}")
    if missing:
        pytest.skip(f"NOT TESTED AGAINST THE REAL THING: missing here: {missing}")


@pytest.fixture
def layout(tmp_path: Path) -> NodeLayout:
    layout = NodeLayout(tmp_path / "nodes", tmp_path / "run")
    layout.prepare()
    return layout


@pytest.fixture
def make_place(layout: NodeLayout) -> Iterator[Callable[[str], VmPlace]]:
    """Places of VMs; whatever runs in one of them is ended afterwards."""
    made: list[VmPlace] = []

    def make(name: str) -> VmPlace:
        place = layout.vm(name)
        place.prepare()
        made.append(place)
        return place

    yield make
    for place in made:
        machine.stop_now(place)
        stop_carrier(place)
        stop_swtpm(place)


@pytest.fixture
def place(make_place: Callable[[str], VmPlace]) -> VmPlace:
    return make_place("vm")
