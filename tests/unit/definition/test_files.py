"""Which reader a file gets, and files that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from haulier.definition import read_definition, read_storages
from haulier.errors import Refused


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def code(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        read_definition(path)
    assert str(path) in caught.value.problem.message or "\0" in str(path)
    return caught.value.code


def test_extension_decides(tmp_path: Path) -> None:
    assert read_definition(write(tmp_path, "100.conf", "name: a\n")).vmid == 100
    assert read_definition(write(tmp_path, "web.conf", "name: a\n")).vmid is None
    assert read_definition(write(tmp_path, "web.toml", 'name = "b"\n')).name == "b"


def test_content_decides_for_other_names(tmp_path: Path) -> None:
    assert read_definition(write(tmp_path, "one", "name: a\nnet0: virtio=02:00:00:00:00:01\n")).name == "a"
    assert read_definition(write(tmp_path, "two", 'name = "b"\n')).name == "b"


def test_byte_order_mark(tmp_path: Path) -> None:
    assert read_definition(write(tmp_path, "a.toml", b'\xef\xbb\xbfname = "b"\n')).name == "b"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert code(tmp_path / "none.conf") == "file_not_found"
    assert code(tmp_path) == "not_a_file"
    assert code(tmp_path / "a\0b") == "file_unreadable"
    assert code(tmp_path / ("x" * 300)) == "file_unreadable"
    assert code(write(tmp_path, "b.conf", b"name: \xff\xfe\n")) == "not_a_config"
    assert code(write(tmp_path, "large.conf", "#" * (1024 * 1024 + 1))) == "file_too_large"
    assert code(write(tmp_path, "empty.conf", "")) == "not_a_config"


def test_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.conf")
    assert code(tmp_path / "fifo.conf") == "not_a_file"


def test_file_without_permission(tmp_path: Path) -> None:
    path = write(tmp_path, "secret.conf", "name: a\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("runs as root: every file is readable")
    assert code(path) == "file_unreadable"


def test_storages(tmp_path: Path) -> None:
    (storage,) = read_storages(write(tmp_path, "storage.cfg", "dir: local\n\tpath /var/lib/vz\n"))
    assert storage.path == "/var/lib/vz"
