"""The embedded default: one file, one machine, any number of processes.

What it adds to the port: group commit, reads that never wait for a writer, the host's boot time as its clock, and the
refusal to open where SQLite's locks do not hold. What it cannot do: go on while a process that is inside a transaction
is frozen; every other writer then waits until that one is thawed or killed (:func:`lock_holder` names it).
"""

from tenure.stores.sqlite.fitness import lock_holder
from tenure.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore", "lock_holder"]
