"""``python -m tenure.cli.witness``: the composition root of the witness. Started by a node, never by hand."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # before anything else: they are meant for others
        signal.signal(number, signal.SIG_IGN)

    from tenure.node.witness import watch
    from tenure.stores import open_store

    watch(open_store)
