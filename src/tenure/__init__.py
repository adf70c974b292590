"""Tenure: one owner per agent conversation, on a cluster, on your own database.

It promises that a conversation has one owner, that only that owner's writes are accepted, that what was accepted is
kept and settled once, and that a dead owner's work goes on elsewhere. It does not promise that a frozen process's
side effects outside the store cannot overlap its successor's for a moment. ``docs/guarantees.md`` has both lists.
"""
