"""``python -m tenure.cli.witness``: the composition root of the witness. Started by a node, never by hand."""

from __future__ import annotations

from tenure.node.witness import watch
from tenure.stores import open_store

if __name__ == "__main__":
    watch(open_store)
