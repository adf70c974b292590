"""What a runtime may know: references resolved at each provisioning and takeover, made anew before they run out, and
masked in all that is written.

A credential without a value is a named state of its conversation, not an accident: ``start_failed`` (or, in the midst
of a turn, ``credential_failed``) says which one, why, and what to do; `agent_status` is ``credential-failed`` meanwhile.
What another node may have is tried a few times with back-off; then, or when no node can have it, the start has failed
for good, until the next command or ``start``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from tenure.abc import RuntimeFailure
from tenure.errors import CredentialError, InvalidInputError, ProvisioningError
from tenure.journal import CredentialFailed, CredentialRestored, draft
from tenure.vault import Allowed, Credential, Secret, obtain, unsealing
from tenure.vault import credentials as asked_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenure.journal import JsonObject
    from tenure.node.tenure import Tenure

FAILED_STATUS = "credential-failed"
"""The `agent_status` of a conversation that waits for a credential."""
STEP = "credentials"
NO_STATUS = ""
"""What takes a word back; null would leave it."""
NODES_TRY = 4
"""Failed starts after which nobody is expected to have the value."""
RENEW_AT = 0.75
"""The part of its life after which a credential is made anew."""
CONFIGURE_S = 30.0
LONGEST_PAUSE_S = 60.0


@final
@dataclass(slots=True)
class _Held:
    """A credential as the runtime knows it. `renew_at` and `ends_at` are of the event loop's clock; null: never."""

    asked: Credential
    secret: Secret
    renew_at: float | None
    ends_at: float | None
    failures: int = 0


@final
class Credentials:
    """The credentials of one tenure."""

    def __init__(self, tenure: Tenure) -> None:
        self._tenure = tenure
        self._held: dict[str, _Held] = {}
        self._dead: dict[str, CredentialError] = {}
        self._giving = asyncio.Lock()
        """Held from a first value to the runtime's answer: what is given last is what was made last."""
        self._keeper: asyncio.Task[None] | None = None
        self._changed: asyncio.Event | None = None
        """Wakes the keeper; both are there from when they are first needed: most conversations have nothing that runs out."""

    async def resolve(self) -> Mapping[str, str]:
        """The values behind the references of the conversation's settings, as they are now; from here on the tenure
        masks them.

        :raises ProvisioningError: one has no value here; names the reference and the remedy, never a value.
        """
        name = ""
        try:
            found: dict[str, _Held] = {}
            for name, asked in asked_for(self._tenure.fold.settings).items():
                found[name] = await self._obtain(asked)
            self._held = found
        except CredentialError as error:
            raise self._failure(name, error) from None
        except InvalidInputError as error:
            raise ProvisioningError(self._tenure.conversation_id, STEP, str(error), permanent=True) from None
        if self._tenure.record.agent_status == FAILED_STATUS:
            self._tenure.agent_status = NO_STATUS
        return self.values

    async def follow_settings(self) -> None:
        """Before anything new begins: give the runtime what the settings ask for by now, if it is something else than what it
        has, or if one of them is dead. All of it is made anew: whoever has mended it meanwhile, in the settings, in the vault
        or elsewhere, is not refused for what it was.

        :raises ProvisioningError: as :meth:`resolve`, or the runtime does not take it.
        """
        runtime = self._tenure.runtime
        if runtime is None or not (self._dead or self._settings_changed()):
            return
        async with self._giving:
            values = await self.resolve()
            try:
                async with asyncio.timeout(CONFIGURE_S):
                    await self._tenure.means.provider.configure(runtime, values)
            except (RuntimeFailure, TimeoutError) as error:
                why = self._tenure.masked(str(error)) or "no answer in time"
                raise ProvisioningError(self._tenure.conversation_id, "configure", why) from error
            dead, self._dead = self._dead, {}
            for name in dead:
                await self._tell(CredentialRestored(name), NO_STATUS)
        self.tend()

    def _settings_changed(self) -> bool:
        return asked_for(self._tenure.fold.settings) != {name: held.asked for name, held in self._held.items()}

    @property
    def values(self) -> dict[str, str]:
        """What the runtime knows, by name. From any thread."""
        return {name: held.secret.reveal() for name, held in dict(self._held).items()}

    def tend(self) -> None:
        """From now on what runs out is made anew before it does, until :attr:`keepers` are cancelled."""
        if self._changed is not None:
            self._changed.set()
        elif any(held.renew_at is not None for held in self._held.values()):
            self._changed = asyncio.Event()
            self._keeper = self._tenure.means.tasks.supervise(self._keep, "credentials", 1.0)

    @property
    def keepers(self) -> list[asyncio.Task[None]]:
        """The task that makes them anew, if one was needed."""
        return [] if self._keeper is None else [self._keeper]

    async def _keep(self) -> None:
        assert self._changed is not None, "it is there before its task"
        while True:
            self._changed.clear()
            at, name = min(self._due(), default=(None, ""))
            try:
                async with asyncio.timeout_at(at):
                    await self._changed.wait()
            except TimeoutError:
                await self._renew(name)

    def _due(self) -> list[tuple[float, str]]:
        return [(held.renew_at, name) for name, held in self._held.items() if held.renew_at is not None]

    async def _obtain(self, asked: Credential) -> _Held:
        means = self._tenure.means
        unseal = unsealing(means.store, means.keys, self._tenure.conversation_id)
        got = await obtain(asked, unseal, means.allowed)
        self._tenure.learn(got.known)
        if got.lasts_s is None:
            return _Held(asked, got.secret, None, None)
        now, part = asyncio.get_running_loop().time(), means.rng.uniform(0.9, 1.0) * RENEW_AT
        return _Held(asked, got.secret, now + got.lasts_s * part, now + got.lasts_s)

    async def _renew(self, name: str) -> None:
        async with self._giving:
            held, now = self._held.get(name), asyncio.get_running_loop().time()
            if held is not None and held.renew_at is not None and held.renew_at <= now:  # nor given while we waited
                await self._make_anew(name, held)

    async def _make_anew(self, name: str, held: _Held) -> None:
        runtime = self._tenure.runtime
        assert runtime is not None, "provisioned before the loop was opened"
        try:
            fresh = await self._obtain(held.asked)
            values = {**self.values, name: fresh.secret.reveal()}
            async with asyncio.timeout(CONFIGURE_S):
                await self._tenure.means.provider.configure(runtime, values)
        except CredentialError as error:
            await self._failed(name, held, error)
        except (RuntimeFailure, TimeoutError) as error:
            why = self._tenure.masked(str(error)) or "no answer in time"
            problem = f"could not be given to the runtime: {why}"
            await self._failed(name, held, CredentialError(str(held.asked), problem, "look at the runtime's provider"))
        else:
            self._held[name] = fresh
            if self._dead.pop(name, None) is not None:
                await self._tell(CredentialRestored(name), NO_STATUS)

    async def _failed(self, name: str, held: _Held, error: CredentialError) -> None:
        """Try again with back-off. Dead only when its time is over: until then the old value does."""
        means, now = self._tenure.means, asyncio.get_running_loop().time()
        pause_s = min(LONGEST_PAUSE_S, means.config.backoff_s * 2.0 ** min(held.failures, 10))
        held.failures += 1
        held.renew_at = now + pause_s * means.rng.uniform(0.5, 1.5)
        self._tenure.trouble(f"credentials could not be made anew: {error}")
        if held.ends_at is not None and now < held.ends_at:
            held.renew_at = min(held.renew_at, held.ends_at)
        elif name not in self._dead:
            self._dead[name] = error
            told = CredentialFailed(name, error.reference, error.problem, error.remedy)
            await self._tell(told, FAILED_STATUS)

    async def _tell(self, event: CredentialFailed | CredentialRestored, status: str) -> None:
        if status or self._tenure.agent_status == FAILED_STATUS:
            self._tenure.agent_status = status
        await self._tenure.append([draft(event)])
        self._tenure.poke()

    def _failure(self, name: str, error: CredentialError) -> ProvisioningError:
        tenure = self._tenure
        tenure.agent_status = FAILED_STATUS
        given_up = error.everywhere or tenure.record.failures >= NODES_TRY
        return ProvisioningError(
            tenure.conversation_id, STEP, f"{name}: {error}", permanent=given_up, credential=described(name, error)
        )


def described(name: str, error: CredentialError) -> JsonObject:
    """Which credential, and what to do: as events and replies carry it."""
    return {"name": name, "reference": error.reference, "problem": error.problem, "remedy": error.remedy}


def insist_on_allowed(allowed: Allowed, settings: JsonObject) -> None:
    """Before anything is created or claimed.

    :raises InvalidInputError: the settings ask for what this node does not give; names the field and the remedy.
    """
    for name, credential in asked_for(settings).items():
        try:
            allowed.insist(credential)
        except CredentialError as error:
            where = f"settings.credentials.{name}"
            raise InvalidInputError(where, f"{error.reference} {error.problem}", error.remedy) from None
