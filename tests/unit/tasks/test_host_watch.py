"""What a node's worker does with programs of VMs that it finds on its host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import select

from haulier.hypervisor.layout import NodeLayout, VmPlace
from haulier.hypervisor.processes import Daemon, end, spawn
from models import Event, Node, Vm, VmState
from tasks.host_watch import HostWatch
from tests.unit.services.world import TARGET, World


@dataclass
class Host:
    """The VM's node, with folders in which programs are started that do nothing until they are ended."""

    world: World
    layout: NodeLayout
    watch: HostWatch

    def run(self, *programs: str, epoch: int | None = None, vm: str = "web") -> VmPlace:
        """Start programs of a VM; with an epoch its QEMU has been given the guest."""
        place = self.layout.vm(vm)
        place.prepare()
        for program in programs:
            daemon: Daemon = getattr(place, program)
            daemon.pid_file.touch()
            # It follows its own pid file, whose path is its token.
            spawn(daemon, ["tail", "-f", daemon.token])
        if epoch is not None:
            place.note_epoch(epoch)
        return place

    def move_row(self, **changes: object) -> None:
        """Let the VM's row name the other node."""
        with self.world.context.database.read() as session:
            other = session.scalars(select(Node).where(Node.name == TARGET)).one()
        self.world.change(Vm, node_id=other.id, **changes)

    def runs(self, place: VmPlace) -> list[str]:
        return [name for name in ("qemu", "swtpm", "carrier") if getattr(place, name).pid() is not None]

    def told(self) -> list[tuple[str, list[str]]]:
        """What was told of programs."""
        with self.world.context.database.read() as session:
            events = session.scalars(select(Event).order_by(Event.id))
            return [(event.kind, event.data["programs"]) for event in events if "programs" in event.data]


@pytest.fixture
def host(world: World, tmp_path: Path) -> Iterator[Host]:
    layout = NodeLayout(tmp_path / "node", tmp_path / "run")
    layout.prepare()
    host = Host(world, layout, HostWatch(world.context, world.vm().node_id, layout))
    try:
        yield host
    finally:
        for folder in (layout.root / "vms").glob("*"):
            place = layout.vm(folder.name)
            for daemon in (place.qemu, place.swtpm, place.carrier):
                end(daemon)


def test_past_of_a_guest_that_went_on_elsewhere_is_stopped_and_told(host: Host) -> None:
    place = host.run("qemu", "swtpm", epoch=0)
    host.move_row(epoch=1)
    host.watch.look()
    assert host.runs(place) == []
    assert host.told() == [("programs.stopped", ["qemu", "swtpm"])]


def test_ram_of_guests_is_seen_as_long_as_they_run(host: Host) -> None:
    place = host.run("qemu", epoch=0)
    host.watch.look()
    assert 1 << 16 < host.watch.guest_ram_bytes["web"] < 1 << 30
    end(place.qemu)
    host.watch.look()
    assert host.watch.guest_ram_bytes == {}


def test_guest_that_the_rows_know_nothing_of_is_left_and_told_once(host: Host) -> None:
    """The database was restored from a copy: its rows are older than the guest."""
    place = host.run("qemu", "swtpm", epoch=1)
    host.move_row()
    for _ in range(2):
        host.watch.look()
    assert host.runs(place) == ["qemu", "swtpm"]
    assert host.told() == [("programs.unknown", ["qemu", "swtpm"])]


def test_programs_of_an_unknown_vm_are_left_and_told(host: Host) -> None:
    place = host.run("qemu", epoch=3, vm="stranger")
    host.watch.look()
    assert (host.runs(place), host.told()) == (["qemu"], [("programs.unknown", ["qemu"])])


@pytest.mark.parametrize("programs", [("carrier",), ("swtpm",), ("qemu", "swtpm")])
def test_what_never_had_the_guest_is_stopped(host: Host, programs: tuple[str, ...]) -> None:
    place = host.run(*programs)
    host.move_row()
    host.watch.look()
    assert (host.runs(place), host.told()) == ([], [("programs.stopped", list(programs))])


def test_what_a_migration_works_on_is_left_to_it(host: Host) -> None:
    place = host.run("qemu", "carrier")
    host.world.file()
    host.world.change(Vm, state=VmState.STOPPED)
    host.watch.look()
    assert (host.runs(place), host.told()) == (["qemu", "carrier"], [])


def test_what_was_started_after_the_look_is_another_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    place = host.run("qemu", epoch=0)
    host.move_row(epoch=1)
    decide = host.watch._decide

    def late(seen: object) -> None:
        end(place.qemu)
        host.run("qemu")
        decide(seen)  # type: ignore[arg-type]  # it is what the watch has made

    monkeypatch.setattr(host.watch, "_decide", late)
    host.watch.look()
    assert (host.runs(place), host.told()) == (["qemu"], [])


def test_guest_whose_tpm_has_died_is_told_once(host: Host) -> None:
    host.run("qemu", epoch=0)
    for _ in range(2):
        host.watch.look()
    assert host.told() == [("tpm.lost", ["qemu"])]
