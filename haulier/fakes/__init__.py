"""Two hosts as plain objects: what QEMU, swtpm and a node's files do, without a process, a file or a clock.

They stand for the real parts where those are too slow: ten thousand orders of events need some seconds each with QEMU
and a few milliseconds with these. The product's own code runs on them, with the functions of `calls.CALLS` in the place
of those that reach a real host. Each behaves as docs/architecture.md ("Who may run the guest") and the measurements
behind it say: a stream that fails lets the source's guest run again and asks nobody, `completed` comes after the target
has loaded, a QEMU outlives whoever started it. Nothing here knows rows, phases or workers.

What one does by itself (RAM crosses, a mirror gets ready, a broken connection is noticed) does not happen by itself
here: `FakePair.moves` lists it, and whoever plays decides when.
"""
