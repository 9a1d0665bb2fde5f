"""Injects faults into real runs, one after the other, and checks how each run ends: the code of ``fedpfn faults``.

A fault is data (``catalogue``): what happens, to which process or folder, when, and how the run has to end.
``injection`` starts the command in its own processes, lets the fault happen at its moment, waits for the end, and
checks the outcome.
"""
