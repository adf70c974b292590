"""An agent that says what it must not, through every door that it has: events, results, errors, logs, deltas, states."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import urllib.parse
from pathlib import Path

NAMES = ("FROM_ENV", "FROM_FILE", "FROM_VAULT", "MADE", "BY_URL")
log = logging.getLogger("tenure.leaky")


async def secrets_of(turn) -> dict[str, str]:
    """What any tool of the runtime sees."""
    lines = (await turn.runtime.run(["/usr/bin/env"])).stdout.splitlines()
    pairs = (line.partition("=") for line in lines)
    return {name: value for name, _, value in pairs if name in NAMES}


def all_forms(value: str) -> list[str]:
    return [
        value,
        f"in the midst of {value}, quoted",
        json.dumps(json.dumps(value)),
        urllib.parse.quote(value, safe=""),
        base64.b64encode(value.encode()).decode(),
        base64.urlsafe_b64encode(b"x" + value.encode() + b"yz").decode(),
    ]


def raising(values: list[str]) -> None:
    raise ValueError(f"the tool was refused with {values}")


def log_everything(values: list[str]) -> None:
    log.debug("debug %s", values)
    log.warning("warning %s", values, extra={"conversation": values[0]})
    logging.getLogger("somebody.else").error("error %r", {"nested": values})
    try:
        raising(values)
    except ValueError:
        log.exception("with a traceback")


async def forgotten(values: list[str]) -> None:
    raise RuntimeError(f"nobody awaits me {values}")


LINGER = "touch it-runs; while [ ! -e go-on ]; do sleep 0.05; done"


async def agent(turn):
    if turn.messages[-1].text == "linger":
        await turn.call("linger", turn.runtime.run, LINGER)
        return
    values = list((await secrets_of(turn)).values())
    forms = [form for value in values for form in all_forms(value)]
    log_everything(forms)
    turn.delta(" ".join(forms))
    await turn.emit("leak", {"nested": [{"deep": {form: [form]}} for form in forms], "text": " ".join(forms)})
    await turn.call("tool", lambda: {"stdout": forms}, idempotent=True)
    env = await turn.call("env", turn.runtime.run, ["/usr/bin/env"], idempotent=True)
    try:
        await turn.call("raising", raising, forms)
    except Exception as error:
        await turn.emit("caught", {"error": str(error)})
    asyncio.get_running_loop().create_task(forgotten(forms))
    await asyncio.sleep(0.05)
    await turn.emit("reply", {"known": len(values), "env": str(env)})
    if turn.messages[-1].text == "fail":
        raise RuntimeError(f"the turn fails with {forms}")


async def appearance(path: str) -> None:
    while not Path(path).exists():
        await asyncio.sleep(0.05)


async def teller(turn):
    """Waits for the file that the message names; then says a fingerprint of what the runtime was given."""
    await turn.call("wait", appearance, turn.messages[-1].text, idempotent=True)
    told = await turn.runtime.run('printf %s "$FROM_VAULT" | sha256sum')
    await turn.emit("reply", {"sha256": told.stdout.split()[0]})
