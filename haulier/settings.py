"""Settings: environment variables `HAULIER_*`, and the same names as keys of the TOML file that `HAULIER_CONFIG` names.

An environment variable wins over the file. The names of contract.md are fixed: users' scripts rely on them.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from haulier.errors import Refused

# A name becomes a queue, a folder and a row; nothing that a shell or a path could read otherwise.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

# A year: who wants to wait longer says 0. A moment that is infinitely far away has no place in a calendar.
LONGEST_S = 31_536_000.0


# What a few dozen can share, and any number that a person could mean, in bytes per second.
LEAST_BUDGET, MOST_BUDGET = 1 << 20, 1 << 50


class Settings(BaseSettings):
    """All settings with their defaults; units stand in the names."""

    model_config = SettingsConfigDict(env_prefix="HAULIER_", extra="forbid")

    state: Path = Field(default_factory=lambda: Path.home() / ".local/state/haulier")
    database_url: str = ""
    broker_url: str = ""
    node: str | None = None
    secret_file: Path | None = None
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    qemu: str = "qemu-system-x86_64"
    swtpm: str = "swtpm"

    address: str = "127.0.0.1"
    network: Literal["bridge", "isolated"] = "bridge"
    ports: str = "61000-61999"

    tls: bool = True
    max_bandwidth_bytes_per_s: int = Field(default=0, ge=0)
    bandwidth_out_bytes_per_s: int = Field(default=0, ge=0)
    bandwidth_in_bytes_per_s: int = Field(default=0, ge=0)
    downtime_limit_ms: int = Field(default=30, ge=1, le=60_000)
    migration_timeout_s: float = Field(default=0.0, ge=0, le=LONGEST_S)
    stall_timeout_s: float = Field(default=120.0, ge=0, le=LONGEST_S)

    max_running: int = Field(default=64, ge=0)
    max_out: int = Field(default=4, ge=0)
    max_in: int = Field(default=4, ge=0)
    max_pair: int = Field(default=64, ge=0)
    max_moves: int = Field(default=16, ge=0)
    max_moves_out: int = Field(default=2, ge=0)
    max_moves_in: int = Field(default=2, ge=0)

    retry_at_most_s: float = Field(default=600.0, gt=0, le=LONGEST_S)

    placement_ram: Literal["configured", "used"] = "configured"
    cpu_overcommit: float = Field(default=8.0, ge=0, le=1000)
    window_lead_s: float = Field(default=3600.0, ge=0, le=LONGEST_S)
    placement_time_s: float = Field(default=5.0, ge=0, le=10)

    web_address: str = "127.0.0.1"
    web_port: int | None = Field(default=None, ge=0, le=65535)
    web_certificate: Path | None = None
    web_key: Path | None = None

    heartbeat_s: float = Field(default=2.0, gt=0)
    node_silent_after_s: float = Field(default=8.0, gt=0)
    lease_s: float = Field(default=15.0, gt=0)
    pause_lease_s: float = Field(default=3.0, gt=0)
    reconcile_s: float = Field(default=5.0, gt=0)
    tpm_quarantine_s: float = Field(default=86_400.0, ge=0)

    @field_validator("state", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("bandwidth_out_bytes_per_s", "bandwidth_in_bytes_per_s")
    @classmethod
    def _budget(cls, value: int) -> int:
        if value and not LEAST_BUDGET <= value <= MOST_BUDGET:
            raise ValueError(f"a budget is 0 for none, or {LEAST_BUDGET} to {MOST_BUDGET} bytes per second")
        return value

    @field_validator("ports")
    @classmethod
    def _port_range(cls, value: str) -> str:
        first, _, last = value.partition("-")
        if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last) < 65536):
            raise ValueError("ports are FIRST-LAST, upwards and below 65536, for example 61000-61999")
        return value

    @field_validator("node")
    @classmethod
    def _node_name(cls, value: str | None) -> str | None:
        if value is not None and not NAME.fullmatch(value):
            raise ValueError("a node's name has letters, digits, dot, dash and underscore only")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the file that HAULIER_CONFIG names."""
        del dotenv_settings, file_secret_settings
        config = os.environ.get("HAULIER_CONFIG")
        file = (TomlConfigSettingsSource(settings_cls, Path(config)),) if config else ()
        return (init_settings, env_settings, *file)

    @property
    def port_first(self) -> int:
        return int(self.ports.partition("-")[0])

    @property
    def port_last(self) -> int:
        return int(self.ports.partition("-")[2])

    @property
    def database(self) -> str:
        """The database's URL; by default SQLite in the state folder."""
        return self.database_url or f"sqlite:///{self.state / 'haulier.db'}"

    @property
    def sockets(self) -> Path:
        """The folder of sockets. A Unix socket's path has room for 107 bytes, so a long state folder is bypassed."""
        if len(os.fsencode(self.state)) <= 60:
            return self.state / "run"
        mark = hashlib.sha256(os.fsencode(self.state)).hexdigest()[:12]
        # It is made 0700 and checked to be ours before anything is put there.
        return Path("/tmp") / f"haulier-{os.getuid()}-{mark}"  # noqa: S108

    @property
    def broker(self) -> str:
        """The broker's URL; by default the local stack's own Redis on a socket."""
        return self.broker_url or f"redis+socket://{self.sockets / 'broker.sock'}"

    @cached_property
    def cluster_secret(self) -> bytes:
        """The secret that all nodes share; keys are derived from it and it goes nowhere.

        Raises Refused when the file is missing, too short, or readable by others.
        """
        path = self.secret_file or self.state / "secret"
        try:
            mode = path.stat().st_mode
            secret = path.read_bytes().strip()
        except OSError as error:
            raise Refused(
                "secret_missing",
                f"the cluster secret {path} cannot be read: {error.strerror}",
                "Run `haulier up` on one machine, or put the same random 32 bytes on every node (HAULIER_SECRET_FILE).",
            ) from error
        if mode & 0o077:
            raise Refused("secret_open", f"the cluster secret {path} can be read by others", f"chmod 600 {path}")
        if len(secret) < 32:
            raise Refused(
                "secret_short", f"the cluster secret {path} has fewer than 32 characters", "Make a longer one."
            )
        return secret


def load_settings() -> Settings:
    """Read the settings. Raises Refused with one line that names the setting."""
    config = os.environ.get("HAULIER_CONFIG")
    if config and not Path(config).is_file():
        raise Refused("bad_setting", f"HAULIER_CONFIG names {config}, which is no file", "Name a TOML file.")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise Refused(
            "bad_setting",
            f"setting {name}: {first['msg'].removeprefix('Value error, ')}",
            f"Look at the environment variable HAULIER_{name.upper()} or at that key of HAULIER_CONFIG.",
        ) from error
    except (OSError, ValueError) as error:
        raise Refused(
            "bad_setting", f"the file HAULIER_CONFIG cannot be read: {error}", "It is a TOML file."
        ) from error
