"""The paths of the OpenHands SDK's own server, for its ``RemoteConversation``, beside Tenure's API: any node, from the journal.

``conversations`` create, show, change and delete; ``commands`` hand what a client asks to the journal; ``events`` read it;
``sockets`` follow it; ``workspace`` reaches the runtime, wherever it is; ``refusals`` says what is not offered, and what to do
instead. Nothing here needs an owner but the last but one. The meaning of a journal is in :mod:`tenure.loops.openhands`.
"""

from tenure.server.openhands.routes import mount, speaks_openhands

__all__ = ["mount", "speaks_openhands"]
