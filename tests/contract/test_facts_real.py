"""What a node finds out about its programs."""

from __future__ import annotations

import os
import subprocess

import pytest

from haulier.hypervisor import facts
from haulier.hypervisor.swtpm import SwtpmFacts, swtpm_facts
from tests.contract.real import (
    QEMU,
    SWTPM,
)

pytestmark = pytest.mark.real


def test_facts_of_this_node() -> None:
    found = facts.node_facts(qemu=QEMU, swtpm=SWTPM, accel="tcg")
    assert not {"qemu_problem", "swtpm_problem"} & set(found)
    assert found["accel"] == "tcg"
    assert found["machines"]["pc"].startswith("pc-i440fx-")
    assert found["machines"][found["machines"]["q35"]] == found["machines"]["q35"]
    assert 0 < found["ram_free_bytes"] <= found["ram_bytes"]
    assert found["qemu_version"].count(".") == 2
    assert not found["swtpm_too_old"]


def test_missing_programs_are_facts() -> None:
    found = facts.node_facts(qemu="/nonexistent/qemu", swtpm="/nonexistent/swtpm", accel="auto")
    assert (found["qemu_problem"]["code"], found["swtpm_problem"]["code"]) == ("qemu_missing", "swtpm_missing")
    assert "machines" not in found
    assert found["ram_bytes"] > 0


def test_programs_that_are_something_else() -> None:
    found = facts.node_facts(qemu="true", swtpm="true", accel="tcg")
    assert (found["qemu_problem"]["code"], found["swtpm_problem"]["code"]) == ("qemu_missing", "swtpm_missing")


def test_accelerator_is_one_that_runs() -> None:
    chosen = facts.choose_accel(QEMU, "auto")
    assert chosen in ("kvm", "tcg")
    assert os.access("/dev/kvm", os.R_OK | os.W_OK) or chosen == "tcg"
    assert facts.choose_accel("/nonexistent", "kvm") == "kvm", "what was asked for is not argued with"


@pytest.mark.parametrize(
    ("version", "too_old"), [("0.6.3", True), ("0.7.0", False), ("0.7.1", False), ("0.10.0", False), ("1.0", False)]
)
def test_oldest_swtpm(version: str, *, too_old: bool) -> None:
    assert SwtpmFacts(SWTPM, version, None, frozenset()).is_too_old == too_old


def test_versions_of_swtpm_and_libtpms() -> None:
    found = swtpm_facts(SWTPM)
    said = subprocess.run([SWTPM, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert found.version in said
    assert found.libtpms is None or found.libtpms.startswith("0.")
    assert "tpm-2.0" in found.features
