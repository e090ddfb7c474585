"""Settings: every variable, the file, who wins, and what is said of a bad one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haulier.errors import Refused
from haulier.settings import NAME, Settings, load_settings

SECRET = "s" * 32


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own settings."""
    for name in [name for name in os.environ if name.startswith("HAULIER_")]:
        monkeypatch.delenv(name)


def refusal(act: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        act()
    assert "\n" not in caught.value.problem.message
    assert caught.value.problem.hint
    return caught.value


VARIABLES: dict[str, tuple[str, Any]] = {
    "state": ("/srv/haulier", Path("/srv/haulier")),
    "database_url": ("postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
    "broker_url": ("redis://h:1/0", "redis://h:1/0"),
    "node": ("alpha", "alpha"),
    "secret_file": ("/etc/secret", Path("/etc/secret")),
    "accel": ("kvm", "kvm"),
    "qemu": ("/opt/qemu", "/opt/qemu"),
    "swtpm": ("/opt/swtpm", "/opt/swtpm"),
    "address": ("10.0.0.1", "10.0.0.1"),
    "network": ("isolated", "isolated"),
    "ports": ("5000-5009", "5000-5009"),
    "tls": ("false", False),
    "max_bandwidth_bytes_per_s": ("1000", 1000),
    "downtime_limit_ms": ("500", 500),
    "migration_timeout_s": ("3600", 3600.0),
    "stall_timeout_s": ("0", 0.0),
    "max_running": ("20", 20),
    "bandwidth_out_bytes_per_s": ("1048576", 1 << 20),
    "bandwidth_in_bytes_per_s": ("2000000", 2_000_000),
    "max_out": ("0", 0),
    "max_in": ("3", 3),
    "max_pair": ("2", 2),
    "max_moves": ("8", 8),
    "max_moves_out": ("1", 1),
    "max_moves_in": ("0", 0),
    "placement_ram": ("used", "used"),
    "cpu_overcommit": ("0", 0.0),
    "window_lead_s": ("60", 60.0),
    "placement_time_s": ("0.5", 0.5),
    "retry_at_most_s": ("60", 60.0),
    "web_address": ("::1", "::1"),
    "web_port": ("0", 0),
    "web_certificate": ("/etc/web.crt", Path("/etc/web.crt")),
    "web_key": ("/etc/web.key", Path("/etc/web.key")),
    "heartbeat_s": ("1.5", 1.5),
    "node_silent_after_s": ("9", 9.0),
    "lease_s": ("20", 20.0),
    "pause_lease_s": ("2", 2.0),
    "reconcile_s": ("6", 6.0),
    "tpm_quarantine_s": ("0", 0.0),
}


def test_no_setting_is_forgotten_here() -> None:
    assert set(VARIABLES) == set(Settings.model_fields)


@pytest.mark.parametrize("name", VARIABLES)
def test_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text, value = VARIABLES[name]
    assert getattr(load_settings(), name) != value
    monkeypatch.setenv(f"HAULIER_{name.upper()}", text)
    assert getattr(load_settings(), name) == value


BAD = {
    "accel": "hvf",
    "node": "../etc",
    "network": "macvtap",
    "tls": "perhaps",
    "max_bandwidth_bytes_per_s": "-1",
    "bandwidth_out_bytes_per_s": "-1",
    "bandwidth_in_bytes_per_s": "1048575",
    "downtime_limit_ms": "0",
    "heartbeat_s": "0",
    "node_silent_after_s": "soon",
    "web_port": "65536",
    "lease_s": "-1",
    "pause_lease_s": "0",
    "reconcile_s": "0",
    "tpm_quarantine_s": "-1",
}
BAD_PORTS = ["", "5000", "5000-", "-5000", "5009-5000", "0-10", "5000-65536", "a-b", "5000-5001-5002", "²-5"]


@pytest.mark.parametrize(("name", "text"), [*BAD.items(), *(("ports", text) for text in BAD_PORTS)])
def test_bad_value_names_the_variable(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"HAULIER_{name.upper()}", text)
    error = refusal(load_settings)
    assert error.code == "bad_setting"
    assert f"HAULIER_{name.upper()}" in error.problem.hint


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    chosen = load_settings()
    assert chosen.state == tmp_path / ".local/state/haulier"
    assert chosen.database == f"sqlite:///{chosen.state}/haulier.db"
    assert chosen.broker == f"redis+socket://{chosen.sockets}/broker.sock"
    assert (chosen.port_first, chosen.port_last, chosen.accel, chosen.tls) == (61000, 61999, "auto", True)


def test_state_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Settings(state=Path("here")).state == tmp_path / "here"
    assert Settings(state=Path("~/there")).state == Path("/home/somebody/there")


def test_given_addresses_win_over_the_local_stack() -> None:
    chosen = Settings(database_url="postgresql+psycopg://h/d", broker_url="redis://h")
    assert (chosen.database, chosen.broker) == ("postgresql+psycopg://h/d", "redis://h")


@pytest.mark.parametrize("length", [5, 60, 61, 200])
def test_sockets_lie_in_a_short_folder(length: int) -> None:
    chosen = Settings(state=Path("/" + "s" * (length - 1)))
    assert len(str(chosen.sockets)) <= 64
    assert chosen.sockets == Settings(state=chosen.state).sockets
    assert chosen.sockets != Settings(state=chosen.state / "x").sockets


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "haulier.toml"
    monkeypatch.setenv("HAULIER_CONFIG", str(path))
    return path


def test_file(config: Path) -> None:
    config.write_text('node = "beta"\ntls = false\ndowntime_limit_ms = 700\nstate = "/srv/h"\n')
    chosen = load_settings()
    assert (chosen.node, chosen.tls, chosen.downtime_limit_ms, chosen.state) == ("beta", False, 700, Path("/srv/h"))


def test_environment_wins_over_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('node = "beta"\nports = "1-2"\n')
    monkeypatch.setenv("HAULIER_NODE", "alpha")
    assert (load_settings().node, load_settings().ports) == ("alpha", "1-2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('accel = "hvf"\n', "accel"),
        ("nodes = 1\n", "nodes"),
        ("node = \n", "HAULIER_CONFIG"),
        ("\xff\xfe", "HAULIER_CONFIG"),
        (None, "HAULIER_CONFIG"),
    ],
)
def test_bad_file(config: Path, text: str | None, says: str) -> None:
    """A file that is named and not there is a mistake, too."""
    if text is not None:
        config.write_bytes(text.encode("latin-1"))
    error = refusal(load_settings)
    assert error.code == "bad_setting"
    assert says in error.problem.message


def test_folder_as_file(config: Path) -> None:
    config.mkdir()
    assert refusal(load_settings).code == "bad_setting"


# -- the secret -------------------------------------------------------------------------------------------------------


def secret(path: Path, content: str = SECRET, mode: int = 0o600) -> Settings:
    path.write_text(content)
    path.chmod(mode)
    return Settings(secret_file=path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_secret(tmp_path: Path, mode: int) -> None:
    assert secret(tmp_path / "secret", f"{SECRET}\n", mode).cluster_secret == SECRET.encode()


def test_secret_lies_in_the_state_folder(tmp_path: Path) -> None:
    secret(tmp_path / "secret")
    assert Settings(state=tmp_path).cluster_secret == SECRET.encode()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o601])
def test_secret_that_others_can_read(tmp_path: Path, mode: int) -> None:
    error = refusal(lambda: secret(tmp_path / "secret", mode=mode).cluster_secret)
    assert (error.code, error.problem.hint) == ("secret_open", f"chmod 600 {tmp_path}/secret")


@pytest.mark.parametrize("content", ["", "s" * 31, "s" * 31 + "\n" * 9])
def test_secret_that_is_too_short(tmp_path: Path, content: str) -> None:
    error = refusal(lambda: secret(tmp_path / "secret", content).cluster_secret)
    assert error.code == "secret_short"
    assert "sss" not in error.problem.message


def test_secret_that_is_missing(tmp_path: Path) -> None:
    assert refusal(lambda: Settings(state=tmp_path).cluster_secret).code == "secret_missing"
    assert refusal(lambda: Settings(secret_file=tmp_path).cluster_secret).code == "secret_missing"


def test_secret_is_not_part_of_the_settings_words(tmp_path: Path) -> None:
    chosen = secret(tmp_path / "secret")
    assert chosen.cluster_secret
    assert SECRET not in f"{chosen!r} {chosen}"
    assert SECRET not in str(chosen.model_dump())


@pytest.mark.parametrize("name", ["a", "web-1.example_x", "9", "a" * 63])
def test_name(name: str) -> None:
    assert NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "_x", "a/b", "a b", "a\n", "ä", "a" * 64, "a\0"])
def test_no_name(name: str) -> None:
    assert not NAME.fullmatch(name)
