"""Read a definition from a file: the one place of this package that touches a disk."""

from __future__ import annotations

import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Final

from haulier.definition.model import VmDefinition
from haulier.definition.proxmox import read_proxmox
from haulier.definition.storage_cfg import StorageSpec, read_storage_cfg
from haulier.definition.toml_file import looks_like_toml, read_toml
from haulier.errors import Refused

_HINT: Final = "give a Proxmox VE <vmid>.conf or a TOML definition"


def read_definition(path: Path) -> VmDefinition:
    """Read a VM's definition from a `.conf` or a `.toml`; any other file is told by its content.

    A name such as `100.conf` gives the VM its number. Raises `Refused` for everything that can be wrong with the file.
    """
    text = read_text(path)
    is_toml = {".toml": True, ".conf": False}.get(path.suffix.lower(), looks_like_toml(text))
    if is_toml:
        return read_toml(text, source=str(path))
    definition = read_proxmox(text, source=str(path))
    vmid = re.fullmatch(r"([1-9][0-9]{0,8})\.conf", path.name)
    return replace(definition, vmid=int(vmid.group(1))) if vmid else definition


def read_storages(path: Path) -> tuple[StorageSpec, ...]:
    """Read a `storage.cfg`. Raises `Refused` for everything that can be wrong with the file."""
    return read_storage_cfg(read_text(path), source=str(path))


def read_text(path: Path, *, what: str = "definition", most_mib: int = 1, hint: str = _HINT) -> str:
    """The text of a file that is to be `what`. Raises `Refused` for one that is none, or larger."""
    try:
        # A FIFO would make open() wait for ever, so the kind is asked for first.
        if not stat.S_ISREG(path.stat().st_mode):
            raise Refused("not_a_file", f"{path}: this is no regular file", hint)
        with path.open("rb") as file:
            data = file.read((most_mib << 20) + 1)
    except FileNotFoundError as error:
        raise Refused("file_not_found", f"{path}: there is no such file", "check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise Refused("file_unreadable", f"{path}: cannot be read: {reason}", "check the path and its mode") from error
    if len(data) > most_mib << 20:
        raise Refused("file_too_large", f"{path}: larger than {most_mib} MiB, so it is no {what}", hint)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused("not_a_config", f"{path}: not a text in UTF-8 (byte {error.start})", hint) from error
