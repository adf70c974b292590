"""How the interpreter collects garbage in a process that is a node."""

from __future__ import annotations

import gc

YOUNG, MIDDLE, FULL = 10_000, 10, 20
"""A full collection walks over all that is resident, while the event loop stands: some 0.1 s per million objects. By default one
comes whenever the heap has grown by a quarter; now also not before two million objects more than the last one left."""


def collect_seldom() -> None:
    """Once the node stands: what was loaded is never walked over again, and what comes is so more seldom.

    Nothing is kept for good: garbage that only a full collection finds waits for it, a few hundred bytes per tenure.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, FULL)
