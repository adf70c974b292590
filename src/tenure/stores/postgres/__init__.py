"""The database that a team operates already: PostgreSQL 15 and newer.

What it adds to the port: each operation is one statement that runs where the rows are, under their locks; what a process
asks at the same moment travels in one transaction; the server's clock; several nodes may migrate at once. What it cannot
do: keep more than the server keeps. A standby that is promoted while it lags has lost accepted writes and may grant an epoch
again; the token still keeps two owners from writing (G2). ``PostgresStore.weakened`` says which promises that touches.
"""

from tenure.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
