"""swtpm's options: a state volume is the file that its path says, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from haulier.errors import Refused
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.swtpm import SwtpmFacts, manufacture, start_swtpm

FACTS = SwtpmFacts("false", "0.7.1", None, frozenset())


def test_comma_begins_no_other_option(tmp_path: Path) -> None:
    place, volume = VmPlace(tmp_path / "run", tmp_path / "logs"), tmp_path / "a,mode=0666"
    place.prepare()
    with pytest.raises(Refused, match="tpm_path_with_comma"):
        manufacture(volume, work=tmp_path)
    with pytest.raises(Refused, match="tpm_path_with_comma"):
        start_swtpm(place, volume, facts=FACTS)
    assert place.swtpm.pid() is None
