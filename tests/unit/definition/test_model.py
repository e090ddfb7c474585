"""The definition's JSON form loses nothing."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from haulier.definition import Nic, Role, VmDefinition, VolumeSpec

TEXT = st.text(max_size=8)
OPTIONS = st.dictionaries(TEXT, TEXT, max_size=3)
VOLUMES = st.builds(VolumeSpec, device=TEXT, role=st.sampled_from(Role), options=OPTIONS)
NICS = st.builds(Nic, device=TEXT, model=TEXT, options=OPTIONS)
DEFINITIONS = st.builds(
    VmDefinition,
    volumes=st.lists(VOLUMES, max_size=3).map(tuple),
    nics=st.lists(NICS, max_size=3).map(tuple),
    args=st.lists(TEXT, max_size=3).map(tuple),
    serials=st.lists(TEXT, max_size=3).map(tuple),
    tags=st.lists(TEXT, max_size=3).map(tuple),
    ignored=OPTIONS,
)


@given(DEFINITIONS)
def test_round_trip_through_json(vm: VmDefinition) -> None:
    assert VmDefinition.from_dict(json.loads(json.dumps(vm.as_dict()))) == vm


def test_empty_drive() -> None:
    assert VolumeSpec("ide2", Role.CDROM).is_empty_drive
    assert not VolumeSpec("ide2", Role.CDROM, name="/dev/cdrom").is_empty_drive
    assert not VolumeSpec("scsi0", Role.DISK, storage="local").is_empty_drive
