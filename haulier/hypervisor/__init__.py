"""What touches a hypervisor: QMP, QEMU's process and command line, NBD, swtpm, images. Knows no database, no queue."""
