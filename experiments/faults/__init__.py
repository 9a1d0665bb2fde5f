"""Faults put into real runs, one after the other, and what became of each run: the check behind ``fedpfn faults``.

A fault is data (``catalogue``): what happens, to which process or folder, when, and how the run has to end.
``injection`` starts the command in its own processes, lets the fault happen at its moment, waits, and looks.
"""
