"""Where things lie on a node: short socket paths for long names, folders for us alone, and nothing left after clear."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.hypervisor.layout import NodeLayout, VmPlace, listening_socket, node_layout
from haulier.settings import NAME, Settings

NAMES = st.from_regex(NAME, fullmatch=True)
LAYOUT = NodeLayout(Path("/state/nodes/alpha"), Path("/state/run/alpha"))
# sun_path holds 108 bytes, the last of them a zero.
LONGEST_SOCKET = 107


def longest_socket(place: VmPlace) -> int:
    return max(len(os.fsencode(path)) for path in (place.qmp, place.control, place.tpm_socket))


@given(NAMES)
def test_any_name_has_short_sockets(name: str) -> None:
    assert longest_socket(LAYOUT.vm(name)) <= len("/state/run/alpha/") + 12 + len("/control.sock")


def test_many_long_names_that_begin_alike() -> None:
    """Two VMs in one folder would end each other's QEMU."""
    names = [f"customer-database-{number:05}" for number in range(8_000)]
    assert len({LAYOUT.vm(name).run for name in names}) == len(names)


def test_short_form_is_nobodys_name() -> None:
    """Or a VM could be given the name, and the folder, of another one's short form."""
    assert not NAME.fullmatch(LAYOUT.vm("customer-database-001").run.name)


@pytest.mark.parametrize("node", ["alpha", "n" * 63])
@pytest.mark.parametrize("length", [10, 55, 60, 61, 200])
def test_sockets_fit_whatever_the_state_folder_and_the_names(length: int, node: str) -> None:
    """As tasks/surroundings.py makes a node's layout."""
    chosen = Settings(state=Path("/" + "s" * (length - 1)))
    layout = node_layout(chosen.state, chosen.sockets, node)
    assert longest_socket(layout.vm("v" * 63)) <= LONGEST_SOCKET


@given(st.sets(NAMES, min_size=2, max_size=20))
def test_two_vms_share_nothing(names: set[str]) -> None:
    places = [LAYOUT.vm(name) for name in names]
    assert len({place.run for place in places}) == len({place.logs for place in places}) == len(names)


def test_long_names_that_begin_alike_differ() -> None:
    one, two = LAYOUT.vm("customer-database-01"), LAYOUT.vm("customer-database-001")
    assert one.run != two.run
    assert LAYOUT.vm("customer-database-001") == two


def test_short_name_is_kept() -> None:
    assert LAYOUT.vm("web").run == Path("/state/run/alpha/web")
    assert LAYOUT.vm("web").logs == Path("/state/nodes/alpha/vms/web")


def test_tokens_of_a_place_differ() -> None:
    place = LAYOUT.vm("web")
    daemons = (place.qemu, place.swtpm, place.carrier)
    assert len({daemon.token for daemon in daemons}) == len({daemon.log for daemon in daemons}) == 3
    assert all(daemon.token == str(daemon.pid_file) for daemon in daemons)


def test_keys_of_two_migrations_lie_apart() -> None:
    place = LAYOUT.vm("web")
    assert place.keys("1-1") != place.keys("1-2")


# -- with real folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def layout(tmp_path: Path) -> NodeLayout:
    return NodeLayout(tmp_path / "nodes" / "alpha", tmp_path / "run" / "alpha")


def test_folders_are_ours_alone(layout: NodeLayout) -> None:
    for _ in range(2):
        layout.prepare()
        layout.vm("web").prepare()
    place = layout.vm("web")
    for folder in (layout.root, layout.images, layout.quarantine, layout.sockets, place.run, place.logs):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_open_folder_is_closed_again(layout: NodeLayout) -> None:
    place = layout.vm("web")
    place.prepare()
    place.run.chmod(0o755)
    place.prepare()
    assert stat.S_IMODE(place.run.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a folder away")
def test_socket_folder_of_somebody_else(layout: NodeLayout) -> None:
    """In /tmp somebody may have made it before us."""
    layout.prepare()
    os.chown(layout.sockets, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        layout.prepare()


def test_clear_leaves_only_the_logs(layout: NodeLayout) -> None:
    place = layout.vm("web")
    place.prepare()
    (place.keys("1-1")).mkdir()
    (place.keys("1-1") / "keys.psk").write_text("key")
    place.qemu.pid_file.write_text("1")
    (place.run / "link").symlink_to(layout.images)
    place.qemu.log.write_text("words")
    layout.images.mkdir(parents=True)
    with listening_socket(place.control):
        for _ in range(2):
            place.clear()
            assert not place.run.exists()
    assert place.qemu.log.read_text() == "words"
    assert layout.images.is_dir()


def test_socket_is_ours_alone_and_replaces_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listening_socket(path).close()
    with listening_socket(path), socket.socket(socket.AF_UNIX) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client.connect(str(path))


def test_digests_go_with_the_place_and_with_the_worker(tmp_path: Path) -> None:
    layout = NodeLayout(tmp_path / "node", tmp_path / "run")
    for name in ("web1", "web2"):
        place = layout.vm(name)
        place.prepare()
        for path in (place.digests("volume7"), place.qemu.log):
            path.touch()
    layout.vm("web1").clear()
    assert not layout.vm("web1").digests("volume7").exists()
    assert layout.vm("web2").digests("volume7").exists()
    layout.forget_digests()
    assert not layout.vm("web2").digests("volume7").exists()
    assert layout.vm("web1").qemu.log.exists()
