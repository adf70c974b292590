"""``tenure doctor``: what there is to fear of a store, what follows from it, and what to do.

The store's package looks at its servers (:meth:`tenure.abc.Store.examine`); here the operations are tried: how long they
take (:mod:`tenure.cli.doctor.latency`), and whether a zombie is refused (:mod:`tenure.cli.doctor.zombie`). It works beside
living nodes: its conversation is for an agent that nobody has, and is deleted.
"""

from tenure.cli.doctor.command import doctor

__all__ = ["doctor"]
