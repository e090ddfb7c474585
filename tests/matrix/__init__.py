"""The fault matrix: every fault at every point of a migration, on real parts, with the same question at the end."""
