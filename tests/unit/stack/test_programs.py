"""What supervisord is told to run."""

from __future__ import annotations

import configparser
from pathlib import Path

from haulier.settings import Settings
from haulier.stack.programs import supervisor_config


def test_every_program_ends_with_supervisord(tmp_path: Path) -> None:
    config = configparser.RawConfigParser()
    config.read_string(supervisor_config(Settings(state=tmp_path), ["alpha", "beta"], with_broker=True))
    programs = [section for section in config.sections() if section.startswith("program:")]
    assert {name.removeprefix("program:") for name in programs} == {
        "broker", "control", "beat", "web", "node-alpha", "node-beta",
    }  # fmt: skip
    for name in programs:
        assert "setpriv --pdeathsig KILL " in config[name]["command"], name
