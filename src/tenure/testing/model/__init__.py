"""The protocol, exhaustively: every interleaving of some nodes, one conversation and its store, within bounds.

The store is not modelled: each step of it is an operation of :class:`~tenure.stores.memory.MemoryStore` itself, on a
copy of its disk (:mod:`tenure.testing.model.store`). What a journal means, what a new owner repairs and what a batch
settles are the functions of :mod:`tenure.conversation`. Modelled are the nodes' rules of conduct and the world around
them (:mod:`tenure.testing.model.protocol`): requests that lie under way, copies, lost replies, pauses, crashes, leases
that run out at any moment. Every state is judged; and from every state there must be a way, by fair steps alone, to
one in which nothing is left to do (:mod:`tenure.testing.model.explore`).

``python -m tenure.testing.model`` explores the scenarios with large bounds and prints the table.
"""
