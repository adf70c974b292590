"""Secrets: what a value may be seen as, references to it, the keys that seal it, and the mask over all that is written.

A conversation's settings never carry a secret, only where it is found: ``env:NAME`` (the node's environment),
``file:PATH`` (a file of the node's machine) or ``vault:NAME`` (the conversation's vault in the store, ciphertext under
the cluster's keys). What of a node's environment and files may be asked for, the node's operator says: nothing, by
default (:class:`Allowed`). References are resolved at each provisioning and takeover, so that a rotated secret is met
by the next owner, and again before they run out if the settings say how long they last (:class:`Credential`). A value
that was resolved is known, and known values are masked in everything that is journaled or logged.

What a mask cannot do: it finds a value whole, in the forms that :class:`Mask` lists. A value that an agent reverses,
cuts up or encrypts passes, and so does one that is shorter than :data:`SHORTEST`, because masking ``a`` or ``1234``
would eat the journal. Use longer secrets. And what is no credential of the conversation nobody can know for a secret:
a password that a person types into a message stands in the journal like the rest of it.
"""

from __future__ import annotations

from tenure.errors import CredentialError
from tenure.vault.allowed import Allowed
from tenure.vault.keys import KEYS_SETTING, NEW_KEY, Keys
from tenure.vault.mask import SHORTEST, Mask, Veil, alike, cleanly_cut
from tenure.vault.references import Credential, Reference, Refresh, credentials
from tenure.vault.resolving import Obtained, Unseal, obtain, resolve, unsealing
from tenure.vault.secret import LONGEST, MASKED, Secret

__all__ = [
    "KEYS_SETTING",
    "LONGEST",
    "MASKED",
    "NEW_KEY",
    "SHORTEST",
    "Allowed",
    "Credential",
    "CredentialError",
    "Keys",
    "Mask",
    "Obtained",
    "Reference",
    "Refresh",
    "Secret",
    "Unseal",
    "Veil",
    "alike",
    "cleanly_cut",
    "credentials",
    "obtain",
    "resolve",
    "unsealing",
]
