"""RAM of a guest: under TCG and an old QEMU never a size at which live migration loses pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.planner.guest_ram import guest_ram_kib, loses_dirty_pages, needed_ram_bytes, seen_use, version_of

MIB = st.integers(min_value=1, max_value=1 << 22)
OLD = st.sampled_from(["5.2.0", "6.0.1", "7.2.22", "8.2.10"])
NEW = st.sampled_from(["9.0.0", "9.2.1", "10.0.2", "11.1.0"])


@given(MIB, OLD)
def test_tcg_of_an_old_qemu_never_gets_a_multiple_of_256_kib(memory_mib: int, qemu_version: str) -> None:
    ram_kib = guest_ram_kib(memory_mib, accel="tcg", qemu_version=qemu_version)
    assert ram_kib % 256
    assert 0 <= ram_kib - memory_mib * 1024 <= 8
    assert not loses_dirty_pages(accel="tcg", qemu_version=qemu_version, ram_kib=ram_kib)


@given(MIB, OLD | NEW)
def test_kvm_gets_what_its_owner_wrote(memory_mib: int, qemu_version: str) -> None:
    assert guest_ram_kib(memory_mib, accel="kvm", qemu_version=qemu_version) == memory_mib * 1024
    assert not loses_dirty_pages(accel="kvm", qemu_version=qemu_version, ram_kib=memory_mib * 1024)


@given(MIB, NEW)
def test_new_qemu_gets_what_its_owner_wrote(memory_mib: int, qemu_version: str) -> None:
    assert guest_ram_kib(memory_mib, accel="tcg", qemu_version=qemu_version) == memory_mib * 1024


def test_the_measured_sizes() -> None:
    """Every guest of 256 MiB crashed under QEMU 7.2, none with 8 KiB more."""
    assert loses_dirty_pages(accel="tcg", qemu_version="7.2.22", ram_kib=256 * 1024)
    assert loses_dirty_pages(accel="tcg", qemu_version="7.2.22", ram_kib=256 * 1024 + 256)
    assert not loses_dirty_pages(accel="tcg", qemu_version="7.2.22", ram_kib=256 * 1024 + 8)


@pytest.mark.parametrize(
    ("text", "numbers"), [("7.2.22", (7, 2)), ("9.0", (9, 0)), ("10.0.50", (10, 0)), ("8.2.10", (8, 2))]
)
def test_version(text: str, numbers: tuple[int, int]) -> None:
    assert version_of(text) == numbers


@pytest.mark.parametrize(
    ("used_mib", "needed_mib"),
    [(None, 4096), (1, 256), (227, 256), (228, 512), (3640, 4096), (3641, 4096), (9000, 4096)],
)
def test_what_a_guest_needs_elsewhere(used_mib: int | None, needed_mib: int) -> None:
    used = None if used_mib is None else used_mib << 20
    assert needed_ram_bytes(4096 << 20, used) == needed_mib << 20


def test_use_counts_only_by_policy_and_where_it_was_seen() -> None:
    facts = {"guest_ram_bytes": {"web": 7}}
    assert [seen_use(facts, "web", policy=policy) for policy in ("used", "configured")] == [7, None]
    assert seen_use(facts, "db", policy="used") is None
    assert seen_use({}, "web", policy="used") is None
