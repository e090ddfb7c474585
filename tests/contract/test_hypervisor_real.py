"""Real QEMU, qemu-storage-daemon and swtpm do what haulier.hypervisor relies on. No guest: the firmware of an empty
machine under TCG is enough.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from haulier.definition import Role, VmDefinition, VolumeSpec
from haulier.errors import OutcomeUnknown, Refused, StepFailed
from haulier.hypervisor import disks, facts, machine, stream
from haulier.hypervisor.command_line import MachineSpec
from haulier.hypervisor.devices import Drive, node_name
from haulier.hypervisor.images import (
    CarrierExport,
    NbdServer,
    RemoteExport,
    create_image,
    image_info,
    send_image,
    start_carrier,
    stop_carrier,
)
from haulier.hypervisor.layout import NodeLayout, VmPlace
from haulier.hypervisor.monitor import Monitor, MonitorLost, open_monitor
from haulier.hypervisor.processes import wait_for_end
from haulier.hypervisor.swtpm import SwtpmFacts, manufacture, start_swtpm, stop_swtpm, swtpm_facts
from haulier.hypervisor.tls import KeyFolder
from haulier.hypervisor.tpm_identity import read_identity
from haulier.hypervisor.tpm_state import parse, read_state

QEMU = os.environ.get("HAULIER_QEMU", "qemu-system-x86_64")
SWTPM = "swtpm"
SECRET, OTHER_SECRET = b"s" * 32, b"o" * 32
STATE_BYTES = 4 << 20
TOOLS = (QEMU, "qemu-img", "qemu-storage-daemon", SWTPM, "swtpm_setup")

pytestmark = pytest.mark.real
T = TypeVar("T")


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    missing = [name for name in TOOLS if not shutil.which(name)]
    if missing and os.environ.get("CI"):
        pytest.fail(f"missing in CI: {missing}")
    if missing:
        pytest.skip(f"NOT TESTED AGAINST THE REAL THING: missing here: {missing}")


def run(work: Awaitable[T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server() -> NbdServer:
    return NbdServer("127.0.0.1", free_port())


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


def spec(place: VmPlace, *drives: Drive, **fields: Any) -> MachineSpec:
    volumes = tuple(VolumeSpec(each.device, each.role, "local", each.device, format=each.format) for each in drives)
    usual: dict[str, Any] = {
        "definition": VmDefinition("vm", memory_mib=32, machine="pc-i440fx-7.2", cpu="qemu64", volumes=volumes),
        "program": QEMU,
        "accel": "tcg",
        "ram_kib": 32 * 1024 + 8,
        "run_dir": place.run,
        "log_dir": place.logs,
        "drives": drives,
        "uuid": "7b10d7af-b932-4c66-b2c3-3996152ec465",
    }
    return MachineSpec(**(usual | fields))


def disk(place: VmPlace, content: bytes, *, format: str = "raw") -> Drive:
    """A disk of 1 MiB that begins with `content`."""
    path = place.logs / f"disk.{format}"
    create_image(path, format=format, size_bytes=1 << 20)
    if content:
        subprocess.run(["dd", "of=" + str(path), "conv=notrunc", "status=none"], input=content, check=True, timeout=30)
    return Drive("virtio0", Role.DISK, node_name("virtio0"), path, format, False)


@asynccontextmanager
async def qemu(place: VmPlace, *drives: Drive, **fields: Any) -> AsyncIterator[Monitor]:
    """A QEMU that waits to be told to run, and a conversation with it."""
    await machine.launch(place, spec(place, *drives, **fields))
    async with open_monitor(place.control) as monitor:
        yield monitor


# -- the monitor ------------------------------------------------------------------------------------------------------


def test_answers_and_refusals(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            assert await machine.status(monitor) == "prelaunch"
            assert await machine.machine_type(monitor) == "pc-i440fx-7.2"
            with pytest.raises(StepFailed, match="qmp_refused: QEMU refused device_add: 'wibble' is not a valid"):
                await monitor.execute("device_add", driver="wibble")
            with pytest.raises(StepFailed, match="QEMU refused no-such-command: The command no-such-command"):
                await monitor.execute("no-such-command")
            assert await machine.status(monitor) == "prelaunch", "a refused command must leave the conversation whole"

    run(work())


def test_events_in_order_and_none_missed(place: VmPlace) -> None:
    """They are kept while nobody waits for them, and their stamps never go back."""

    async def work() -> None:
        async with qemu(place) as monitor:
            for _ in range(20):
                await monitor.execute("cont")
                await monitor.execute("stop")
            events = [await monitor.next_event() for _ in range(40)]
        assert [event.name for event in events] == ["RESUME", "STOP"] * 20
        assert [event.at for event in events] == sorted(event.at for event in events)

    run(work())


def test_wait_passes_by_what_is_not_wanted(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            await machine.resume(monitor)
            await machine.resume(monitor)
            await monitor.execute("stop")
            assert (await monitor.wait_for(lambda event: event.name == "STOP")).data == {}
            assert await machine.status(monitor) == "paused"

    run(work())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_qemu_that_ends_while_an_event_is_awaited(place: VmPlace, how: signal.Signals) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            waiting = asyncio.ensure_future(monitor.wait_for(lambda event: event.name == "NEVER"))
            await monitor.execute("query-status")
            os.kill(place.qemu.pid() or 0, how)
            with pytest.raises(MonitorLost) as lost:
                await waiting
            assert isinstance(lost.value, OutcomeUnknown)
            with pytest.raises(MonitorLost):
                await monitor.execute("query-status")

    run(work())


def test_events_before_the_end_are_still_told(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            await monitor.execute("cont")
            await monitor.execute("quit")
            assert (await monitor.next_event()).name == "RESUME"
            with pytest.raises(MonitorLost):
                await monitor.wait_for(lambda event: event.name == "NEVER")
        assert wait_for_end(place.qemu, seconds=10)

    run(work())


def test_nobody_behind_the_socket(place: VmPlace) -> None:
    async def work() -> None:
        async with open_monitor(place.control):
            pass

    with pytest.raises(StepFailed, match="qemu_not_there"):
        run(work())


def test_second_conversation_after_the_first(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            await monitor.execute("cont")
        async with open_monitor(place.control) as again:
            assert await machine.status(again) == "running"

    run(work())


def test_qemu_that_does_not_start_says_why(place: VmPlace) -> None:
    """QEMU's own words, of this start and not of an earlier one."""
    place.qemu.log.write_text("words of yesterday\n")
    with pytest.raises(StepFailed, match=r"qemu_not_started: .*unsupported machine type") as caught:
        run(machine.launch(place, spec(place, definition=VmDefinition(name="vm", machine="pc-q35-99.9", cpu="qemu64"))))
    assert "yesterday" not in caught.value.problem.message
    assert place.qemu.pid() is None


def test_shut_down_and_stop(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place):
            pass
        assert await machine.shut_down(place, grace_s=0.0)
        assert not await machine.shut_down(place, grace_s=5.0)
        assert not machine.stop_now(place)

    run(work())


# -- the key, the carrier, sending ------------------------------------------------------------------------------------


def keys(folder: Path, secret: bytes = SECRET) -> KeyFolder:
    made = KeyFolder(folder)
    made.write(secret, "1-1")
    return made


@contextmanager
def carrying(place: VmPlace, target: Path, *, secure: bool = True) -> Iterator[NbdServer]:
    create_image(target, format="raw", size_bytes=1 << 20)
    listening = server()
    export = CarrierExport("tpmstate0", target, "raw")
    start_carrier(place, [export], server=listening, keys=keys(place.run / "keys") if secure else None)
    try:
        yield listening
    finally:
        stop_carrier(place)


def send(source: Path, to: NbdServer, key: KeyFolder | None, *, export: str = "tpmstate0") -> None:
    run(send_image(source, RemoteExport(to, export, key), format="raw"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    path.write_bytes(os.urandom(1 << 20))
    return path


@pytest.mark.parametrize("secure", [True, False])
def test_carrier_receives_what_was_sent(place: VmPlace, source: Path, tmp_path: Path, *, secure: bool) -> None:
    target = tmp_path / "target.raw"
    with carrying(place, target, secure=secure) as to:
        send(source, to, keys(tmp_path / "sender") if secure else None)
    assert target.read_bytes() == source.read_bytes()
    assert place.carrier.pid() is None


@pytest.mark.parametrize("secret", [OTHER_SECRET, None], ids=["wrong key", "no key"])
def test_carrier_refuses_a_stranger(place: VmPlace, source: Path, tmp_path: Path, secret: bytes | None) -> None:
    target = tmp_path / "target.raw"
    with carrying(place, target) as to:
        with pytest.raises(StepFailed, match="copy_failed"):
            send(source, to, keys(tmp_path / "stranger", secret) if secret else None)
        assert target.read_bytes() == bytes(1 << 20)
        send(source, to, keys(tmp_path / "sender"))
    assert target.read_bytes() == source.read_bytes()


def test_sender_with_a_key_does_not_talk_to_a_carrier_without(place: VmPlace, source: Path, tmp_path: Path) -> None:
    """Whoever stands in the way must not be able to make the bytes go in the clear."""
    with carrying(place, tmp_path / "target.raw", secure=False) as to, pytest.raises(StepFailed, match="copy_failed"):
        send(source, to, keys(tmp_path / "sender"))


def test_export_that_is_not_there(place: VmPlace, source: Path, tmp_path: Path) -> None:
    with carrying(place, tmp_path / "target.raw") as to, pytest.raises(StepFailed, match="copy_failed"):
        send(source, to, keys(tmp_path / "sender"), export="scsi0")


def test_carrier_whose_port_is_taken(place: VmPlace, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = NbdServer("127.0.0.1", other.getsockname()[1])
        create_image(tmp_path / "target.raw", format="raw", size_bytes=1 << 20)
        with pytest.raises(StepFailed, match=r"carrier_not_started: .*Address already in use"):
            start_carrier(place, [CarrierExport("x", tmp_path / "target.raw", "raw")], server=taken, keys=None)
    assert place.carrier.pid() is None


def test_key_never_stands_on_a_command_line(place: VmPlace, tmp_path: Path) -> None:
    with carrying(place, tmp_path / "target.raw"):
        key = (place.run / "keys" / "keys.psk").read_text().strip().partition(":")[2]
        assert key.encode() not in Path(f"/proc/{place.carrier.pid()}/cmdline").read_bytes()


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_image(tmp_path: Path, format: str) -> None:
    path = tmp_path / "deep" / "disk"
    create_image(path, format=format, size_bytes=8 << 20)
    info = image_info(path, format=format)
    assert (info.format, info.size_bytes, info.backing, info.snapshots) == (format, 8 << 20, None, 0)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_clone_and_snapshot_are_seen(tmp_path: Path) -> None:
    base, clone = tmp_path / "base", tmp_path / "clone"
    create_image(base, format="qcow2", size_bytes=1 << 20)
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(clone)]
    subprocess.run(make, check=True, timeout=30)
    subprocess.run(["qemu-img", "snapshot", "-c", "s", str(clone)], check=True, timeout=30)
    info = image_info(clone, format="qcow2")
    assert (info.backing, info.snapshots) == (str(base), 1)


def test_image_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="qemu_img_failed"):
        create_image(tmp_path / "disk", format="wibble", size_bytes=1 << 20)
    assert list(tmp_path.iterdir()) == []


def test_image_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"qemu_img_failed: .*No such file"):
        image_info(tmp_path / "disk", format="raw")


def test_header_that_a_guest_wrote_is_not_believed(tmp_path: Path) -> None:
    """The guest owns all bytes of a raw disk; it may make them look like a clone of a file of the host."""
    path, forged = tmp_path / "disk.raw", tmp_path / "forged"
    create_image(path, format="raw", size_bytes=1 << 20)
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/shadow", str(forged), "7G"]
    subprocess.run(make, check=True, timeout=30)
    with path.open("r+b") as disk_file:
        disk_file.write(forged.read_bytes()[: 1 << 16])
    info = image_info(path, format="raw")
    assert (info.format, info.size_bytes, info.backing) == ("raw", 1 << 20, None)


def test_image_of_another_format(tmp_path: Path) -> None:
    create_image(tmp_path / "disk", format="raw", size_bytes=1 << 20)
    with pytest.raises(StepFailed, match=r"qemu_img_failed: .*not in qcow2 format"):
        image_info(tmp_path / "disk", format="qcow2")


# -- mirrors ----------------------------------------------------------------------------------------------------------


def test_tpmstate_is_neither_mirrored_nor_served_by_a_real_qemu(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place, disk(place, b"data")) as monitor:
            before = await monitor.execute("query-named-block-nodes", flat=True)
            for devices in ([("virtio0", "disk"), ("tpmstate0", "tpmstate")], [("virtio0", "tpmstate")]):
                with pytest.raises(Refused, match="tpmstate_never_mirrored"):
                    await disks.serve_disks(monitor, devices, server=server(), tls=False)
            with pytest.raises(Refused, match="tpmstate_never_mirrored"):
                await disks.start_mirror(monitor, disks.Mirror("tpmstate0", "tpmstate", server(), tls=False))
            assert await monitor.execute("query-block-exports") == []
            assert await monitor.execute("query-block-jobs") == []
            assert await monitor.execute("query-named-block-nodes", flat=True) == before

    run(work())


Pair = tuple[Monitor, Monitor, disks.Mirror]


@asynccontextmanager
async def pair(make_place: Callable[[str], VmPlace], content: bytes) -> AsyncIterator[Pair]:
    """A source with a disk, and a target that serves an empty one, with one key."""
    here, there = make_place("source"), make_place("target")
    async with qemu(here, disk(here, content)) as source, qemu(there, disk(there, b""), incoming=True) as target:
        for monitor, place, is_server in ((source, here, False), (target, there, True)):
            await stream.ensure_key(monitor, keys(place.run / "keys"), server=is_server)
        listening = server()
        await disks.serve_disks(target, [("virtio0", "disk")], server=listening, tls=True)
        yield source, target, disks.Mirror("virtio0", "disk", listening, tls=True)


def test_mirror_brings_the_disk_over(make_place: Callable[[str], VmPlace]) -> None:
    content = os.urandom(1 << 16)

    async def work() -> None:
        async with pair(make_place, content) as (source, target, mirror):
            await disks.start_mirror(source, mirror)
            await disks.wait_until_ready(source, [mirror])
            await disks.wait_until_ready(source, [mirror])
            (progress,) = await disks.read_progress(source)
            assert (progress.device, progress.done, progress.total) == ("virtio0", 1 << 20, 1 << 20)
            await disks.finish_mirrors(source, [mirror])
            await disks.stop_serving(target)
            for _ in range(2):
                await disks.drop_mirrors(source)
            assert await left_over(source) == []

    run(work())
    (target,) = (make_place("target").logs).glob("disk.raw")
    assert target.read_bytes()[: len(content)] == content


async def left_over(monitor: Monitor) -> list[str]:
    nodes = await monitor.execute("query-named-block-nodes", flat=True)
    return [node["node-name"] for node in nodes if node["node-name"].startswith(disks.PREFIX)]


def test_mirror_in_the_middle_is_dropped(make_place: Callable[[str], VmPlace]) -> None:
    async def work() -> None:
        async with pair(make_place, b"data") as (source, _, mirror):
            await disks.start_mirror(source, mirror)
            await disks.drop_mirrors(source)
            assert await left_over(source) == []
            assert await monitor_jobs(source) == []
            await disks.start_mirror(source, mirror)
            await disks.wait_until_ready(source, [mirror])
            await disks.drop_mirrors(source)

    run(work())


async def monitor_jobs(monitor: Monitor) -> list[Any]:
    jobs: list[Any] = await monitor.execute("query-block-jobs")
    return jobs


def test_mirror_whose_target_dies(make_place: Callable[[str], VmPlace]) -> None:
    """The guest's disk goes on; the mirror's end is told, not waited for."""

    async def work() -> None:
        async with pair(make_place, b"data") as (source, _, mirror):
            await disks.start_mirror(source, mirror)
            await disks.wait_until_ready(source, [mirror])
            machine.stop_now(make_place("target"))
            with pytest.raises(StepFailed, match="mirror_failed"):
                await disks.finish_mirrors(source, [mirror])
            await disks.drop_mirrors(source)
            assert await left_over(source) == []

    run(work())


@pytest.mark.parametrize("secret", [OTHER_SECRET, None], ids=["wrong key", "no key"])
def test_mirror_of_a_stranger_is_refused(make_place: Callable[[str], VmPlace], secret: bytes | None) -> None:
    async def work() -> None:
        async with pair(make_place, b"data") as (source, _, mirror):
            await stream.drop_key(source)
            if secret:
                strangers = keys(make_place("source").run / "other", secret)
                await stream.ensure_key(source, strangers, server=False)
            with pytest.raises(StepFailed, match="qmp_refused"):
                await disks.start_mirror(source, replace(mirror, tls=secret is not None))
            assert await left_over(source) == []

    run(work())


def test_key_is_taken_away_again(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            for _ in range(2):
                await stream.ensure_key(monitor, keys(place.run / "keys"), server=True)
            for _ in range(2):
                await stream.drop_key(monitor)
            names = {item["name"] for item in await monitor.execute("qom-list", path="/objects")}
        assert not any(name.startswith("haulier") for name in names)

    run(work())


# -- the TPM ----------------------------------------------------------------------------------------------------------


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


def test_swtpm_that_nobody_talks_to_is_stopped(place: VmPlace, two_tpms: tuple[Path, Path], tmp_path: Path) -> None:
    """With its QEMU it would end by itself; an undo may come before there is one."""
    state = tmp_path / "tpm.raw"
    shutil.copy(two_tpms[0], state)
    start_swtpm(place, state, facts=swtpm_facts(SWTPM))
    pid = place.swtpm.pid()
    assert pid is not None
    stop_swtpm(place)
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


# -- facts ------------------------------------------------------------------------------------------------------------


def test_facts_of_this_node() -> None:
    found = facts.node_facts(qemu=QEMU, swtpm=SWTPM, accel="tcg")
    assert not {"qemu_problem", "swtpm_problem"} & set(found)
    assert found["accel"] == "tcg"
    assert found["machines"]["pc"].startswith("pc-i440fx-")
    assert found["machines"][found["machines"]["q35"]] == found["machines"]["q35"]
    assert 0 < found["ram_free_bytes"] <= found["ram_bytes"]
    assert found["qemu_version"].count(".") == 2
    assert not found["swtpm_too_old"]


def test_missing_programs_are_facts() -> None:
    found = facts.node_facts(qemu="/nonexistent/qemu", swtpm="/nonexistent/swtpm", accel="auto")
    assert (found["qemu_problem"]["code"], found["swtpm_problem"]["code"]) == ("qemu_missing", "swtpm_missing")
    assert "machines" not in found
    assert found["ram_bytes"] > 0


def test_programs_that_are_something_else() -> None:
    found = facts.node_facts(qemu="true", swtpm="true", accel="tcg")
    assert (found["qemu_problem"]["code"], found["swtpm_problem"]["code"]) == ("qemu_missing", "swtpm_missing")


def test_accelerator_is_one_that_runs() -> None:
    chosen = facts.choose_accel(QEMU, "auto")
    assert chosen in ("kvm", "tcg")
    assert os.access("/dev/kvm", os.R_OK | os.W_OK) or chosen == "tcg"
    assert facts.choose_accel("/nonexistent", "kvm") == "kvm", "what was asked for is not argued with"


@pytest.mark.parametrize(
    ("version", "too_old"), [("0.6.3", True), ("0.7.0", False), ("0.7.1", False), ("0.10.0", False), ("1.0", False)]
)
def test_oldest_swtpm(version: str, *, too_old: bool) -> None:
    assert SwtpmFacts(SWTPM, version, None, frozenset()).is_too_old == too_old


def test_versions_of_swtpm_and_libtpms() -> None:
    found = swtpm_facts(SWTPM)
    said = subprocess.run([SWTPM, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert found.version in said
    assert found.libtpms is None or found.libtpms.startswith("0.")
    assert "tpm-2.0" in found.features
