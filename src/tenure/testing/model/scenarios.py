"""The scenarios: what is explored in every test run, and what only by ``make model``."""

from __future__ import annotations

from tenure.testing.model.protocol import Scenario

ONE, TWO = ("message",), ("message", "message")
STOP, STOP_LATER = ("message", "stop"), ("message", "message", "stop")


def _of(commands: tuple[str, ...] = ONE, *, nodes: int = 2, **budgets: int) -> Scenario:
    return Scenario(nodes=nodes, commands=commands, budgets=budgets)


def _busy(*, nodes: int = 2, idempotent: bool = False, **budgets: int) -> Scenario:
    """Owners that do not let go when idle."""
    return Scenario(nodes=nodes, budgets=budgets, idempotent=idempotent, passivates=False)


SMALL: dict[str, Scenario] = {
    "nothing goes wrong": _of(),
    "crash, restart": _of(crash=1, restart=1),
    "pause, resume": _of(pause=1, resume=1),
    "lost reply, copy": _of(lose=1, copy=1),
    "provider fails, caller gives up": _of(provider=1, give_up=1, start=0),
    "drain, lost reply": _of(give_up=1, lose=1, start=0),
    "two messages, drain": _of(TWO, give_up=1, start=0),
    "a stop, crash": _of(STOP, crash=1, start=0),
    "delete, copy": _of(delete=1, copy=1, start=0),
    "forced takeover, pause": _busy(force=1, pause=1, resume=1, start=0),
    "idempotent call, crash, restart": Scenario(idempotent=True, budgets={"crash": 1, "restart": 1}),
    "store fails over": _busy(fail_over=1, start=0),
    "three nodes, crash": _of(nodes=3, crash=1, start=0),
    "register apart, crash, restart": Scenario(apart=True, budgets={"crash": 1, "restart": 1}),
}
"""A few ten thousand states in all: for every test run."""

LARGE: dict[str, Scenario] = {
    "pause, resume, lost reply": _of(pause=1, resume=1, lose=1),
    "pause, resume, copy": _of(pause=1, resume=1, copy=1),
    "crash, restart, lost reply, copy": _of(crash=1, restart=1, lose=1, copy=1),
    "spurious expiry, give-up, lost reply": _of(expire=1, give_up=1, lose=1),
    "trust lost, copy, lost reply": _of(distrust=1, copy=1, lose=1),
    "provisioning failure, give-up, copy": _of(provider=1, give_up=1, copy=1),
    "delete, copy, pause, resume": _of(delete=1, copy=1, pause=1, resume=1),
    "idempotent call: pause, resume, crash": Scenario(idempotent=True, budgets={"pause": 1, "resume": 1, "crash": 1}),
    "idempotent call: pause, resume, lost, copy": _busy(idempotent=True, pause=1, resume=1, lose=1, copy=1),
    "drain, pause, resume, copy": _of(give_up=1, pause=1, resume=1, copy=1, start=0),
    "two zombies": _of(pause=2, resume=2, start=0),
    "store fails over, crash": _of(fail_over=1, crash=1),
    "store fails over, pause, resume": _busy(fail_over=1, pause=1, resume=1),
    "two messages, crash, copy": _of(TWO, crash=1, copy=1),
    "two messages, pause, resume": _of(TWO, pause=1, resume=1, start=0),
    "two messages, drain, lost reply": _of(TWO, give_up=1, lose=1, start=0),
    "two messages, a stop; crash": _of(STOP_LATER, crash=1, start=0),
    "a message, a stop; pause, resume": _of(STOP, pause=1, resume=1),
    "forced takeover, copy": _of(force=1, copy=1),
    "forced takeover, pause, resume": _busy(force=1, pause=1, resume=1),
    "register apart: spurious expiry, lost reply": Scenario(apart=True, budgets={"expire": 1, "lose": 1}),
    "register apart: pause, resume, copy": Scenario(apart=True, budgets={"pause": 1, "resume": 1, "copy": 1}),
    "3 nodes: pause, resume, crash": _of(nodes=3, pause=1, resume=1, crash=1),
    "3 nodes: pause, resume, spurious expiry": _of(nodes=3, pause=1, resume=1, expire=1),
    "3 nodes: pause, resume, lost, copy": _busy(nodes=3, pause=1, resume=1, lose=1, copy=1, start=0),
    "3 nodes: two zombies": _busy(nodes=3, pause=2, resume=2, start=0),
    "3 nodes: two crashes, restart, lost reply": _of(nodes=3, crash=2, restart=1, lose=1),
}
"""Up to some hundred thousand states each: ``make model``."""
