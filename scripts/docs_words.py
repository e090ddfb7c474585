"""Sentences of the generated pages that the code does not hold: settings, keys of files, moments of the pause.

scripts/docs.py refuses to write when one is missing, or describes something that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping

MARKS: Mapping[str, str] = {
    "paused": "QEMU on the source has stopped the guest",
    "mirrors_finished": "every mirror has brought the last writes over and let go",
    "stream_done": "QEMU on the source says `completed`: the target has loaded RAM and devices and said so",
    "proved": "the target has read its TPM state and it is the source's; without a TPM there is nothing to compare",
    "committed": "the one transaction that gives the guest to the target is in the database",
    "resumed": "QEMU on the target lets the guest run",
}

SETTINGS: Mapping[str, str] = {
    "state": "Folder of the local stack: database, broker, logs, images, sockets. On a node of its own it holds that "
    "node's images, quarantine and logs.",
    "database_url": "SQLAlchemy URL of the database, for example `postgresql+psycopg://haulier@db/haulier`. Not set: "
    "SQLite in the state folder.",
    "broker_url": "URL of the Redis or Valkey, for example `redis://:PASSWORD@broker:6379/0`. Not set: the local "
    "stack's own, on a socket.",
    "node": "Name of the node whose worker this process is. A process without it belongs to no node.",
    "secret_file": "File with the cluster secret, 0600, at least 32 characters, the same on every node. Not set: "
    "`secret` in the state folder.",
    "accel": "How guests run. `auto` takes KVM if a guest really runs with it, else TCG.",
    "qemu": "The QEMU program.",
    "swtpm": "The swtpm program.",
    "address": "What other nodes connect to. `haulier up` sets 127.0.0.1 for the nodes of one machine.",
    "network": "`bridge` connects each card to the bridge that its VM names, `isolated` to nothing.",
    "ports": "Ports that migrations may listen on at this node, both ends included.",
    "tls": "Whether the stream, the mirrors and the copies are encrypted.",
    "max_bandwidth_bytes_per_s": "Limit for the stream of RAM, for each mirror, and for each copy of a "
    "volume, in bytes per second; 0 is none. The TPM's few bytes do not count, nor what crosses while a guest is "
    "paused, or is written while its mirrors are ready.",
    "bandwidth_out_bytes_per_s": "The budget that all that leaves one node shares, in bytes per second, unless "
    "`haulier node set NODE --bandwidth-out` says otherwise; 0 is none (docs/queue.md).",
    "bandwidth_in_bytes_per_s": "The same for all that goes to one node, unless `--bandwidth-in` says otherwise.",
    "downtime_limit_ms": "The pause that QEMU aims at, in milliseconds. It is doubled step by step, up to 8 s (with "
    "`--may-pause` without end), for a guest that dirties RAM faster than it can be sent.",
    "migration_timeout_s": "How long a try of a migration may take until the hand-over, in seconds, unless "
    "`haulier migrate --timeout-s` says otherwise; then it is undone. 0 is no limit.",
    "stall_timeout_s": "How long a phase may show no progress, in seconds, unless `haulier migrate --stall-timeout-s` "
    "says otherwise; then the migration is undone. 0 is no limit. While the guest is paused, it is "
    "HAULIER_PAUSE_LEASE_S instead.",
    "max_running": "How many migrations may be at work at once in the whole cluster; others wait (docs/queue.md). 0 "
    "begins none. `haulier queue set` changes it.",
    "max_out": "How many of them may leave one node, unless `haulier node set NODE --max-out` says otherwise.",
    "max_in": "How many may go to one node, unless `haulier node set NODE --max-in` says otherwise.",
    "max_pair": "How many may go from one node to one other, unless `haulier queue set --pair` says otherwise.",
    "max_moves": "How many guests may have their RAM moved at once in the whole cluster; others wait, prepared. "
    "`haulier queue set` changes it.",
    "max_moves_out": "How many of them on one source, unless `haulier node set NODE --max-moves-out` says otherwise.",
    "max_moves_in": "How many of them to one target, unless `haulier node set NODE --max-moves-in` says otherwise.",
    "retry_at_most_s": "The longest delay before a migration that failed is tried again, in seconds; the first is 10, "
    "and it doubles.",
    "placement_ram": "What RAM is counted by when a place is chosen: `configured` counts what guests may have, and "
    "what is free as it was measured; `used` only what is free, and a guest that moves as what it was seen to use and "
    "an eighth more. The same on all nodes.",
    "cpu_overcommit": "How many virtual CPUs a node may have for each of its own when a place is chosen; 0 is no "
    "limit.",
    "window_lead_s": "For how long before its maintenance window a node is given no VMs when a place is chosen, in "
    "seconds.",
    "placement_time_s": "For how long places are searched for at most, in seconds, up to 10; a first answer is there "
    "at once.",
    "web_address": "Where the HTTP API listens (docs/api.md).",
    "web_port": "Its port; 0 takes any that is free, and `haulier up` says which. Not set: 8420, or any if that is "
    "taken.",
    "web_certificate": "File with its certificate, and those it is signed by. Not set: it speaks plain HTTP, which is "
    "for this machine, or for a reverse proxy on it.",
    "web_key": "File with the key of that certificate.",
    "heartbeat_s": "How often a node's worker says that it lives, in seconds.",
    "node_silent_after_s": "A node that was not heard for so many seconds is silent: it takes no new "
    "work, and a migration that waits for it before the hand-over is undone.",
    "lease_s": "For how many seconds a step is its worker's; it is renewed while the work goes on.",
    "pause_lease_s": "The same while a guest is paused in its switch-over: for so long it may stand still for a worker "
    "that has died.",
    "reconcile_s": "How often lost messages and dead workers are looked for, in seconds.",
    "tpm_quarantine_s": "For how many seconds the TPM state that a VM left behind is kept before it is destroyed, and "
    "a volume that a migration left although it is over (docs/recovery.md).",
}

CONF: Mapping[str, str] = {
    "name": "The VM's name, unless `--name` gives another. Up to 128 letters, digits, dots, dashes, underscores.",
    "memory": "RAM in MiB, 16 or more; 512 if the line is not there. Of `current=…` the number is taken.",
    "cores": "Cores per socket, 1 to 1024; 1.",
    "sockets": "Sockets, 1 to 64; 1.",
    "cpu": "CPU model with its flags. Proxmox VE's own names (`x86-64-v2-AES` and the like) are translated. Without "
    "the line: `kvm64` with KVM, `qemu64` with TCG. What has no place in QEMU's `-cpu` is kept as `cpu.<key>`.",
    "machine": "`pc`, `q35`, or a versioned type; without the line `pc`. The first start pins the versioned type. "
    "Proxmox VE's `+pve…` and `.pxe` are dropped, other settings are kept as `machine.<key>`.",
    "bios": "`seabios` (as without the line) or `ovmf`.",
    "scsihw": "SCSI controller; without the line `lsi`, as Proxmox VE has it.",
    "args": "Further words for QEMU's command line, split as a shell would. Needs a permission.",
    "tags": "Words, separated by semicolons, commas or spaces.",
    "arch": "Only `x86_64`; anything else is refused.",
    "smbios1": "Of it `uuid=`, the UUID the guest sees; without one it is made up once and kept. The rest is kept.",
    "boot": "Boot order, `order=scsi0;net0` or the old letters.",
    "bootdisk": "The disk that the old letter `c` means.",
    "efidisk0": "The volume with UEFI's variables, 528 KiB (128 KiB with `efitype=2m`).",
    "tpmstate0": "The TPM's state volume: always raw, 4 MiB. `version=v2.0` is meant when it is not said; `v1.2` is "
    "read, and refused at the start.",
    "vmstate": "A volume with saved RAM; copied.",
    "scsiN": "A disk, CD-ROM or cloud-init drive, scsi0 to scsi30.",
    "virtioN": "A disk, virtio0 to virtio15.",
    "sataN": "A disk, CD-ROM or cloud-init drive, sata0 to sata5.",
    "ideN": "A disk, CD-ROM or cloud-init drive, ide0 to ide3. `cdrom:` means ide2.",
    "netN": "A network card, net0 to net31: `virtio=MAC,bridge=vmbr0,mtu=…`. A MAC that is not given is made up once "
    "and kept.",
    "serialN": "A serial port, serial0 to serial3: `socket`, or a device of the host. What the guest prints on a "
    "socket port is also appended to `serialN.log`.",
    "unusedN": "A volume that no device has; copied.",
}

_STORAGE = "The storage the volume lies on."
_NAME = "The file's name in the storage's folder; Haulier names it if it is not given."

TOML_VM: Mapping[str, str] = {
    "name": "The VM's name, unless `--name` gives another.",
    "vmid": "A number, kept for its owner.",
    "memory_mib": "RAM in MiB, 16 or more.",
    "cores": "Cores per socket, 1 to 1024.",
    "sockets": "Sockets, 1 to 64.",
    "cpu": "CPU model of QEMU. Not given: `kvm64` with KVM, `qemu64` with TCG.",
    "machine": "`pc`, `q35`, or a versioned type. Not given: `pc`. The first start pins the versioned type.",
    "firmware": "`seabios` or `ovmf`.",
    "scsi_controller": "SCSI controller, by Proxmox VE's or QEMU's name.",
    "serial": "Up to four serial ports, each `socket` or a device of the host.",
    "args": "Further words for QEMU's command line: a list, or a text split as a shell would. Needs a permission.",
    "boot": 'Devices in boot order, for example `["virtio0", "net0"]`.',
    "uuid": "The UUID the guest sees. Not given: made up once and kept.",
    "tags": "A list of words.",
    "disk": "Disks, see below.",
    "nic": "Network cards, see below.",
    "tpm": 'A virtual TPM, see below; `tpm = true` takes the usual values, `tpm = "v2.0"` the version.',
    "efi": 'The volume with UEFI\'s variables, see below. With `firmware = "ovmf"` there is one anyway.',
}
TOML_DISK: Mapping[str, str] = {
    "device": "For example `scsi0`. Not given: the next free `virtioN`, for a CD-ROM or cloud-init `sataN`.",
    "role": "`disk`, `cdrom`, `cloudinit` or `unused`.",
    "storage": f"{_STORAGE} Not given: `local`.",
    "name": _NAME,
    "path": "An absolute path of the host, instead of storage and name.",
    "size": '`"4G"` or a number of bytes. Needed for a volume that is to be made.',
    "format": "`raw`, `qcow2` or `vmdk`. Not given: what the file's extension says, else `raw`.",
    "read_only": "Whether the guest may only read it; CD-ROM and cloud-init always are.",
    "serial": "The serial number the guest sees.",
}
TOML_NIC: Mapping[str, str] = {
    "device": "For example `net0`. Not given: by its place in the file.",
    "model": "`virtio`, `e1000`, `rtl8139` and others of QEMU's.",
    "mac": "Its address. Not given: made up once and kept.",
    "bridge": "The bridge of the host it is connected to, where `HAULIER_NETWORK` is `bridge`.",
    "mtu": "The MTU that a virtio card tells its guest, 68 to 65520.",
}
TOML_TPM: Mapping[str, str] = {
    "version": "`v2.0`. `v1.2` is read, and refused at the start.",
    "storage": _STORAGE,
    "name": _NAME,
    "size": 'Size of the state volume in bytes, or as `"4M"`.',
}
TOML_EFI: Mapping[str, str] = {
    "storage": _STORAGE,
    "name": _NAME,
    "size": 'Size of the volume in bytes, or as `"528K"`.',
    "format": "`raw`, `qcow2` or `vmdk`. Not given: what the file's extension says, else `raw`.",
}
