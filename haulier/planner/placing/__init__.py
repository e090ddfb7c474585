"""Which guest goes to which host: a start that is always found, a search that mends it, and why. Pure."""
