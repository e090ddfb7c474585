"""swtpm's container, taken apart: any bytes are a state or a StepFailed, the digest is the permanent blob's alone."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from haulier.errors import StepFailed
from haulier.hypervisor.tpm_state import TpmState, parse, read_state

MAGIC = 0x737774706D6C696E
HEADER_SIZE = 8 + 4 + 15 * 12


def container(permanent: bytes, *, offset: int = HEADER_SIZE, length: int | None = None, tail: bytes = b"") -> bytes:
    """A container as swtpm writes it, with one entry."""
    head = struct.pack("<QBBH", MAGIC, 1, 0, HEADER_SIZE)
    entry = struct.pack("<III", offset, len(permanent) if length is None else length, len(permanent))
    return (head + entry).ljust(HEADER_SIZE, b"\0") + permanent + tail


def with_blob_header(state: bytes, *, version: int = 2) -> bytes:
    return struct.pack(">BBHHI", version, 1, 10, 0, 10 + len(state)) + state


ENTRIES = st.builds(
    lambda offset, length, rest: struct.pack("<QBBHIII", MAGIC, 1, 0, HEADER_SIZE, offset, length, length) + rest,
    st.integers(min_value=0, max_value=400) | st.integers(min_value=0, max_value=0xFFFFFFFF),
    st.integers(min_value=0, max_value=400) | st.integers(min_value=0, max_value=0xFFFFFFFF),
    st.binary(max_size=400),
)


@given(st.binary(max_size=300) | ENTRIES)
@example(b"")
@example(b"\0" * 4096)
@example(struct.pack("<Q", MAGIC))
def test_any_bytes_are_a_state_or_refused(raw: bytes) -> None:
    try:
        state = parse(raw)
    except StepFailed as error:
        assert error.code == "tpm_state_broken"
        assert error.problem.hint
        return
    assert state.container == raw
    assert state.permanent in raw
    assert state.is_blank == (state.permanent == b"")


@given(st.binary(min_size=11, max_size=200), st.binary(max_size=50))
def test_permanent_blob_without_its_header(state: bytes, tail: bytes) -> None:
    """What lies behind it is a container's leavings and not the TPM's."""
    parsed = parse(container(with_blob_header(state), tail=tail))
    assert parsed.permanent == state
    assert parsed.digest == hashlib.sha256(state).hexdigest()


@given(st.binary(min_size=1, max_size=100))
def test_other_header_same_digest(state: bytes) -> None:
    """Another swtpm version may write another header around the same state."""
    old, new = (parse(container(with_blob_header(state, version=version))) for version in (1, 2))
    assert old.container != new.container
    assert old.digest == new.digest


@given(st.binary(min_size=1, max_size=100), st.data())
def test_one_other_byte_is_another_digest(state: bytes, data: st.DataObject) -> None:
    where = data.draw(st.integers(min_value=0, max_value=len(state) - 1))
    changed = bytes([*state[:where], state[where] ^ 1, *state[where + 1 :]])
    assert parse(container(with_blob_header(state))).digest != parse(container(with_blob_header(changed))).digest


def test_header_that_does_not_fit_its_blob_is_no_header() -> None:
    blob = struct.pack(">BBHHI", 2, 1, 10, 0, 4711) + b"state"
    assert parse(container(blob)).permanent == blob


@pytest.mark.parametrize("raw", [b"", b"\0", b"\0" * 4096, container(b"", offset=0), container(b"")])
def test_blank(raw: bytes) -> None:
    assert parse(raw).is_blank


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x01", "shorter than its header"),
        (container(b"state")[:20], "shorter than its header"),
        (b"garbage!" * 100, "does not begin"),
        (container(b"state")[:-1], "ends inside"),
        (container(b"state", length=1 << 31), "ends inside"),
        (container(b"state", offset=1 << 31), "ends inside"),
    ],
)
def test_broken(raw: bytes, words: str) -> None:
    with pytest.raises(StepFailed, match=words):
        parse(raw)


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(container(with_blob_header(b"the state")))
    assert read_state(path).permanent == b"the state"


@given(st.binary(max_size=300) | ENTRIES | st.builds(container, st.binary(max_size=50), tail=st.binary(max_size=50)))
def test_reading_is_parsing_all_of_it(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    """Only what is in use is read; that must not change what comes out."""
    path = tmp_path_factory.getbasetemp() / "state"
    path.write_bytes(raw)
    assert outcome(lambda: read_state(path)) == outcome(lambda: parse(raw))


def outcome(act: Callable[[], TpmState]) -> bytes | str:
    try:
        return act().permanent
    except StepFailed as error:
        return error.problem.message


def test_missing_volume(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"tpm_state_unreadable: .*No such file"):
        read_state(tmp_path / "none")


def test_state_that_never_holds_still(tmp_path: Path) -> None:
    """The kernel's file has other bytes at each reading."""
    path = tmp_path / "state"
    path.symlink_to("/proc/sys/kernel/random/uuid")
    with pytest.raises(StepFailed, match="tpm_state_unstable"):
        read_state(path)
