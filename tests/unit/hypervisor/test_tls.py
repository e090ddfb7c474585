"""The key of one migration: the same on both nodes, another for each migration and secret, for our eyes only."""

from __future__ import annotations

import base64
import hmac
import math
import re
import stat
from fractions import Fraction
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from haulier.hypervisor.tls import OBJECT_ID, USER, KeyFolder

SECRET = b"s" * 32


def key(folder: Path, secret: bytes = SECRET, name: str = "7-1") -> str:
    KeyFolder(folder).write(secret, name)
    return (folder / "keys.psk").read_text()


def test_same_on_both_nodes(tmp_path: Path) -> None:
    assert key(tmp_path / "alpha") == key(tmp_path / "beta")


def test_same_when_written_twice(tmp_path: Path) -> None:
    assert key(tmp_path / "keys") == key(tmp_path / "keys")


def test_form(tmp_path: Path) -> None:
    assert re.fullmatch(rf"{USER}:[0-9a-f]{{64}}\n", key(tmp_path / "keys"))


def test_key_is_that_of_hkdf(tmp_path: Path) -> None:
    """RFC 5869 by hand. Two nodes may run two versions of Haulier: the derivation must not change unnoticed."""
    extracted = hmac.digest(b"haulier migration v1", SECRET, "sha256")
    assert key(tmp_path / "keys") == f"haulier:{hmac.digest(extracted, b'7-1' + bytes([1]), 'sha256').hex()}\n"


@given(secrets=st.sets(st.binary(min_size=32, max_size=40), min_size=2, max_size=2))
def test_another_for_each_secret(tmp_path_factory: object, secrets: set[bytes]) -> None:
    folder = tmp_path_factory.mktemp("keys")  # type: ignore[attr-defined]  # hypothesis forbids narrower fixtures
    assert len({key(folder, secret) for secret in secrets}) == 2


def test_prime_is_that_of_rfc_7919(tmp_path: Path) -> None:
    """Appendix A.1 by hand, in PKCS #3's form: two numbers, the prime and 2."""
    key(tmp_path)
    text = (tmp_path / "dh-params.pem").read_text()
    e_shifted = int(sum(Fraction(1 << 1918, math.factorial(n)) for n in range(400)))
    prime = 2**2048 - 2**1984 + (e_shifted + 560316) * 2**64 - 1
    expected = bytes.fromhex("3082010802820101") + prime.to_bytes(257, "big") + bytes.fromhex("020102")
    assert base64.b64decode("".join(text.splitlines()[1:-1])) == expected


def test_another_for_each_migration_and_attempt(tmp_path: Path) -> None:
    names = ["1-1", "1-2", "2-1", "11-1", "1-11"]
    assert len({key(tmp_path / "keys", name=name) for name in names}) == len(names)


def test_for_our_eyes_only(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "keys"
    key(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "keys.psk").stat().st_mode) == 0o600


def test_neither_secret_nor_key_is_printed(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    written = key(keys.path)
    said = f"{keys} {keys.as_option(server=True)} {keys.as_properties(server=False)}"
    assert written.strip().partition(":")[2] not in said
    assert SECRET.decode() not in said


def test_removed(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    key(keys.path)
    for _ in range(2):
        keys.remove()
        assert not keys.path.exists()


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path)
    assert keys.as_option(server=True) == f"tls-creds-psk,id={OBJECT_ID},dir={tmp_path},verify-peer=on,endpoint=server"
    assert keys.as_option(server=False).endswith(f"endpoint=client,username={USER}")
    assert keys.as_properties(server=False) == {
        "qom-type": "tls-creds-psk", "id": OBJECT_ID, "dir": str(tmp_path), "verify-peer": True,
        "endpoint": "client", "username": USER,
    }  # fmt: skip
    assert "username" not in keys.as_properties(server=True)
