"""The usual cluster: Redis or Valkey, as a single server, behind Sentinel, or as a Cluster.

What it adds to the port: one script per operation, which the server runs as one step; its own clock; one connection
for all that a process writes at the same moment. What it cannot do: keep more than the server keeps. A server that
fails over to a replica that was behind, or that did not sync its log, loses accepted writes and may grant an epoch
again; the token still keeps two owners from writing (G2). ``RedisStore.weakened`` says which promises that touches.
"""

from tenure.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
