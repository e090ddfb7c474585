"""Bad input: a one-line error with a code and a hint, exit status 2 (64 for wrong usage), and nothing touched."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.commands import Answer
from tests.acceptance.faults import Faults
from tests.acceptance.guest import DISK, RESTLESS, TPM, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import FILED, Stack
from tests.acceptance.waiting import wait_until

CONF = b"name: newcomer\nmemory: 64\nmachine: q35\n"
# The record that a definition was tried stays, on no VM's account.
TRIED = ("operation", "event")


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


@pytest.fixture
def defined(stack: Stack, make_guest: Callable[..., Guest]) -> str:
    """The name of a VM that has never been started; one for the whole stack."""
    known = [row["name"] for row in stack.table("vm") if row["state"] == "stopped" and not row["pinned"]]
    return known[0] if known else make_guest(start=False).name


def assert_explained(answer: Answer, *, status: int, code: str | None) -> None:
    """The exit status, one JSON document with the error, and a line for people; never a traceback."""
    assert "Traceback" not in answer.errors, answer.errors
    assert answer.status == status, answer
    error = answer.document.get("error") or answer.document
    assert error["code"] == (code or error["code"]), answer
    assert error["message"] and "\n" not in error["message"]
    assert error["hint"]
    assert f"error[{error['code']}]: {error['message']}" in answer.errors


def assert_refused(stack: Stack, *words: str, code: str, leaves: tuple[str, ...] = ()) -> Answer:
    """Refused with this code; rows (but for the tables `leaves`), files and processes are as before."""
    before = stack.snapshot(without=leaves)
    answer = stack.haulier(*words)
    assert_explained(answer, status=2, code=code)
    assert stack.snapshot(without=leaves) == before
    return answer


NAMES_THAT_ARE_NOT_THERE = (
    ("migrate nobody --to beta", "unknown_vm"),
    ("migrate {vm} --to nowhere", "unknown_node"),
    ("migrate {vm} --to beta", "vm_not_running"),
    ("migrate {vm} --to alpha", "already_there"),
    ("migrate {vm} --to alpha --offline", "already_there"),
    ("explain nobody --to beta", "unknown_vm"),
    ("explain {vm} --to nowhere", "unknown_node"),
    ("vm show ../../etc/passwd", "unknown_vm"),
    ("vm start nobody", "unknown_vm"),
    ("vm stop {vm}", "vm_stopped"),
    ("migration show 4711", "unknown_migration"),
    ("migration show 99999999999999999999999", "unknown_migration"),
    ("migration cancel 4711", "unknown_migration"),
    ("migration retry 4711", "unknown_migration"),
    ("node show nowhere", "unknown_node"),
    ("node maintenance nowhere on", "unknown_node"),
    ("events --since yesterday", "bad_moment"),
    ("events --since 999999d", "bad_moment"),
    ("up --nodes ../beta", "bad_name"),
    ("up --nodes beta,beta", "bad_nodes"),
)
WRONG_USAGE = (
    "migrate",
    "migrate a --to",
    "migrate a --too beta",
    "frobnicate",
    "migration show one",
    "vm define",
    "node maintenance alpha maybe",
    "vm stop a --grace-s soon",
)
# None: any code will do, there are several reasons.
FILES_THAT_DEFINE_NO_VM = {
    "absent": (None, "file_not_found"),
    "empty": (b"", "not_a_config"),
    "program": (b"\x7fELF\x02\x01\x01\0\0\0\0\0", "not_a_config"),
    "letter": (b"just a letter to a friend\n", "not_a_config"),
    "without its volume": (CONF + b"virtio0: local:gone.raw\n", "volume_missing"),
    "without its storage": (CONF + b"virtio0: elsewhere:disk.raw,size=1M\n", "unknown_storage"),
    "out of its folder": (CONF + b"virtio0: local:../../escape.raw,size=1M\n", None),
    "twice the same": (CONF + b"memory: 64\n", None),
    "no number": (b"name: newcomer\nmemory: lots\n", None),
    "without a name": (b"memory: 64\n", "vm_without_name"),
}


def test_names_that_are_not_there(stack: Stack, defined: str) -> None:
    commands = {tuple(words.format(vm=defined).split()): code for words, code in NAMES_THAT_ARE_NOT_THERE}
    before = stack.snapshot()
    for words, code in commands.items():
        assert_explained(stack.haulier(*words), status=2, code=code)
    assert stack.snapshot() == before


def test_wrong_usage(stack: Stack) -> None:
    before = stack.snapshot()
    for words in WRONG_USAGE:
        assert_explained(stack.haulier(*words.split()), status=64, code="usage")
    assert stack.snapshot() == before


def test_files_that_define_no_vm(stack: Stack, tmp_path: Path) -> None:
    files = {str(tmp_path / f"{name}.conf"): pair for name, pair in FILES_THAT_DEFINE_NO_VM.items()}
    for file, (content, _code) in files.items():
        if content is not None:
            Path(file).write_bytes(content)
    before = stack.snapshot(without=TRIED)
    for file, (_content, code) in files.items():
        assert_explained(stack.haulier("vm", "define", file, "--node", "alpha"), status=2, code=code)
    assert stack.snapshot(without=TRIED) == before


def test_unknown_keys_are_kept_and_reported(stack: Stack, tmp_path: Path, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(
        "virtio0: local:{name}/a.raw,size=1M", "startup: order=3", "wibble: yes", start=False, define=False
    )
    document = guest.define()
    assert document["ignored"] == {"startup": "order=3", "wibble": "yes"}
    toml = tmp_path / "vm.toml"
    toml.write_text('name = "tomlvm"\nmemory_mib = 64\nwibble = 1\n')
    assert_refused(stack, "vm", "define", str(toml), "--node", "alpha", code="unknown_key", leaves=TRIED)


def test_names_and_volumes_have_one_owner(stack: Stack, defined: str, tmp_path: Path) -> None:
    file = tmp_path / "again.conf"
    file.write_text(f"name: {defined}\nmemory: 64\n")
    assert_refused(stack, "vm", "define", str(file), "--node", "alpha", code="vm_exists")
    file.write_text(f"name: thief\nmemory: 64\nvirtio0: local:{defined}/disk0.raw,size=64M\n")
    assert_refused(stack, "vm", "define", str(file), "--node", "alpha", code="volume_owned")
    file.write_text("name: lost\nmemory: 64\n")
    assert_refused(stack, "vm", "define", str(file), "--node", "nowhere", code="unknown_node")


def test_what_only_a_running_vm_shows(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    """One guest, and each thing that may be wrong about it or its target, one after the other."""
    guest = make_guest()
    move = ("migrate", guest.name, "--to", "beta", "--wait")
    assert_refused(stack, *move[:3], "alpha", code="already_there")
    assert_refused(stack, "vm", "start", guest.name, code="vm_running")

    disk = guest.volumes()["virtio0"]
    away = disk.with_suffix(".away")
    disk.rename(away)
    assert_refused(stack, *move, code="volume_missing", leaves=FILED)
    away.rename(disk)

    taken = stack.images("beta") / disk.relative_to(stack.images("alpha"))
    taken.parent.mkdir(exist_ok=True)
    taken.write_bytes(b"somebody's")
    assert_refused(stack, *move, code="volume_exists", leaves=FILED)
    assert taken.read_bytes() == b"somebody's"
    taken.unlink()

    stack.haulier("node", "maintenance", "beta", "on").done()
    assert_refused(stack, *move, code="node_in_maintenance")
    stack.haulier("node", "maintenance", "beta", "off").done()

    guest.wait_ticks()
    assert_all_is_well(stack, guest)


def test_target_without_room(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    """A guest as large as the whole host starts, because its RAM is untouched; a second such one finds no room."""
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    size = os.statvfs(stack.state)
    giant = f"virtio1: local:{{name}}/giant.raw,size={(size.f_bavail * size.f_frsize >> 30) + 50}G"
    guest = make_guest(DISK, giant, TPM, memory_mib=total_kib // 1024 - 64)
    answer = assert_refused(stack, "migrate", guest.name, "--to", "beta", "--wait", code="no_ram", leaves=FILED)
    assert {error["code"] for error in answer.document["errors"]} == {"no_ram", "no_space"}
    assert_all_is_well(stack)


def test_swtpm_that_is_too_old(stack: Stack, faults: Faults, guest: Guest) -> None:
    with faults.told("swtpm", "beta", "old"):
        stack.restart_worker("beta")
        assert_refused(stack, "migrate", guest.name, "--to", "beta", "--wait", code="swtpm_too_old", leaves=FILED)
    stack.restart_worker("beta")
    guest.wait_ticks()
    assert_all_is_well(stack, guest)


def test_worker_of_the_target_is_stopped(stack: Stack, guest: Guest) -> None:
    stack.supervisor("stopProcess", "node-beta")
    assert_refused(stack, "migrate", guest.name, "--to", "beta", "--wait", code="node_silent")
    stack.start_worker("beta")
    guest.move("beta")
    assert_all_is_well(stack, guest)


def test_worker_of_the_target_hangs(stack: Stack, guest: Guest) -> None:
    pid = stack.worker_pid("beta")
    os.kill(pid, signal.SIGSTOP)
    try:
        # Filed while its heartbeat is fresh: the check on the target is never taken, and so nothing is touched.
        assert_refused(stack, "migrate", guest.name, "--to", "beta", "--wait", code="node_silent", leaves=FILED)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until("beta beats again", lambda: stack.beats("beta"))
    guest.wait_ticks()
    assert_all_is_well(stack, guest)


def test_second_migration_of_one_vm(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(append=RESTLESS)
    command = guest.begin_migrate("beta")
    guest.wait_phase("move_memory", "running")
    for words in (("migrate", guest.name, "--to", "beta"), ("vm", "stop", guest.name)):
        assert_explained(stack.haulier(*words), status=2, code="migration_open")
    assert len(stack.table("migration", vm_id=guest.row()["id"])) == 1
    guest.cancel(command)
    assert_all_is_well(stack, guest)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("HAULIER_PORTS", "nonsense", "bad_setting"),
        ("HAULIER_CONFIG", "/nonexistent/haulier.toml", "bad_setting"),
        ("HAULIER_DATABASE_URL", "postgresql+psycopg://127.0.0.1:1/none", "database_away"),
        ("HAULIER_STATE", "/tmp/ha-never-there", "database_not_ready"),
    ],
)
def test_settings_that_cannot_be(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, name: str, value: str, code: str
) -> None:
    before = stack.snapshot()
    monkeypatch.setitem(stack.environment, name, value)
    answer = stack.haulier("vm", "list")
    monkeypatch.undo()
    assert_explained(answer, status=2, code=code)
    assert stack.snapshot() == before
    assert not Path("/tmp/ha-never-there").exists()
