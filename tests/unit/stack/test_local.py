"""The local stack's beginning: what is said where nothing can be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from haulier.errors import Refused
from haulier.settings import Settings
from haulier.stack.local import prepare


def test_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(Refused, match=r"no_state_folder: .*file"):
        prepare(Settings(state=file))
