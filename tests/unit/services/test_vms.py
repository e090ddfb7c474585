"""VMs: defined from a file, pinned, started, stopped, shown. The node's part is played by whoever gets the message."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.definition import Nic, VmDefinition
from haulier.errors import HaulierError, Problem, Refused
from haulier.services import operations, vm_rows, vms
from haulier.services.context import Context, Message
from models import Event, Node, Operation, OperationKind, OperationState, Storage, Vm, VmState, Volume, VolumeRole
from tests.unit.services.world import BROKEN, World

CONTRACT = {"name", "node", "state", "epoch", "volumes", "tpm", "qmp", "pid"}
VOLUME_KEYS = {"device", "role", "storage", "path", "format", "size_bytes"}
FILE = "name: db\nmemory: 64\nscsi0: local:db/disk.raw,size=8M\nnet0: virtio,bridge=vmbr0\nide2: none,media=cdrom\n"

Node_ = Callable[[Context, operations.Order], None]


def create(around: Context, order: operations.Order) -> None:
    vm = vm_rows.load_vm(around, order.vm_id)
    vm_rows.record_sizes(around, vm.id, {volume.id: volume.size_bytes or 1 for volume in vm.volumes})


def refuse(around: Context, order: operations.Order) -> None:
    vm_rows.forget_vm(around, order.vm_id, keep_operation=order.operation_id)
    raise Refused("volume_missing", "gone", "Where is it?")


def start(around: Context, order: operations.Order) -> None:
    vm_rows.record_state(around, order.vm_id, VmState.RUNNING, pid=9, qmp="/q9", pinned={"machine": "m"})


def stop(around: Context, order: operations.Order) -> None:
    vm_rows.record_state(around, order.vm_id, VmState.STOPPED, pid=None, qmp=None)


@pytest.fixture
def served(world: World) -> Iterator[World]:
    """A world whose node does what it is told, in the moment of the message."""
    acts: dict[str, Node_] = {"create": create, "start": start, "stop": stop}
    yield serve(world, acts)


def serve(world: World, acts: dict[str, Node_]) -> World:
    def work(message: Message) -> None:
        world.sent.append(message)
        order = operations.take_operation(around, message.row)
        assert order is not None
        state, problems = OperationState.DONE, ()
        try:
            acts[message.task.removeprefix("haulier.vm.")](around, order)
        except Refused as error:
            state, problems = OperationState.REFUSED, error.problems  # type: ignore[assignment]
        with around.unit() as unit:
            operations.end_operation(unit, message.row, state, problems)

    around = Context(world.context.settings, world.context.database, world.context.signals, work)
    return World(around, world.sent)


def define(world: World, folder: Path, text: str = FILE, **arguments: Any) -> dict[str, Any]:
    file = folder / "vm.conf"
    file.write_text(text)
    usual: dict[str, Any] = {"node": "alpha", "host_access": True}
    return vms.define_vm(world.context, file, **(usual | arguments))


def code_of(act: Callable[[], object]) -> str:
    try:
        act()
    except HaulierError as error:
        return error.code
    return "nothing"


# -- define -----------------------------------------------------------------------------------------------------------


def test_defined(served: World, tmp_path: Path) -> None:
    document = define(served, tmp_path, FILE + "wibble: 1\n")
    assert set(document) >= CONTRACT
    assert (document["name"], document["node"], document["state"], document["epoch"]) == ("db", "alpha", "stopped", 0)
    assert document["volumes"] == [
        {"device": "scsi0", "role": "disk", "storage": "local", "path": "/alpha/images/db/disk.raw", "format": "raw",
         "size_bytes": 8 << 20},
    ]  # fmt: skip
    assert document["tpm"] is None
    assert document["ignored"] == {"wibble": "1"}
    assert [message.task for message in served.sent] == ["haulier.vm.create"]
    assert served.kinds("vm.") == ["defined"]
    json.dumps(document)


def test_name_of_the_command_wins(served: World, tmp_path: Path) -> None:
    assert define(served, tmp_path, name="other")["name"] == "other"
    assert served.vm("other").definition["name"] == "other"


@pytest.mark.parametrize(
    ("text", "arguments", "code"),
    [
        ("memory: 64\n", {}, "vm_without_name"),
        (FILE, {"name": "../etc"}, "bad_name"),
        (FILE, {"name": "web"}, "vm_exists"),
        (FILE, {"node": "nowhere"}, "unknown_node"),
        (FILE + "scsi1: fast:x.raw,size=1M\n", {}, "unknown_storage"),
        (FILE + "scsi1: local:web/disk.qcow2,size=1M\n", {}, "volume_owned"),
        (FILE, {"storages": Path("/nonexistent/storage.cfg")}, "file_not_found"),
    ],
)
def test_refused_definition_leaves_nothing(
    served: World, tmp_path: Path, text: str, arguments: dict[str, Any], code: str
) -> None:
    before = [served.count(table) for table in (Vm, Volume, Storage, Operation)]
    assert code_of(lambda: define(served, tmp_path, text, **arguments)) == code
    assert [served.count(table) for table in (Vm, Volume, Storage, Operation)] == before
    assert served.sent == []


@pytest.mark.parametrize(
    ("name", "owner"), [("db/disk.raw", "another device of this VM"), ("web/disk.qcow2", "VM web")]
)
def test_owner_of_a_volume_is_told(served: World, tmp_path: Path, name: str, owner: str) -> None:
    with pytest.raises(Refused, match=f"belongs to {owner}"):
        define(served, tmp_path, f"{FILE}scsi1: local:{name},size=8M\n")


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("args: -blockdev driver=file,filename=/etc/shadow\n", ["args_not_allowed"]),
        ("scsi1: /etc/shadow\n", ["host_file_not_allowed"]),
        ("sata0: cdrom,media=cdrom\n", ["host_file_not_allowed"]),
        ("serial0: /dev/ttyS0\n", ["host_device_not_allowed"]),
        ("serial0: socket\nscsi1: local:db/other.raw,size=1M\n", []),
        ("args: -S\nserial0: /dev/ttyS0\nserial1: socket\n", ["args_not_allowed", "host_device_not_allowed"]),
    ],
)
def test_reaching_into_the_host_needs_permission(served: World, tmp_path: Path, text: str, codes: list[str]) -> None:
    """Whoever may give QEMU words, files or devices of the host can read all of it: nobody may who was not told so."""
    file = tmp_path / "vm.conf"
    file.write_text(FILE + text)
    before = [served.count(table) for table in (Vm, Volume, Storage, Operation, Event)]
    found: list[Problem] = []
    try:
        vms.define_vm(served.context, file, node="alpha")
    except Refused as refused:
        found = list(refused.problems)
    assert [problem.code for problem in found] == codes
    assert all(problem.hint and "\n" not in problem.message for problem in found)
    if codes:
        assert [served.count(table) for table in (Vm, Volume, Storage, Operation, Event)] == before
        assert served.sent == []
        assert code_of(lambda: vms.define_vm(served.context, file, node="alpha", host_access=True)) == "nothing"


def test_host_files_cannot_be_named_as_a_storage(served: World, tmp_path: Path) -> None:
    """The storage has a row on every node where somebody was allowed to use a file of the host."""
    define(served, tmp_path, FILE + "scsi1: /srv/disk.raw,size=1M\n")
    sneaky = "name: two\nmemory: 64\nscsi0: host-files:etc/shadow\n"
    assert code_of(lambda: define(served, tmp_path, sneaky, host_access=False)) == "reserved_storage"


def test_storages_of_ones_own_need_permission(served: World, tmp_path: Path) -> None:
    storages = storage_cfg(tmp_path, "dir: all\n\tpath /\n")
    assert code_of(lambda: define(served, tmp_path, storages=storages, host_access=False)) == "storages_not_allowed"
    assert code_of(lambda: define(served, tmp_path, storages=storages)) == "nothing"


def test_definition_on_a_silent_node(served: World, tmp_path: Path) -> None:
    served.silence("alpha")
    assert code_of(lambda: define(served, tmp_path)) == "node_silent"
    assert served.count(Vm) == 1


def test_what_the_node_refuses_is_forgotten(world: World, tmp_path: Path) -> None:
    served = serve(world, {"create": refuse})
    assert code_of(lambda: define(served, tmp_path)) == "volume_missing"
    assert (served.count(Vm), served.count(Volume), served.count(Operation)) == (1, 3, 1)
    assert code_of(lambda: define(serve(world, {"create": create}), tmp_path)) == "nothing"


def storage_cfg(folder: Path, text: str) -> Path:
    path = folder / "storage.cfg"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("dir: fast\n\tpath /mnt/fast\n\tcontent images\n", "nothing"),
        ("dir: fast\n\tpath /mnt/fast\n\tnodes beta\n", "storage_elsewhere"),
        ("lvmthin: fast\n\tthinpool data\n\tvgname pve\n", "bad_volume_name"),
        ("lvm: fast\n\tvgname pve\n\tshared 1\n", "storage_kind"),
        ("lvm: fast\n\tvgname ../etc\n", "invalid_value"),
        ("lvmthin: fast\n\tvgname pve\n", "invalid_value"),
        ("zfspool: fast\n\tpool tank\n", "storage_kind"),
        ("dir: slow\n\tpath /mnt/slow\n", "unknown_storage"),
        ("btrfs: fast\n\tpath /mnt/fast\n", "storage_kind"),
    ],
)
def test_other_storages(served: World, tmp_path: Path, text: str, code: str) -> None:
    disk = FILE + "scsi1: fast:9/x.raw,size=1M\n"
    storages = storage_cfg(tmp_path, text)
    assert code_of(lambda: define(served, tmp_path, disk, storages=storages)) == code
    if code == "nothing":
        assert vms.show_vm(served.context, "db")["volumes"][1]["path"] == "/mnt/fast/images/9/x.raw"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("nfs: fast\n\tserver filer\n\texport /srv\n\tpath /mnt/fast\n", "mount"),
        ("dir: fast\n\tpath /mnt/fast\n\tis_mountpoint yes\n", "mount"),
        ("dir: fast\n\tpath /mnt/fast\n", "folder"),
    ],
)
def test_storage_that_must_be_mounted(served: World, tmp_path: Path, text: str, kind: str) -> None:
    define(served, tmp_path, FILE + "scsi1: fast:9/x.raw,size=1M\n", storages=storage_cfg(tmp_path, text))
    (vm_id,) = (vm.id for vm in (served.vm("db"),))
    places = {volume.device: volume.at for volume in vm_rows.load_vm(served.context, vm_id).volumes}
    assert (places["scsi1"].folder, places["scsi1"].kind) == (Path("/mnt/fast/images"), kind)
    with served.context.database.read() as session:
        row = session.scalars(select(Storage).where(Storage.name == "fast")).first()
        assert row is not None
        assert row.kind == kind


@pytest.mark.parametrize(("nodes", "expected"), [("", {"alpha", "beta"}), ("\tnodes alpha\n", {"alpha"})])
def test_shared_storage_is_one_of_every_node(served: World, tmp_path: Path, nodes: str, expected: set[str]) -> None:
    """And a volume on it has one owner, whichever node that is on."""
    storages = storage_cfg(tmp_path, f"dir: pool\n\tpath /mnt/pool\n\tshared 1\n{nodes}")
    define(served, tmp_path, FILE + "scsi1: pool:9/x.raw,size=1M\n", storages=storages)
    with served.context.database.read() as session:
        rows = session.scalars(select(Storage).where(Storage.name == "pool")).all()
        assert {row.node.name for row in rows if row.shared and row.path == "/mnt/pool/images"} == expected
    second = "name: two\nmemory: 64\nscsi1: pool:9/x.raw,size=1M\n"
    code = "volume_owned" if "beta" in expected else "unknown_storage"
    assert code_of(lambda: define(served, tmp_path, second, node="beta")) == code


def test_one_iso_may_be_in_two_vms(served: World, tmp_path: Path) -> None:
    iso = "ide3: local:os.iso,media=cdrom\n"
    define(served, tmp_path, FILE + iso)
    assert code_of(lambda: define(served, tmp_path, "name: two\nmemory: 64\n" + iso)) == "nothing"


def test_volume_without_a_name_gets_one_that_is_kept(served: World, tmp_path: Path) -> None:
    define(served, tmp_path, "name: db\nmemory: 64\nscsi0: local:1\nide2: none,media=cdrom\n")
    names = [spec.name for spec in VmDefinition.from_dict(served.vm("db").definition).volumes]
    assert names == ["db/scsi0.raw", None]
    assert [volume.name for volume in served.vm("db").volumes] == ["db/scsi0.raw"]


# -- pinned addresses -------------------------------------------------------------------------------------------------


def test_missing_addresses_are_filled_in() -> None:
    pinned = vms.pin_addresses(VmDefinition(name="v", nics=(Nic("net0", "e1000", None), Nic("net1", "e1000", None))))
    macs = [nic.mac for nic in pinned.nics]
    assert all(re.fullmatch(r"52:54:00(:[0-9A-F]{2}){3}", str(mac)) for mac in macs)
    assert macs[0] != macs[1]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", str(pinned.uuid))


def test_what_the_owner_wrote_stays() -> None:
    definition = VmDefinition(name="v", uuid="mine", nics=(Nic("net0", "e1000", "BC:24:11:00:00:01", "vmbr0", 1450),))
    assert vms.pin_addresses(definition) == definition


def test_pinning_twice_changes_nothing() -> None:
    once = vms.pin_addresses(VmDefinition(name="v", nics=(Nic("net0", "e1000", None),)))
    assert vms.pin_addresses(once) == once


def test_two_vms_do_not_share_addresses() -> None:
    one, two = (vms.pin_addresses(VmDefinition(name="v", nics=(Nic("net0", "e1000", None),))) for _ in range(2))
    assert one.uuid != two.uuid
    assert one.nics != two.nics


# -- start, stop, show ------------------------------------------------------------------------------------------------


def test_start_and_stop(served: World, tmp_path: Path) -> None:
    define(served, tmp_path)
    started = vms.start_vm(served.context, "db")
    assert (started["state"], started["pid"], started["qmp"], started["pinned"]) == (
        "running", 9, "/q9", {"machine": "m"},
    )  # fmt: skip
    stopped = vms.stop_vm(served.context, "db", now_=False, grace_s=2.5)
    assert (stopped["state"], stopped["pid"], stopped["qmp"], stopped["pinned"]) == (
        "stopped", None, None, {"machine": "m"},
    )  # fmt: skip
    assert served.kinds("vm.") == ["defined", "running", "stopped"]


@pytest.mark.parametrize(("now_", "grace_s"), [(False, 2.5), (True, 0.0)])
def test_grace(served: World, *, now_: bool, grace_s: float) -> None:
    vms.stop_vm(served.context, "web", now_=now_, grace_s=2.5)
    with served.context.database.read() as session:
        assert session.get_one(Operation, 1).arguments == {"grace_s": grace_s}


@pytest.mark.parametrize("grace_s", [-1.0, float("nan"), float("inf"), 1e300])
def test_time_that_is_none(served: World, grace_s: float) -> None:
    """Written down, no worker could have read it, and the VM would have been busy for ever."""
    assert code_of(lambda: vms.stop_vm(served.context, "web", now_=False, grace_s=grace_s)) == "bad_grace"
    assert served.count(Operation) == 0


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.PAUSED])
def test_start_of_what_runs(served: World, state: VmState) -> None:
    served.change(Vm, state=state)
    assert code_of(lambda: vms.start_vm(served.context, "web")) == "vm_running"


def test_stop_of_what_is_stopped(served: World) -> None:
    served.change(Vm, state=VmState.STOPPED)
    assert code_of(lambda: vms.stop_vm(served.context, "web", now_=True, grace_s=0)) == "vm_stopped"


def test_lost_vm_may_be_started_and_stopped(served: World) -> None:
    for act in (lambda: vms.start_vm(served.context, "web"),
                lambda: vms.stop_vm(served.context, "web", now_=True, grace_s=0)):  # fmt: skip
        served.change(Vm, state=VmState.LOST)
        assert code_of(act) == "nothing"


def test_vm_in_a_migration_is_left_alone(served: World, world: World) -> None:
    world.file()
    assert code_of(lambda: vms.stop_vm(served.context, "web", now_=True, grace_s=0)) == "migration_open"


def test_node_that_is_silent(served: World) -> None:
    served.silence("alpha")
    assert code_of(lambda: vms.stop_vm(served.context, "web", now_=True, grace_s=0)) == "node_silent"
    assert served.count(Operation) == 0


def test_stop_under_way_on_a_silent_node_is_not_hurried(world: World) -> None:
    """Nobody would obey, and whoever asked would wait in vain."""
    with world.context.unit() as unit:
        operations.file_operation(unit, unit.session.get_one(Vm, 1), OperationKind.STOP, grace_s=900.0)
    operations.take_operation(world.context, 1)
    world.silence("alpha")
    assert code_of(lambda: vms.stop_vm(world.context, "web", now_=True, grace_s=0)) == "node_silent"
    assert not operations.is_hurried(world.context, 1)


def test_document_has_the_contracts_keys(world: World) -> None:
    world.add_vm("aaa")
    documents = vms.list_vms(world.context)
    assert [document["name"] for document in documents] == ["aaa", "web"]
    for document in documents:
        assert set(document) >= CONTRACT
        assert all(set(volume) == VOLUME_KEYS for volume in document["volumes"])
        assert set(document["tpm"]) == {"identity", "digest", "epoch"}
    assert documents[1] == vms.show_vm(world.context, "web")
    json.dumps(documents)


def test_unknown_vm(world: World) -> None:
    assert code_of(lambda: vms.show_vm(world.context, "wep")) == "unknown_vm"


# -- rows for the node's worker ---------------------------------------------------------------------------------------


def test_view_of_a_vm(world: World) -> None:
    view = vm_rows.load_vm(world.context, 1)
    assert (view.name, view.node, view.epoch, view.state) == ("web", "alpha", 0, VmState.RUNNING)
    assert view.tpm is not None
    assert (view.tpm.device, view.tpm.path) == ("tpmstate0", Path("/alpha/images/web/tpm.raw"))
    assert [volume.role for volume in view.volumes] == [VolumeRole.DISK, VolumeRole.CLOUDINIT, VolumeRole.TPMSTATE]


def names(world: World) -> list[str]:
    return [view.name for view in vm_rows.vms_that_should_run(world.context, 1)]


def test_vms_that_should_run(world: World) -> None:
    for name, state in (("paused", VmState.PAUSED), ("off", VmState.STOPPED), ("lost", VmState.LOST)):
        world.add_vm(name, state=state)
    assert names(world) == ["web", "paused"]
    assert vm_rows.vms_that_should_run(world.context, 2) == []


def test_vm_that_somebody_works_on_is_not_looked_after(world: World) -> None:
    """Its QEMU may be gone because it was told to go."""
    world.add_vm("moving")
    world.add_vm("stopping")
    world.file("moving")
    with world.context.unit() as unit:
        operations.file_operation(unit, unit.session.get_one(Vm, 3), OperationKind.STOP)
    assert names(world) == ["web"]


def test_what_was_seen_is_written_down(world: World) -> None:
    (view,) = vm_rows.vms_that_should_run(world.context, 1)
    assert vm_rows.record_observed(world.context, view, VmState.PAUSED, run_state="io-error")
    assert (world.vm().state, vms.show_vm(world.context, "web")["run_state"]) == (VmState.PAUSED, "io-error")


@pytest.mark.parametrize("settled", [True, False], ids=["over since", "under way"])
def test_what_was_seen_before_a_migration_is_not_believed(world: World, *, settled: bool) -> None:
    """A guest that stood still in a switch-over which was undone runs on; only the look was late."""
    (view,) = vm_rows.vms_that_should_run(world.context, 1)
    world.file()
    move, _ = world.switch_over()
    if settled:
        world.fail(move)
        world.settle()
        assert world.state() == "undone"
    assert not vm_rows.record_observed(world.context, view, VmState.PAUSED, run_state="paused")
    assert world.vm().state is VmState.RUNNING


def test_ended_vms_are_stopped_and_only_those(world: World) -> None:
    world.add_vm("other")
    world.add_vm("off", state=VmState.STOPPED)
    assert vm_rows.record_ended(world.context, ["web", "off", "nobody"]) == ["web"]
    assert (world.vm().state, world.vm().pid, world.vm("other").state) == (VmState.STOPPED, None, VmState.RUNNING)


def test_word_for_a_standing_guest_goes_when_it_runs(world: World) -> None:
    world.change(Vm, state=VmState.RUNNING, run_state="io-error")
    assert vms.show_vm(world.context, "web")["run_state"] is None


def test_forgotten_vm_keeps_its_operation_open(world: World) -> None:
    with world.context.unit() as unit:
        node = unit.session.get_one(Node, 1)
        vm = Vm(name="x", node=node, definition=VmDefinition(name="x").as_dict(), created_at=world.vm().created_at)
        unit.session.add(vm)
        unit.session.flush()
        operation = operations.file_operation(unit, vm, OperationKind.CREATE)
    operations.take_operation(world.context, operation.id)
    vm_rows.forget_vm(world.context, operation.vm_id or 0, keep_operation=operation.id)
    with world.context.unit() as unit:
        operations.end_operation(unit, operation.id, OperationState.REFUSED, (BROKEN,))
    assert code_of(lambda: operations.await_operation(world.context, operation.id)) == "broken"
    assert code_of(lambda: vms.show_vm(world.context, "x")) == "unknown_vm"


def test_vm_whose_worker_died_while_it_was_defined_can_be_defined_again(world: World) -> None:
    """What was made of its volumes is found then; a device that was not blanked has another name until it is."""
    with world.context.unit() as unit:
        node = unit.session.get_one(Node, 1)
        vm = Vm(name="half", node_id=1, node=node, definition={}, created_at=now())
        unit.session.add(vm)
        unit.session.flush()
        operation = operations.file_operation(unit, vm, OperationKind.CREATE)
        operation.state = OperationState.RUNNING
    operations.take_back_operations(world.context, "alpha")
    with world.context.database.read() as session:
        assert session.scalar(select(Vm.id).where(Vm.name == "half")) is None
        row = session.get_one(Operation, operation.id)
        assert (row.state, row.vm_id) == (OperationState.FAILED, None)
