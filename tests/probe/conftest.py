"""Fixtures of the probe's tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from probe.build import build
from tests.probe.machine import Setup, missing_tools

MIB = 1024 * 1024


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled guest. Without the tools the tests skip here and fail in CI."""
    if missing := missing_tools():
        reason = f"the probe's tests need {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return build(tmp_path_factory.mktemp("probe-image"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: UNIX sockets take 107 bytes."""
    with TemporaryDirectory(prefix="probe-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def make_disk(folder: Path) -> Callable[..., Path]:
    """Makes sparse raw volumes."""

    def make(name: str = "disk.raw", *, size_bytes: int = 8 * MIB) -> Path:
        path = folder / name
        with path.open("wb") as file:
            file.truncate(size_bytes)
        return path

    return make


@pytest.fixture
def setup(image: Path, folder: Path, make_disk: Callable[..., Path]) -> Setup:
    """A q35 guest with a TPM and one disk."""
    return Setup(image=image, folder=folder, disks=(make_disk(),))
