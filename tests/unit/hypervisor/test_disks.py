"""A TPM's state is no disk: there is no way to say that it is to be mirrored."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from haulier.definition import Role
from haulier.errors import Refused
from haulier.hypervisor.disks import Mirror, require_mirrorable, serve_disks
from haulier.hypervisor.nbd import NbdServer

SERVER = NbdServer("127.0.0.1", 1)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.TPMSTATE])
def test_other_volumes_may(role: Role) -> None:
    require_mirrorable("dev0", role)
    assert Mirror("dev0", role, SERVER, tls=True).job == "haulier-dev0"


def test_tpmstate_may_not() -> None:
    with pytest.raises(Refused, match="tpmstate_never_mirrored"):
        Mirror("tpmstate0", "tpmstate", SERVER, tls=True)


def test_tpmstate_is_not_served_either() -> None:
    """It is refused before anything is said to QEMU: there is no QEMU here to say it to."""
    disks = [("scsi0", "disk"), ("tpmstate0", "tpmstate")]
    with pytest.raises(Refused, match="tpmstate_never_mirrored"):
        asyncio.run(serve_disks(cast(Any, None), disks, server=SERVER, tls=True))
