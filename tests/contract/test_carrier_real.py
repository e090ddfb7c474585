"""Volumes sent over TLS to a real qemu-storage-daemon by real qemu-img, and read from it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from haulier.definition.storage import Image
from haulier.errors import StepFailed
from haulier.hypervisor.carrier import CarrierExport, RemoteExport, fetch_file, send_file, start_carrier, stop_carrier
from haulier.hypervisor.images import create_image, image_info
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.nbd import NbdServer, require_answer
from haulier.hypervisor.tls import KeyFolder
from tests.contract.real import (
    OTHER_SECRET,
    keys,
    run,
    server,
)

pytestmark = pytest.mark.real


@contextmanager
def carrying(place: VmPlace, target: Path, *, secure: bool = True, size_bytes: int = 1 << 20) -> Iterator[NbdServer]:
    create_image(target, format="raw", size_bytes=size_bytes)
    listening = server()
    export = CarrierExport("tpmstate0", Image(target))
    start_carrier(place, [export], server=listening, keys=keys(place.run / "keys") if secure else None)
    try:
        yield listening
    finally:
        stop_carrier(place)


def send(source: Path, to: NbdServer, key: KeyFolder | None, *, export: str = "tpmstate0") -> None:
    run(send_file(Image(source), RemoteExport(to, export, key), report=lambda _: None))


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


def test_file_is_sent_as_it_is(place: VmPlace, tmp_path: Path) -> None:
    """A qcow2 image with a snapshot and much room in it: same bytes, same holes."""
    source, target = tmp_path / "source.qcow2", tmp_path / "target.qcow2"
    create_image(source, format="qcow2", size_bytes=1 << 30)
    for words in (["qemu-io", "-c", "write -P 7 0 1M"], ["qemu-img", "snapshot", "-c", "before"],
                  ["qemu-io", "-c", "write -P 9 512M 1M"], ["truncate", "-s", "64M"]):  # fmt: skip
        subprocess.run([*words, str(source)], check=True, timeout=30, capture_output=True)
    with carrying(place, target, size_bytes=source.stat().st_size) as to:
        send(source, to, keys(tmp_path / "sender"))
    assert target.read_bytes() == source.read_bytes()
    assert image_info(target, format="qcow2").snapshots == 1
    assert target.stat().st_blocks <= source.stat().st_blocks


def test_progress_never_goes_back(place: VmPlace, tmp_path: Path) -> None:
    """Slow enough to be looked at; the file is read, and the carrier's export, too."""
    source, told = tmp_path / "large.raw", list[int]()
    source.write_bytes(os.urandom(12 << 20))
    with carrying(place, tmp_path / "target.raw", size_bytes=12 << 20) as to:
        export = RemoteExport(to, "tpmstate0", keys(tmp_path / "sender"))
        run(send_file(Image(source), export, report=told.append, max_bytes_per_s=4 << 20))
        assert told == sorted(told)
        assert told[-1] > 0
        told.clear()
        run(fetch_file(export, tmp_path / "fetched", report=told.append, max_bytes_per_s=4 << 20))
    assert told == sorted(told)
    assert told[-1] > 0
    assert (tmp_path / "fetched").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("secure", [True, False])
def test_carrier_answers_who_only_asks(place: VmPlace, tmp_path: Path, *, secure: bool) -> None:
    with carrying(place, tmp_path / "target.raw", secure=secure) as to:
        for _ in range(2):
            run(require_answer(to))


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
            start_carrier(place, [CarrierExport("x", Image(tmp_path / "target.raw"))], server=taken, keys=None)
    assert place.carrier.pid() is None


def test_key_never_stands_on_a_command_line(place: VmPlace, tmp_path: Path) -> None:
    with carrying(place, tmp_path / "target.raw"):
        key = (place.run / "keys" / "keys.psk").read_text().strip().partition(":")[2]
        assert key.encode() not in Path(f"/proc/{place.carrier.pid()}/cmdline").read_bytes()


def test_server_takes_the_prime_that_it_is_given(place: VmPlace, tmp_path: Path) -> None:
    """One that looks for its own takes up to seconds; when this fails the file is of no use any more."""
    key = keys(place.run / "keys")
    (key.path / "dh-params.pem").write_text("no prime")
    create_image(tmp_path / "target.raw", format="raw", size_bytes=1 << 20)
    with pytest.raises(StepFailed, match=r"dh-params\.pem"):
        start_carrier(place, [CarrierExport("x", Image(tmp_path / "target.raw"))], server=server(), keys=key)
