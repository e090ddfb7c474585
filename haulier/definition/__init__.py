"""What a VM is, as its owner describes it: dataclasses, and the readers of the file forms.

Knows no database and no QEMU.
"""

from haulier.definition.files import read_definition, read_storages
from haulier.definition.model import Nic, Role, VmDefinition, VolumeSpec
from haulier.definition.proxmox import read_proxmox
from haulier.definition.storage_cfg import StorageSpec, read_storage_cfg
from haulier.definition.toml_file import read_toml

__all__ = [
    "Nic",
    "Role",
    "StorageSpec",
    "VmDefinition",
    "VolumeSpec",
    "read_definition",
    "read_proxmox",
    "read_storage_cfg",
    "read_storages",
    "read_toml",
]
