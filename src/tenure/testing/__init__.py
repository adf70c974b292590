"""Shipped with Tenure for those who extend it: the suite that every store passes, and clocks that a test moves.

Import the rooms themselves (``tenure.testing.store_suite``, ``tenure.testing.clock``): this page imports none of them.
"""
