"""The local stack: broker, control worker, beat and node workers as background processes of one machine, under a
supervisor.
"""
