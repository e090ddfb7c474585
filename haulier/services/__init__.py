"""Use-cases over the database: they read rows, ask the planner, write rows, and say which messages to send.

They never touch a VM.
"""
