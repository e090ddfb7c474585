"""Proxmox VE's storage.cfg."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.definition import StorageSpec, read_storage_cfg
from haulier.definition.storage import StorageKind, StoragePlace
from haulier.errors import Refused

WHOLE = """\
# storages
dir: local
\tpath /var/lib/vz
\tcontent images,iso

dir: both
    path /mnt/both
    nodes alpha, beta
    shared 1
    disable

nfs: store
\tserver 10.0.0.1
\texport /srv

lvmthin: thin
\tvgname pve
\tthinpool data
"""


def test_whole_file() -> None:
    storages = read_storage_cfg(WHOLE, source="storage.cfg")
    assert storages == (
        StorageSpec("local", "dir", "/var/lib/vz", options={"content": "images,iso"}),
        StorageSpec("both", "dir", "/mnt/both", True, ("alpha", "beta"), {"disable": "1"}),
        StorageSpec("store", "nfs", "/mnt/pve/store", True, (), {"server": "10.0.0.1", "export": "/srv"}),
        StorageSpec("thin", "lvmthin", None, False, (), {"vgname": "pve", "thinpool": "data"}),
    )
    assert storages[0].content == ("images", "iso")
    assert [storage.is_disabled for storage in storages] == [False, True, False, False]


def test_empty_file_holds_no_storage() -> None:
    assert read_storage_cfg("# nothing\n", source="s") == ()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Dear Sir,\n", "not_a_config"),
        ("\tpath /x\n", "not_a_config"),
        ("dir: a\n", "invalid_value"),
        ("dir: a\n path x\n", "invalid_value"),
        ("dir: a\n path /x/../y\n", "invalid_value"),
        ("dir: a/b\n path /x\n", "invalid_value"),
        ("dir: a\n path /x\ndir: a\n path /y\n", "duplicate_storage"),
        ("dir: a\n path /x\nnonsense\n", "invalid_line"),
        ("dir: a\n path /x\0\n", "invalid_value"),
    ],
)
def test_refusals(text: str, code: str) -> None:
    with pytest.raises(Refused) as caught:
        read_storage_cfg(text, source="storage.cfg")
    assert caught.value.code == code
    assert caught.value.problem.message.startswith("storage.cfg:")


@given(st.text() | st.text(alphabet="dir: a\n\tpath/xnodes1,\0#"))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_storage_cfg(text, source="s")
    except Refused as error:
        assert all("\n" not in problem.message for problem in error.problems)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("dir: x\n\tpath /srv/x/\n", StoragePlace(StorageKind.FOLDER, Path("/srv/x/images"))),
        ("nfs: x\n\tserver filer\n\texport /e\n", StoragePlace(StorageKind.MOUNT, Path("/mnt/pve/x/images"))),
        ("lvm: x\n\tvgname pve-1\n", StoragePlace(StorageKind.LVM, Path("/dev/pve-1"))),
        ("lvmthin: x\n\tvgname pve\n\tthinpool data\n", StoragePlace(StorageKind.LVMTHIN, Path("/dev/pve"), "data")),
        ("block: x\n\tpath /dev/disk/haulier\n", StoragePlace(StorageKind.BLOCK, Path("/dev/disk/haulier"))),
    ],
)
def test_where_the_volumes_are(text: str, place: StoragePlace) -> None:
    (spec,) = read_storage_cfg(text, source="storage.cfg")
    assert spec.is_usable
    assert spec.place() == place


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("zfspool: x\n\tpool tank\n", "storage_kind"),
        ("lvm: x\n\tvgname pve\n\tshared 1\n", "storage_kind"),
        ("block: x\n\tpath /dev/disk\n\tshared yes\n", "storage_kind"),
        ("lvm: x\n", "invalid_value"),
        ("lvm: x\n\tvgname ../etc\n", "invalid_value"),
        ("lvm: x\n\tvgname ..\n", "invalid_value"),
        ("lvm: x\n\tvgname -x\n", "invalid_value"),
        ("lvmthin: x\n\tvgname pve\n", "invalid_value"),
        ("lvmthin: x\n\tvgname pve\n\tthinpool a/b\n", "invalid_value"),
        ("block: x\n", "invalid_value"),
    ],
)
def test_places_that_are_none(text: str, code: str) -> None:
    (spec,) = read_storage_cfg(text, source="storage.cfg")
    with pytest.raises(Refused) as caught:
        spec.place()
    assert caught.value.code == code
