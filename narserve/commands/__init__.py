"""The commands: one module per command, with a function of the same name.

A new command needs a line in ``MODULES`` of ``narserve/program.py``. ``mountstatus`` is not a command: it shows ``mount --status``.
"""
