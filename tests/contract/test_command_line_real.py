"""Real QEMU builds the machine that the command line asks for, and two processes build the same one.

Each definition is started stopped under TCG. The last test hands the state of one process to another: QEMU itself then
compares every device, address and size of the two.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from haulier.definition import Role, VmDefinition, VolumeSpec, read_proxmox
from haulier.hypervisor.command_line import Drive, MachineSpec, command_line, node_name

PROGRAM = os.environ.get("HAULIER_QEMU", "qemu-system-x86_64")
OVMF = Path("/usr/share/OVMF")
RAM_KIB = 64 * 1024 + 8

pytestmark = pytest.mark.real

BASE = "name: vm\nmemory: 64\ncpu: qemu64\n"
Q35 = BASE + "machine: pc-q35-7.2\n"
PC = BASE + "machine: pc-i440fx-7.2\n"
# Without ne2k_isa: its state and that of ne2k_pci bear one name ("ne2000"), so QEMU 7.2 cannot load a VM that has both.
MODELS = (
    *("virtio", "e1000", "e1000e", "rtl8139", "vmxnet3", "pcnet", "virtio", "ne2k_pci"),
    *("i82551", "i82557b", "i82559er", "e1000-82544gc", "e1000-82545em"),
)
NICS = "".join(f"net{n}: {model}=BC:24:11:00:00:{n:02X},bridge=vmbr0\n" for n, model in enumerate(MODELS))


def two(bus: str, form: str = "raw") -> str:
    return f"{bus}0: local:{bus}0.{form},size=8M\n{bus}1: local:{bus}1.{form},size=8M,serial=two\n"


DEFINITIONS = {
    "empty-q35": Q35,
    "virtio-q35": Q35 + two("virtio"),
    "virtio-pc-qcow2": PC + two("virtio", "qcow2"),
    "sixteen-virtio-q35": Q35 + "".join(f"virtio{n}: local:v{n}.raw,size=1M\n" for n in range(16)),
    "scsi-q35-qcow2": Q35 + "scsihw: virtio-scsi-pci\n" + two("scsi", "qcow2") + "scsi2: none,media=cdrom\n",
    "scsi-single-q35": Q35 + "scsihw: virtio-scsi-single\n" + two("scsi") + "scsi30: local:s30.raw,size=1M,ro=1\n",
    "scsi-single-pc": PC + "scsihw: virtio-scsi-single\n" + two("scsi"),
    "lsi-pc": PC + two("scsi") + "scsi8: local:s8.raw,size=1M\nscsi30: local:s30.raw,size=1M\n",
    "lsi53c810-q35": Q35 + "scsihw: lsi53c810\n" + two("scsi") + "scsi20: local:s20.raw,size=1M\n",
    "megasas-q35": Q35 + "scsihw: megasas\n" + two("scsi") + "scsi30: local:s30.raw,size=1M\n",
    "pvscsi-pc": PC + "scsihw: pvscsi\n" + two("scsi") + "scsi30: local:s30.raw,size=1M\n",
    "sata-q35": Q35 + two("sata") + "sata5: none,media=cdrom\n",
    "sata-pc": PC + two("sata", "qcow2"),
    "ide-pc": PC + two("ide") + "ide2: none,media=cdrom\nide3: local:vm-1-cloudinit,media=cdrom,size=1M\n",
    "ide-q35": Q35 + two("ide") + "ide2: none,media=cdrom\nide3: local:vm-1-cloudinit,media=cdrom,size=1M\n",
    "nics-q35": Q35 + NICS,
    "nics-pc": PC + NICS + "boot: order=net0\n",
    "ne2k-isa-pc": PC + "net0: ne2k_isa=BC:24:11:00:00:01\nnet1: virtio=BC:24:11:00:00:02\n",
    "serials-q35": Q35 + "serial0: socket\nserial1: socket\n",
    "ovmf-q35": Q35 + "bios: ovmf\nefidisk0: local:e.raw\n" + two("virtio"),
    "ovmf-pc-qcow2": PC + "bios: ovmf\nefidisk0: local:e.qcow2\n" + two("scsi"),
    "ovmf-without-variables": Q35 + "bios: ovmf\n",
    "smp-boot-order": Q35
    + "cores: 2\nsockets: 2\nboot: order=virtio1;ide2;net0\nnet0: virtio=BC:24:11:00:00:01,mtu=1450\n"
    + two("virtio")
    + "ide2: none,media=cdrom\n",
}


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    missing = [name for name in (PROGRAM, "qemu-img", "swtpm") if not shutil.which(name)]
    missing += [] if (OVMF / "OVMF_CODE_4M.fd").exists() else ["OVMF"]
    if missing and os.environ.get("CI"):
        pytest.fail(f"missing in CI: {missing}")
    if missing:
        pytest.skip(f"missing here: {missing}")


class Qemu:
    """A running QEMU and one QMP connection to it."""

    def __init__(self, stream: socket.socket, log: Path) -> None:
        self._log = log
        self._file = stream.makefile("rw")
        self._next(lambda message: "QMP" in message)
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        answer = self._next(lambda message: "return" in message or "error" in message)
        assert "return" in answer, answer
        return answer["return"]

    def wait_for(self, event: str, **data: Any) -> None:
        self._next(lambda message: message.get("event") == event and data.items() <= message["data"].items())

    def hmp(self, line: str) -> str:
        return str(self("human-monitor-command", **{"command-line": line}))

    def _next(self, wanted: Any) -> dict[str, Any]:
        while line := self._file.readline():
            message: dict[str, Any] = json.loads(line)
            if wanted(message):
                return message
        raise AssertionError(f"QEMU went away: {self._log.read_text()}")


def drive(spec: VolumeSpec, folder: Path) -> Drive:
    path = folder / str(spec.name) if spec.name else None
    if path and not path.exists():
        if spec.role is Role.EFIDISK:
            make = ["qemu-img", "convert", "-f", "raw", "-O", spec.format, str(OVMF / "OVMF_VARS_4M.fd"), str(path)]
        else:
            make = ["qemu-img", "create", "-q", "-f", spec.format, str(path), str(spec.size_bytes)]
        subprocess.run(make, check=True)
    return Drive(spec.device, spec.role, node_name(spec.device), path, spec.format, spec.read_only)


def machine(definition: VmDefinition, folder: Path, **fields: Any) -> MachineSpec:
    roles = (Role.DISK, Role.EFIDISK, Role.CDROM, Role.CLOUDINIT)
    usual: dict[str, Any] = {
        "definition": definition,
        "program": PROGRAM,
        "accel": "tcg",
        "ram_kib": RAM_KIB,
        "run_dir": folder,
        "log_dir": folder,
        "drives": tuple(drive(spec, folder) for spec in definition.volumes if spec.role in roles),
        "uuid": "7b10d7af-b932-4c66-b2c3-3996152ec465",
        "firmware_code": OVMF / "OVMF_CODE_4M.fd",
    }
    return MachineSpec(**(usual | fields))


@contextmanager
def running(definition: VmDefinition, folder: Path, *, run: str = "run", **fields: Any) -> Iterator[Qemu]:
    """Start QEMU with two monitors handed in; it is dead when the block ends."""
    run_dir = folder / run
    run_dir.mkdir(exist_ok=True)
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        for number, listener in enumerate(listeners):
            path = run_dir / f"monitor{number}"
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen()
        fds = tuple(listener.fileno() for listener in listeners)
        spec = machine(definition, folder, run_dir=run_dir, monitor_fds=fds, **fields)
        log = stack.enter_context((run_dir / "log").open("w+"))
        process = subprocess.Popen(command_line(spec), pass_fds=fds, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.kill)
        for listener in listeners:
            listener.close()
        stream = stack.enter_context(socket.socket(socket.AF_UNIX))
        stream.settimeout(60)
        # The listener was there before QEMU was: connecting waits for nobody, and QEMU's death ends the connection.
        stream.connect(str(run_dir / "monitor0"))
        yield Qemu(stream, run_dir / "log")


def devices_of(qemu: Qemu) -> list[dict[str, Any]]:
    (bus,) = qemu("query-pci")
    devices: list[dict[str, Any]] = bus["devices"]
    return devices


@pytest.fixture(params=DEFINITIONS)
def definition(request: pytest.FixtureRequest) -> VmDefinition:
    return read_proxmox(DEFINITIONS[request.param], source=request.param)


def test_qemu_builds_what_was_asked_for(definition: VmDefinition, tmp_path: Path) -> None:
    with running(definition, tmp_path) as qemu:
        assert qemu("query-status")["status"] == "prelaunch"
        assert qemu("query-memory-size-summary")["base-memory"] == RAM_KIB * 1024
        assert len(qemu("query-cpus-fast")) == definition.cores * definition.sockets
        nodes = {node["node-name"]: node for node in qemu("query-named-block-nodes")}
        firmware = {"drive-firmware", "file-firmware"} if definition.firmware == "ovmf" else set()
        opened = {spec.device for spec in definition.volumes if spec.name}
        assert set(nodes) == firmware | {f"{layer}-{device}" for device in opened for layer in ("drive", "file")}
        for spec in definition.volumes:
            if spec.name:
                node = nodes[node_name(spec.device)]
                assert (node["drv"], node["ro"]) == (spec.format, spec.read_only)
                assert node["image"]["virtual-size"] == spec.size_bytes
        ids = {entry["name"] for entry in qemu("qom-list", path="/machine/peripheral")}
        plugged = {spec.device for spec in definition.volumes if spec.role is not Role.EFIDISK}
        assert plugged | {nic.device for nic in definition.nics} <= ids
        assert int((tmp_path / "run" / "qemu.pid").read_text()) > 0


def test_two_starts_build_the_same_machine(definition: VmDefinition, tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        with running(definition, tmp_path) as qemu:
            # query-pci does not look behind bridges before the firmware ran; the device tree does.
            seen.append((devices_of(qemu), qemu.hmp("info qtree"), qemu("query-named-block-nodes")))
    assert seen[0] == seen[1]


def test_state_of_one_process_loads_in_another(definition: VmDefinition, tmp_path: Path) -> None:
    with (
        running(definition, tmp_path) as source,
        running(definition, tmp_path, run="target", incoming=True) as target,
    ):
        assert target("query-status")["status"] == "inmigrate"
        for qemu in (source, target):
            qemu("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        channel = f"unix:{tmp_path}/channel"
        target("migrate-incoming", uri=channel)
        source("migrate", uri=channel)
        target.wait_for("MIGRATION", status="completed")
        source.wait_for("MIGRATION", status="completed")


def test_virtio_disks_offer_legacy_io_on_q35(tmp_path: Path) -> None:
    for device in ("virtio0", "virtio5"):
        definition = read_proxmox(Q35 + f"{device}: local:{device}.raw,size=1M\n", source="legacy")
        with running(definition, tmp_path) as qemu:
            (found,) = [entry for entry in devices_of(qemu) if entry["qdev_id"] == device]
            assert found["id"] == {"vendor": 0x1AF4, "device": 0x1001, "subsystem-vendor": 0x1AF4, "subsystem": 2}
            assert found["regions"][0]["type"] == "io"


def test_serial_log_is_kept_over_a_restart(tmp_path: Path) -> None:
    definition = read_proxmox(Q35 + "serial0: socket\n", source="serial")
    log = tmp_path / "run" / "serial0.log"
    log.parent.mkdir()
    log.write_text("before\n")
    with running(definition, tmp_path) as qemu:
        assert [entry["label"] for entry in qemu("query-chardev")].count("serial0") == 1
    assert log.read_text() == "before\n"


@pytest.mark.parametrize(("version", "model"), [("v2.0", "tpm-crb"), ("v1.2", "tpm-tis")])
def test_tpm(tmp_path: Path, version: str, model: str) -> None:
    text = Q35 + f"tpmstate0: local:t.raw,version={version}\n"
    definition = read_proxmox(text, source="tpm")
    channel = tmp_path / "tpm.sock"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(channel))
        listener.listen()
        argv = ["swtpm", "socket", "--tpmstate", f"dir={tmp_path}", "--ctrl", f"type=unixio,fd={listener.fileno()}"]
        flags = ["--tpm2"] if version == "v2.0" else []
        swtpm = subprocess.Popen([*argv, *flags, "--terminate"], pass_fds=[listener.fileno()])
        stack.callback(swtpm.wait)
        stack.callback(swtpm.kill)
        qemu = stack.enter_context(running(definition, tmp_path, tpm_socket=channel))
        (tpm,) = qemu("query-tpm")
        assert (tpm["id"], tpm["model"]) == ("tpm0", model)
        assert not [node for node in qemu("query-named-block-nodes") if "tpm" in node["node-name"]]
