"""How much RAM a guest gets, and why it may be a little more than its owner wrote.

Under TCG, QEMU before 9.0 loses dirty pages in a live migration when the guest's RAM is a multiple of 256 KiB
(measured: every guest crashed; with 256 MiB + 8 KiB none did). So such a guest gets 8 KiB on top, and one that has not
got them may not migrate live.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TCG_SAFE_SINCE = (9, 0)
_LOSING_MULTIPLE_KIB = 256
_EXTRA_KIB = 8
# What a guest uses grows while it moves, and is another by some MiB at each look: no place should change by that.
_GROWTH = 8
_STEP_BYTES = 256 << 20


def version_of(version: str) -> tuple[int, int]:
    """`7.2.22` as (7, 2)."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def loses_dirty_pages(*, accel: str, qemu_version: str, ram_kib: int) -> bool:
    """True if a live migration of such a guest would corrupt its RAM."""
    return accel == "tcg" and version_of(qemu_version) < _TCG_SAFE_SINCE and ram_kib % _LOSING_MULTIPLE_KIB == 0


def guest_ram_kib(memory_mib: int, *, accel: str, qemu_version: str) -> int:
    """RAM to start a guest with, in KiB."""
    ram_kib = memory_mib * 1024
    return (
        ram_kib + _EXTRA_KIB if loses_dirty_pages(accel=accel, qemu_version=qemu_version, ram_kib=ram_kib) else ram_kib
    )


def needed_ram_bytes(configured_bytes: int, used_bytes: int | None) -> int:
    """What a guest needs on another host: what it is configured with, or, where it is counted by what it was seen to
    use, an eighth more than that, in steps of 256 MiB.
    """
    if used_bytes is None:
        return configured_bytes
    wanted = used_bytes + used_bytes // _GROWTH
    return min(configured_bytes, -(-wanted // _STEP_BYTES) * _STEP_BYTES)


def seen_use(facts: Mapping[str, Any], vm: str, *, policy: str) -> int | None:
    """What a VM was seen to use on its node, in bytes; None if guests are not counted by that (`placement_ram`), or
    nobody has seen it.
    """
    found: Mapping[str, int] = facts.get("guest_ram_bytes") or {}
    return found.get(vm) if policy == "used" else None
