"""The HTTP face of a node: ``create_app(node)`` for uvicorn, or to be mounted in anybody's ASGI app."""

from tenure.server.app import close_streams, create_app, see_off
from tenure.server.guard import own_hosts
from tenure.server.openhands import speaks_openhands
from tenure.server.wire import Bounds

__all__ = ["Bounds", "close_streams", "create_app", "own_hosts", "see_off", "speaks_openhands"]
