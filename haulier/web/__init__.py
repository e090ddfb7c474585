"""The HTTP API: reads what it is sent, calls a use-case, says what comes back. It decides nothing, as the command line.

Each call is a plain function in a thread: use-cases wait for the database. `python -m haulier.web` serves it.
"""
