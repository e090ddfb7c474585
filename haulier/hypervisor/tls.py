"""The key of one migration: derived on both nodes from the cluster secret and the migration's name, sent nowhere.

QEMU, its storage daemon and qemu-img read it from a file `keys.psk` in a folder that only we can open; the folder goes
with the migration. TLS with a pre-shared key needs no certificates.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

OBJECT_ID = "haulier-tls"
USER = "haulier"
# The prime ffdhe2048 of RFC 7919, for servers. It is no secret. A QEMU or storage daemon (7.2 and 10.0 tried) that does
# not find such a file looks for a prime of its own first: half a second to some seconds of its main loop's time.
_DH_PARAMETERS: Final = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


def greeting_key(cluster_secret: bytes, migration_key: str) -> bytes:
    """The key of the workers' greeting (greeting.py). Another one than QEMU's; it is in no file."""
    return _derive(cluster_secret, migration_key, b"haulier greeting v1")


def _derive(cluster_secret: bytes, migration_key: str, salt: bytes) -> bytes:
    return HKDF(SHA256(), length=32, salt=salt, info=migration_key.encode()).derive(cluster_secret)


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """A folder with one migration's key, as the programs of QEMU want it. Never print its contents."""

    path: Path

    def write(self, cluster_secret: bytes, migration_key: str) -> None:
        """Derive the key and write the files, 0600 in a 0700 folder. Safe to call twice: the key is the same."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = _derive(cluster_secret, migration_key, b"haulier migration v1")
        self._write("keys.psk", f"{USER}:{key.hex()}\n")
        self._write("dh-params.pem", _DH_PARAMETERS)

    def _write(self, name: str, text: str) -> None:
        handle = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text)

    def remove(self) -> None:
        """Remove the folder. Safe to call twice."""
        shutil.rmtree(self.path, ignore_errors=True)

    def as_properties(self, *, server: bool) -> dict[str, object]:
        """The object's properties for QMP's `object-add`."""
        side = {"endpoint": "server"} if server else {"endpoint": "client", "username": USER}
        return {"qom-type": "tls-creds-psk", "id": OBJECT_ID, "dir": str(self.path), "verify-peer": True, **side}

    def as_option(self, *, server: bool) -> str:
        """The same for a command line's `--object`."""
        side = "endpoint=server" if server else f"endpoint=client,username={USER}"
        return f"tls-creds-psk,id={OBJECT_ID},dir={self.path},verify-peer=on,{side}"
