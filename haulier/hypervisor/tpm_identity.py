"""Who a TPM is: the public part of its endorsement key, read by asking a scratch swtpm that runs on a copy of the
state.

The endorsement key is derived from a seed inside the state, the same each time, so any copy answers for the original.
The copy lives in a folder that only we can open and only as long as the question. What comes out is a SHA-256, never a
key.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO

from haulier.errors import StepFailed
from haulier.hypervisor.images import destroy_image
from haulier.hypervisor.swtpm import state_uri
from haulier.hypervisor.tpm_state import parse

_ANSWER_S = 20.0
_SCRATCH = "identity-"
_SESSIONS = 0x8002
_CREATE_PRIMARY = 0x00000131
_ENDORSEMENT = 0x4000000B
_PLATFORM = 0x4000000C
_PASSWORD_SESSION = 0x40000009
# Template L-2 (ECC NIST P-256) of the TCG EK Credential Profile 2.0, B.3.4: every TPM makes the same key from it each
# time.
_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")


def _ek_template() -> bytes:
    ecc, sha256, attributes = 0x0023, 0x000B, 0x000300B2
    aes_128_cfb = struct.pack(">HHH", 0x0006, 128, 0x0043)
    no_scheme, nist_p256, no_kdf = 0x0010, 0x0003, 0x0010
    point = struct.pack(">H32xH32x", 32, 32)
    head = struct.pack(">HHIH", ecc, sha256, attributes, len(_POLICY)) + _POLICY
    return head + aes_128_cfb + struct.pack(">HHH", no_scheme, nist_p256, no_kdf) + point


def _create_primary() -> bytes:
    empty_password = struct.pack(">IHBH", _PASSWORD_SESSION, 0, 0, 0)
    empty_sensitive = struct.pack(">HHH", 4, 0, 0)
    template = _ek_template()
    body = (
        struct.pack(">II", _ENDORSEMENT, len(empty_password))
        + empty_password
        + empty_sensitive
        + struct.pack(">H", len(template))
        + template
        + struct.pack(">HI", 0, 0)
    )
    return struct.pack(">HII", _SESSIONS, 10 + len(body), _CREATE_PRIMARY) + body


def _by_platform(code: int, parameters: bytes = b"") -> bytes:
    empty_password = struct.pack(">IHBH", _PASSWORD_SESSION, 0, 0, 0)
    body = struct.pack(">II", _PLATFORM, len(empty_password)) + empty_password + parameters
    return struct.pack(">HII", _SESSIONS, 10 + len(body), code) + body


def _clear_control() -> bytes:
    return _by_platform(0x00000127, b"\0")


def _clear() -> bytes:
    """A password that the guest has set on the endorsement hierarchy goes with it; the seed, and so the key, stays."""
    return _by_platform(0x00000126)


def read_identity(container: bytes, *, swtpm: str, scratch: Path) -> str:
    """The identity of the TPM whose state volume holds `container`: hex SHA-256 of its ECC endorsement key's public
    area.

    Answering also proves that this node's swtpm can read the state. Raises StepFailed when it cannot; the original is
    not touched.
    """
    if parse(container).is_blank:
        raise StepFailed("tpm_state_blank", "a blank state belongs to nobody", "swtpm would quietly make a new TPM.")
    forget_scratch(scratch)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=scratch))
    try:
        copy = folder / "state"
        copy.touch(mode=0o600)
        copy.write_bytes(container)
        return _ask(copy, swtpm)
    finally:
        _forget(folder)


def forget_scratch(scratch: Path) -> None:
    """Destroy what a worker that was killed while it asked has left here: a whole TPM. Safe to call twice."""
    for folder in scratch.glob(f"{_SCRATCH}*"):
        _forget(folder)


def _forget(folder: Path) -> None:
    destroy_image(folder / "state")
    shutil.rmtree(folder, ignore_errors=True)


def _ask(copy: Path, swtpm: str) -> str:
    ours, theirs = socket.socketpair()
    log = copy.with_name("log")
    with ours, log.open("wb") as output:
        with theirs:
            process = _start(swtpm, copy, theirs.fileno(), output)
        try:
            ours.settimeout(_ANSWER_S)
            for command in (_clear_control(), _clear(), _create_primary()):
                ours.sendall(command)
                answer = ours.recv(4096)
        except OSError as error:
            raise _unreadable(log.read_text(errors="replace") or str(error)) from error
        finally:
            process.kill()
            process.wait()
    return _public_digest(answer, log.read_text(errors="replace"))


def _start(swtpm: str, copy: Path, channel: int, output: BinaryIO) -> subprocess.Popen[bytes]:
    words = [swtpm, "socket", "--tpm2", "--tpmstate", f"backend-uri={state_uri(copy)}"]
    words += ["--fd", str(channel), "--flags", "not-need-init,startup-clear"]
    try:
        return subprocess.Popen(words, pass_fds=[channel], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    except OSError as error:
        raise StepFailed("swtpm_missing", f"{swtpm} cannot be started: {error.strerror}", "Install swtpm.") from error


def _public_digest(answer: bytes, said: str) -> str:
    """Header (10 bytes), object handle (4), parameter size (4), then the public area with its length before it."""
    if len(answer) < 20 or struct.unpack_from(">I", answer, 6)[0] != 0:
        code = answer[6:10].hex() if len(answer) >= 10 else "no answer"
        raise _unreadable(f"TPM2_CreatePrimary: {code} {said}")
    (size,) = struct.unpack_from(">H", answer, 18)
    return hashlib.sha256(answer[20 : 20 + size]).hexdigest()


def _unreadable(said: str) -> StepFailed:
    return StepFailed(
        "tpm_state_not_accepted",
        f"swtpm cannot use this TPM state: {' '.join(said.split())[-300:]}",
        "Was it written by a newer libtpms? Compare `haulier node show` of both nodes.",
    )
