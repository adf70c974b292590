"""``tenure bench``: how fast it is, beside what is possible and beside what others do.

``targets.py`` says what is asked for, ``rows/`` measures it, a module per target, ``running.py`` runs them, ``page.py`` writes
what was found.
"""

from tenure.cli.bench.command import bench

__all__ = ["bench"]
