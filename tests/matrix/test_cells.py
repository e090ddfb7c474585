"""The cells. CI plays a cross-section of the matrix, `make matrix` all of it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from tests.acceptance.guest import Guest
from tests.matrix.cells import all_cells, cross_section, run_cell
from tests.matrix.cluster import Cluster
from tests.matrix.faults import Fault

_CELLS = list(all_cells() if os.environ.get("HAULIER_MATRIX") == "whole" else cross_section())


@pytest.mark.real
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("fault", "point"), [pytest.param(*cell, id=f"{cell[0].name}-{cell[1]}") for cell in _CELLS])
def test_cell(cluster: Cluster, guest: Guest, results: Path | None, fault: Fault, point: str) -> None:
    result = run_cell(cluster, guest, fault, point, ask_pause=results is not None)
    if results:
        with results.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(result)) + "\n")
