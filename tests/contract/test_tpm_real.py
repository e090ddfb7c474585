"""A real swtpm: its containers, whose TPM they hold, and how it starts and stops."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from haulier.errors import StepFailed
from haulier.hypervisor import machine
from haulier.hypervisor.images import create_image
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.monitor import MonitorLost
from haulier.hypervisor.processes import wait_for_end
from haulier.hypervisor.swtpm import manufacture, start_swtpm, stop_swtpm, swtpm_facts
from haulier.hypervisor.tpm_identity import read_identity
from haulier.hypervisor.tpm_state import parse, read_state
from tests.contract.real import (
    STATE_BYTES,
    SWTPM,
    qemu,
    run,
    spec,
)

pytestmark = pytest.mark.real


def make_tpm(path: Path, work: Path) -> Path:
    create_image(path, format="raw", size_bytes=STATE_BYTES)
    manufacture(path, work=work)
    return path


@pytest.fixture(scope="module")
def two_tpms(tmp_path_factory: pytest.TempPathFactory, _tools: None) -> tuple[Path, Path]:
    """The state volumes of two TPMs as swtpm_setup makes them. Nobody may write them."""
    folder = tmp_path_factory.mktemp("tpms")
    return make_tpm(folder / "one.raw", folder), make_tpm(folder / "two.raw", folder)


def test_real_containers(two_tpms: tuple[Path, Path]) -> None:
    one, two = (read_state(path) for path in two_tpms)
    assert not one.is_blank
    assert not two.is_blank
    assert one.digest != two.digest
    assert len(one.permanent) > 500


def test_digest_does_not_see_the_room_behind_the_state(two_tpms: tuple[Path, Path]) -> None:
    """swtpm shrinks a file to what it needs; a volume on another storage has its full size."""
    state = read_state(two_tpms[0])
    assert len(state.container) < STATE_BYTES
    grown = parse(state.container.ljust(STATE_BYTES, b"\0"))
    assert grown.digest == state.digest


def test_blank_volume_is_blank(tmp_path: Path) -> None:
    create_image(tmp_path / "tpm.raw", format="raw", size_bytes=STATE_BYTES)
    assert read_state(tmp_path / "tpm.raw").is_blank


def test_identity(two_tpms: tuple[Path, Path], tmp_path: Path) -> None:
    """The same TPM answers the same each time, another one otherwise; nothing of the question is left."""
    containers = [path.read_bytes() for path in two_tpms]
    one, again, two = (
        read_identity(container, swtpm=SWTPM, scratch=tmp_path)
        for container in (containers[0], containers[0].ljust(STATE_BYTES, b"\0"), containers[1])
    )
    assert one == again
    assert one != two
    assert len(one) == 64
    assert [path.read_bytes() for path in two_tpms] == containers
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "code"),
    [("garbage", "tpm_state_broken"), ("cut", "tpm_state_broken"), ("blank", "tpm_state_blank")],
)
def test_identity_of_what_is_no_state(two_tpms: tuple[Path, Path], tmp_path: Path, damage: str, code: str) -> None:
    whole = two_tpms[0].read_bytes()
    state = parse(whole)
    middle = whole.index(state.permanent) + len(state.permanent) // 2
    broken = {
        "garbage": b"garbage!" * 512,
        "cut": whole[:middle],
        "blank": bytes(STATE_BYTES),
    }[damage]
    with pytest.raises(StepFailed, match=code):
        read_identity(broken, swtpm=SWTPM, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_identity_without_swtpm(two_tpms: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(StepFailed):
        read_identity(two_tpms[0].read_bytes(), swtpm="/nonexistent/swtpm", scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tpm_is_made_once(two_tpms: tuple[Path, Path], tmp_path: Path) -> None:
    """Called by mistake on a volume that holds a TPM it changes nothing of who that is."""
    copy = tmp_path / "tpm.raw"
    shutil.copy(two_tpms[0], copy)
    before = read_identity(copy.read_bytes(), swtpm=SWTPM, scratch=tmp_path)
    try:
        manufacture(copy, work=tmp_path)
    except StepFailed as error:
        assert error.code == "tpm_not_made"
    assert read_identity(copy.read_bytes(), swtpm=SWTPM, scratch=tmp_path) == before


def test_swtpm_starts_serves_a_qemu_and_stops(place: VmPlace, two_tpms: tuple[Path, Path], tmp_path: Path) -> None:
    state = tmp_path / "tpm.raw"
    shutil.copy(two_tpms[0], state)
    identity = read_identity(state.read_bytes(), swtpm=SWTPM, scratch=tmp_path)

    async def work() -> None:
        start_swtpm(place, state, facts=swtpm_facts(SWTPM))
        definition = replace(spec(place).definition, tpm_version="v2.0")
        async with qemu(place, definition=definition, tpm_socket=place.tpm_socket) as monitor:
            (found,) = await monitor.execute("query-tpm")
            assert found["options"]["type"] == "emulator"
            assert place.swtpm.pid() is not None
        machine.stop_now(place)

    run(work())
    for _ in range(2):
        stop_swtpm(place)
        assert place.swtpm.pid() is None
        assert not place.tpm_socket.exists()
    assert read_identity(read_state(state).container, swtpm=SWTPM, scratch=tmp_path) == identity


@pytest.mark.parametrize("how", ["as we start it", "without our flag", "without it, but killed first"])
def test_old_swtpm_writes_nothing_late(place: VmPlace, two_tpms: tuple[Path, Path], tmp_path: Path, how: str) -> None:
    """From 0.8 on, one that sees its QEMU go writes its state once more, over what the next owner of the file wrote."""
    state, facts = tmp_path / "tpm.raw", swtpm_facts(SWTPM)
    shutil.copy(two_tpms[0], state)
    before, newer = read_state(state).digest, two_tpms[1].read_bytes()

    async def work() -> None:
        start_swtpm(place, state, facts=facts if how == "as we start it" else replace(facts, features=frozenset()))
        definition = replace(spec(place).definition, tpm_version="v2.0")
        async with qemu(place, definition=definition, tpm_socket=place.tpm_socket) as monitor:
            await machine.resume(monitor)
            # The firmware starts the TPM, which is written down.
            while read_state(state).digest == before:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.02)
            await monitor.execute("stop")
            with state.open("r+b") as file:
                file.write(newer)
            if how.endswith("killed first"):
                stop_swtpm(place, patience_s=0.0)
            with suppress(MonitorLost):
                await monitor.execute("quit")
        assert wait_for_end(place.qemu, seconds=20)
        stop_swtpm(place)

    run(work())
    set_back = read_state(state).digest != read_state(two_tpms[1]).digest
    assert set_back is (how == "without our flag" and "flags-opt-disable-auto-shutdown" in facts.features)


def test_swtpm_of_a_target_that_waits_leaves_the_state_alone(
    place: VmPlace, two_tpms: tuple[Path, Path], tmp_path: Path
) -> None:
    """The source's swtpm may be at work on the same file."""
    state = tmp_path / "tpm.raw"
    state.write_bytes(two_tpms[0].read_bytes().ljust(STATE_BYTES, b"\0"))
    before = state.read_bytes()

    async def work() -> None:
        start_swtpm(place, state, facts=swtpm_facts(SWTPM))
        definition = replace(spec(place).definition, tpm_version="v2.0")
        async with qemu(place, definition=definition, tpm_socket=place.tpm_socket, incoming=True) as monitor:
            assert await machine.status(monitor) == "inmigrate"
        assert state.read_bytes() == before
        stop_swtpm(place, patience_s=0.0)
        machine.stop_now(place, patience_s=0.0)

    run(work())
    assert state.read_bytes() == before


def test_swtpm_that_nobody_talks_to_is_stopped(place: VmPlace, two_tpms: tuple[Path, Path], tmp_path: Path) -> None:
    """With its QEMU it would end by itself; an undo may come before there is one."""
    state = tmp_path / "tpm.raw"
    shutil.copy(two_tpms[0], state)
    start_swtpm(place, state, facts=swtpm_facts(SWTPM))
    pid = place.swtpm.pid()
    assert pid is not None
    stop_swtpm(place)
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()
