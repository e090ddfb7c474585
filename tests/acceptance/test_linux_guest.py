"""A real operating system, booted by UEFI, with its own TPM and disk drivers crosses, and comes back."""

from __future__ import annotations

import os

import pytest

from probe.build import BuildError
from probe.linux import LinuxGuest, build_linux_guest
from tests.acceptance.guest import DISK, TPM, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import ROOT, Stack


@pytest.fixture(scope="module")
def linux() -> LinuxGuest:
    """Kept in .build, as it takes a download. Without the package the test skips here and fails in CI."""
    try:
        return build_linux_guest(ROOT / ".build" / "linux")
    except BuildError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


# The firmware's variables in a volume of their exact size, which QEMU has open as flash memory.
FIRMWARE = ("bios: ovmf", "efidisk0: local:{name}/efi.raw,efitype=4m,size=528K")
EFIDISK_BYTES = 528 << 10


def test_linux_guest_crosses_and_comes_back(stack: Stack, linux: LinuxGuest) -> None:
    boot = f'-kernel {linux.kernel} -initrd {linux.initrd} -append "{linux.append}"'
    guest = Guest(stack, "linux", boot, (*FIRMWARE, DISK, TPM), memory_mib=192)
    guest.define()
    guest.start()
    for target in ("beta", "alpha"):
        document = guest.move(target)
        assert {volume["device"]: volume["method"] for volume in document["volumes"]}["efidisk0"] == "mirror"
        assert guest.volumes()["efidisk0"].stat().st_size == EFIDISK_BYTES
        guest.wait_ticks(1000)
    assert_all_is_well(stack, guest)
    verdict = guest.verdict()
    assert verdict.tpm is not None and verdict.tpm > 0
    assert len(verdict.boots) == 1
    # OVMF remembers: the variables that it has set are in the volume, wherever that has been since.
    assert b"B\0o\0o\0t\0O\0r\0d\0e\0r\0" in guest.volumes()["efidisk0"].read_bytes()
