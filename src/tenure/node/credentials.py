"""What a runtime may know: references resolved at each provisioning and takeover, values masked in all that is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenure.errors import InvalidInputError, ProvisioningError
from tenure.vault import CredentialError, Mask, references, resolve, unsealing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenure.node.tenure import Tenure

OWN_PREFIX = "TENURE_"
"""Variables of the node itself, which no conversation may ask for."""


async def credentials(tenure: Tenure) -> Mapping[str, str]:
    """The values behind the references of the conversation's settings, as they are now; from here on the tenure masks them.

    :raises ProvisioningError: one has no value here; names the reference and the remedy, never a value. Not permanent:
        another node may have it, or somebody puts it there.
    """
    means = tenure.means
    unseal = unsealing(means.store, means.keys, tenure.conversation_id)
    try:
        asked = references(tenure.fold.settings)
        own = [str(r) for r in asked.values() if r.scheme == "env" and r.name.upper().startswith(OWN_PREFIX)]
        if own:
            raise CredentialError(own[0], "belongs to the node itself", "name another variable")
        secrets = {name: await resolve(reference, unseal) for name, reference in asked.items()}
    except (CredentialError, InvalidInputError) as error:
        raise ProvisioningError(tenure.conversation_id, "credentials", str(error)) from None
    tenure.mask = Mask(secrets.values()) if secrets else None
    return {name: secret.reveal() for name, secret in secrets.items()}
