"""Keys stay where they belong: nobody gets at disks or stream without one, and no log, row or argument tells one."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from haulier.errors import StepFailed
from haulier.hypervisor import greeting
from haulier.hypervisor.tls import KeyFolder, greeting_key
from haulier.hypervisor.tpm_state import read_state
from tests.acceptance.faults import Faults
from tests.acceptance.guest import DISK, RESTLESS, SLOW, TPM, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.processes import ask, processes_of
from tests.acceptance.stack import Stack

# How TLS begins: a record with a handshake in it.
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(505)
NONCE_BYTES = 32


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


def knock(port: int, *, keys: Path | None) -> subprocess.CompletedProcess[str]:
    """Ask the target's NBD server for the disk, as anybody on the network could."""
    image = f"driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export=virtio0"
    words = ["qemu-img", "info", "--image-opts"]
    if keys:
        words[2:2] = ["--object", f"tls-creds-psk,id=k,dir={keys},endpoint=client,username=haulier"]
        image += ",tls-creds=k"
    return subprocess.run([*words, image], capture_output=True, text=True, timeout=30, check=False)


def open_port(stack: Stack, purpose: str) -> int:
    """The port that the target holds for this."""
    (port,) = [row["port"] for row in stack.table("allocation", purpose=purpose) if row["freed_at"] is None]
    assert isinstance(port, int)
    return port


def test_disks_are_served_to_nobody_without_the_key(
    stack: Stack, make_guest: Callable[..., Guest], tmp_path: Path
) -> None:
    guest = make_guest(append=RESTLESS)
    command = guest.begin_migrate("beta")
    guest.wait_phase("move_memory", "running")
    port = open_port(stack, "disks")
    without = knock(port, keys=None)
    KeyFolder(tmp_path / "wrong").write(b"another cluster's secret, 32 bytes", "1-1")
    wrong = knock(port, keys=tmp_path / "wrong")
    (right,) = stack.run_folder("alpha", guest.name).glob("keys-*")
    same = knock(port, keys=right)
    guest.cancel(command)
    assert without.returncode != 0 and "TLS" in without.stderr, without
    assert wrong.returncode != 0 and "TLS handshake failed" in wrong.stderr, wrong
    assert same.returncode == 0, same
    assert_all_is_well(stack, guest)


def come_with(key: bytes, port: int) -> str:
    """Greet the target as the source's worker does; what became of it."""

    async def greet() -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as stranger:
            try:
                await greeting.greet(stranger, key)
            except StepFailed as error:
                return error.code
        return "let in"

    return asyncio.run(greet())


def say(port: int, words: bytes) -> bytes:
    """Say something on a port; all that is answered until the other side has enough."""
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as stranger, suppress(ConnectionResetError):
        stranger.sendall(words)
        while more := stranger.recv(4096):
            heard += more
    return heard


def test_stream_is_taken_from_nobody_without_the_key(
    stack: Stack, make_guest: Callable[..., Guest], faults: Faults
) -> None:
    """Strangers who come to the target's port while it waits get nowhere, and the migration goes on beside them."""
    guest = make_guest(DISK, TPM, append=SLOW)
    with ExitStack() as strangers:
        with faults.holding("move_memory.run.begins"):
            command = guest.begin_migrate("beta")
            faults.wait_held("move_memory.run.begins")
            port = open_port(stack, "stream")
            # A QEMU that met this one would wait for its first word, with its monitor and, on the source, its guest.
            strangers.enter_context(socket.create_connection(("127.0.0.1", port)))
            plain = say(port, b"QEVM\0\0\0\3" + b"\0" * 4096)
            tls = say(port, CLIENT_HELLO)
            wrong = come_with(greeting_key(b"another cluster's secret, 32 bytes", "1-1"), port)
            target = stack.qmp("beta", guest.name)
            seen = [ask(target, "query-status")["status"], ask(target, "query-migrate").get("status")]
        document = command.finish().done()
    assert document["state"] == "done", document
    assert [len(plain), len(tls), wrong] == [NONCE_BYTES, NONCE_BYTES, "target_not_proved"]
    assert seen == ["inmigrate", None], "QEMU heard nothing of them"
    assert guest.row()["node"] == "beta"
    guest.wait_ticks()
    assert_all_is_well(stack, guest)


def test_nothing_tells_a_secret(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(DISK, TPM, append=SLOW)
    command = guest.begin_migrate("beta")
    guest.wait_phase("move_memory", "running")
    folders = list((stack.state / "run").glob("*/*/keys-*"))
    assert len(folders) == 2
    keys = {(folder / "keys.psk").read_bytes().strip().partition(b":")[2] for folder in folders}
    assert len(keys) == 1, "both sides have the same key"
    for folder in folders:
        assert [folder.stat().st_mode & 0o777, (folder / "keys.psk").stat().st_mode & 0o777] == [0o700, 0o600]
    state = read_state(guest.volumes()["tpmstate0"]).permanent
    secret = (stack.state / "secret").read_bytes().strip()
    assert (stack.state / "secret").stat().st_mode & 0o777 == 0o600
    hidden = {*keys, secret, bytes.fromhex(secret.decode()), *map(bytes.fromhex, map(bytes.decode, keys))}
    seeds = random_looking(state)
    assert len(seeds) > 8, "a TPM's seeds and keys look random"
    hidden |= {*seeds, *(seed.hex().encode() for seed in seeds)}
    told = "\n".join(str(process.argv) for process in processes_of(stack.state)).encode()
    answer = command.finish()
    answer.done()
    shown = (answer.output + answer.errors + stack.haulier("migration", "list").output).encode()
    for place, text in {"arguments": told, "output": shown, **dict(written(stack))}.items():
        assert not [word for word in hidden if word in text], f"{place} tells a secret"
    assert_all_is_well(stack, guest)


def random_looking(state: bytes) -> list[bytes]:
    """Pieces of a state that are found nowhere by chance."""
    pieces = [state[start : start + 16] for start in range(0, len(state) - 16, 4)]
    return [piece for piece in pieces if len(set(piece)) > 13]


def written(stack: Stack) -> Iterator[tuple[str, bytes]]:
    """All that the stack has written, but for the secret's own file, the volumes and the TPM states that are kept.

    Read by another process: whoever closes a file of SQLite's loses the locks of his own connection to it.
    """
    for path in stack.state.rglob("*"):
        if path.is_file() and path.name != "secret" and not {"images", "quarantine"} & set(path.parts):
            yield str(path), subprocess.run(["cat", path], capture_output=True, check=True).stdout


def test_all_that_is_written_is_ours_alone(stack: Stack, guest: Guest) -> None:
    guest.move("beta")
    open_to_others = [
        str(path)
        for path in stack.state.rglob("*")
        if path.stat().st_mode & 0o077 and not any(parent.stat().st_mode & 0o077 == 0 for parent in path.parents)
    ]
    assert open_to_others == []
    assert stack.state.stat().st_mode & 0o777 == 0o700
    for place in ("run", "nodes", "broker", "logs"):
        assert (stack.state / place).stat().st_mode & 0o077 == 0, place
