"""The probe: a guest that notices what a live migration does to it, and the verifier that reads its story.

`guest/` is a bare-metal program of a few KiB that QEMU starts with `-kernel`. It keeps RAM, disks and the
TPM busy in a way that makes every lost write visible, and prints one line at a time on COM1. `build`
compiles it, `verify` judges the serial logs and the volumes, `linux` builds a Linux guest that prints the
same lines through real drivers. README.md tells the line format.

The folder is for tests, benchmarks and the demo. It imports nothing of Haulier, and Haulier nothing of it.
"""
