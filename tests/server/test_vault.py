"""The vault over HTTP: values go in and are never told, and rotation goes on beside everybody."""

import asyncio

import pytest
from cryptography.fernet import Fernet

from tenure.client import Client
from tenure.errors import CredentialError
from tenure.node import sealing
from tenure.vault import Keys, Secret

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
VALUE = "canary-of-the-vault"


@pytest.fixture
async def http(cluster):
    client = await cluster.http()
    cluster.nodes["n1"].keys = Keys([OLD])
    for name in ("c1", "c2"):
        assert (await client.post("/conversations", json={"id": name, "user_id": "u"})).status_code == 201
    return client


async def test_a_value_goes_in_and_is_never_told(cluster, http):
    made = await http.put("/conversations/c1/vault/github", json={"value": VALUE})
    assert (made.status_code, made.json()) == (201, {"name": "github", "version": 1, "key": Keys([OLD]).ids[0]})
    again = await http.put("/conversations/c1/vault/github", json={"value": VALUE + "-2"})
    assert (again.status_code, again.json()["version"]) == (200, 2)
    listed = await http.get("/conversations/c1/vault")
    assert listed.json() == {"secrets": [{"name": "github", "version": 2, "key": Keys([OLD]).ids[0]}]}
    everything = [await http.get(f"/conversations/c1{path}") for path in ("", "/events", "/vault")]
    assert VALUE not in "".join(reply.text for reply in [made, again, *everything])
    assert VALUE not in cluster.contents()
    assert (await http.get("/conversations/c2/vault")).json() == {"secrets": []}
    for _ in range(2):
        assert (await http.delete("/conversations/c1/vault/github")).status_code == 204
    assert (await http.get("/conversations/c1/vault")).json() == {"secrets": []}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("github", {"value": ""}),
        ("github", {"value": VALUE * 5000}),
        ("github", {"value": [VALUE]}),
        ("github", {"value": {VALUE: 1}}),
        ("github", {"secret": VALUE}),
        ("-x", {"value": VALUE}),
        ("n" * 129, {"value": VALUE}),
    ],
    ids=["empty", "long", "list", "object", "other field", "bad name", "long name"],
)
async def test_what_cannot_be_kept_is_refused_and_not_repeated(http, name, body, caplog):
    refused = await http.put(f"/conversations/c1/vault/{name}", json=body)
    assert refused.status_code == 422, refused.text
    assert VALUE not in refused.text and VALUE not in caplog.text


async def test_a_vault_is_its_users(http):
    put = await http.put("/conversations/c1/vault/x", json={"value": VALUE}, params={"user_id": "other"})
    assert put.status_code == 404
    for answer in (
        await http.get("/conversations/c1/vault?user_id=other"),
        await http.delete("/conversations/c1/vault/x?user_id=other"),
        await http.get("/conversations/none/vault"),
    ):
        assert answer.status_code == 404
    assert (await http.put("/conversations/c1/vault/x", json={"value": VALUE, "user_id": "u"})).status_code == 201


async def test_a_node_without_keys_says_how_to_make_one(cluster, http):
    cluster.nodes["n1"].keys = None
    refused = await http.put("/conversations/c1/vault/x", json={"value": VALUE})
    assert (refused.status_code, refused.json()["code"]) == (409, "credential-failed")
    assert "TENURE_SECRET_KEYS" in refused.json()["remedy"] and "generate_key" in refused.json()["remedy"]
    assert (await http.post("/vault/rotate")).status_code == 409


async def test_a_full_vault_says_so(http):
    answers = [await http.put(f"/conversations/c1/vault/s{n}", json={"value": VALUE}) for n in range(sealing.MOST + 1)]
    assert [a.status_code for a in answers] == [201] * sealing.MOST + [409]
    assert answers[-1].json()["code"] == "vault-full"
    assert (await http.put("/conversations/c1/vault/s0", json={"value": VALUE})).status_code == 200


async def test_rotation_rewrites_what_another_key_sealed_and_counts(cluster, http):
    for conversation, name in (("c1", "a"), ("c1", "b"), ("c2", "c")):
        await http.put(f"/conversations/{conversation}/vault/{name}", json={"value": VALUE})
    cluster.nodes["n1"].keys = Keys([NEW, OLD])
    await http.put("/conversations/c1/vault/b", json={"value": VALUE})  # under the new key already
    pages = []
    cursor = None
    while not pages or cursor is not None:
        params = {"limit": 1} | ({"cursor": cursor} if cursor else {})
        pages.append((await http.post("/vault/rotate", params=params)).json())
        cursor = pages[-1]["next_cursor"]
    assert [sum(page[what] for page in pages) for what in ("conversations", "secrets", "rewritten")] == [2, 3, 2]
    assert {page["key"] for page in pages} == {Keys([NEW]).ids[0]}
    assert (await http.post("/vault/rotate")).json()["rewritten"] == 0, "running it twice is fine"
    cluster.nodes["n1"].keys = Keys([NEW])
    for conversation, name in (("c1", "a"), ("c1", "b"), ("c2", "c")):
        sealed = await cluster.store.unseal(conversation, name)
        assert Keys([NEW]).unseal(conversation, name, sealed.ciphertext) == Secret(VALUE)


async def test_what_no_key_reads_is_listed_and_left(cluster, http):
    await http.put("/conversations/c1/vault/a", json={"value": VALUE})
    cluster.nodes["n1"].keys = Keys([NEW])
    done = (await http.post("/vault/rotate")).json()
    assert (done["rewritten"], done["unreadable"]) == (0, [{"conversation": "c1", "name": "a"}])
    assert (await http.get("/conversations/c1/vault")).json()["secrets"][0]["key"] is None
    assert (await http.post("/vault/rotate", params={"cursor": "\u00b2"})).status_code == 422


async def test_rotation_beside_writers_loses_nothing(cluster, http):
    """Compare-and-swap: whoever is late looks again; the last value that was put is the one that is there."""
    store, keys = cluster.store, Keys([NEW, OLD])
    await sealing.put(store, Keys([OLD]), "c1", "a", Secret("first-value"))

    async def write() -> None:
        for number in range(20):
            await sealing.put(store, Keys([OLD]), "c1", "a", Secret(f"value-{number}"))
            await asyncio.sleep(0)

    async def turn() -> None:
        for _ in range(20):
            await sealing.rotate(store, keys, None, 100)
            await asyncio.sleep(0)

    await asyncio.gather(write(), turn())
    await sealing.rotate(store, keys, None, 100)
    sealed = await store.unseal("c1", "a")
    assert Keys([NEW]).unseal("c1", "a", sealed.ciphertext) == Secret("value-19")
    with pytest.raises(CredentialError):
        Keys([OLD]).unseal("c1", "a", sealed.ciphertext)


async def test_the_client_does_the_same(cluster, http):
    url = await cluster.serve()
    async with Client(url, user_id="u") as client:
        assert await client.put_secret("c1", "a", VALUE) == 1
        assert [one["name"] for one in await client.secrets("c1")] == ["a"]
        assert (await client.rotate())["secrets"] == 1
        await client.remove_secret("c1", "a")
        assert await client.secrets("c1") == []
