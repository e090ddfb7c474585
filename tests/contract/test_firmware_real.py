"""The installed OVMF: its code and its store of variables belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from haulier.definition.storage import Image
from haulier.errors import StepFailed
from haulier.hypervisor.images import create_image, fill_image
from haulier.hypervisor.machine import find_firmware, find_variables

pytestmark = pytest.mark.real
STORE_BYTES = 528 << 10


def test_ovmf_is_found_with_its_variables() -> None:
    code = find_firmware("ovmf", variables_bytes=STORE_BYTES)
    assert code is not None
    assert code == find_firmware("ovmf", variables_bytes=None)
    assert find_variables(STORE_BYTES).stat().st_size == STORE_BYTES
    assert find_firmware("seabios", variables_bytes=None) is None


def test_ovmf_of_another_size() -> None:
    with pytest.raises(StepFailed, match="firmware_missing"):
        find_firmware("ovmf", variables_bytes=1 << 20)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_image_is_filled(tmp_path: Path, format: str) -> None:
    path = tmp_path / "efi"
    create_image(path, format=format, size_bytes=STORE_BYTES)
    fill_image(Image(path, format), content=find_variables(STORE_BYTES))
    assert b"_FVH" in path.read_bytes(), "the header of a firmware volume"
