"""Create, show, list, change, delete; another user's conversation is not there."""

import asyncio


async def test_a_new_conversation_is_shown(http):
    made = await http.post("/conversations", json={"id": "c1", "title": "A title", "metadata": {"a": [1]}})
    assert made.status_code == 201
    shape = made.json()
    assert (shape["id"], shape["agent"], shape["status"], shape["owner"]) == ("c1", "parrot", "idle", None)
    assert (shape["epoch"], shape["last_seq"], shape["title"]) == (0, 1, "A title")
    shown = await http.get("/conversations/c1")
    assert shown.status_code == 200
    assert shown.json() == shape


async def test_message_starts_it_by_itself(http, eventually):
    made = await http.post("/conversations", json={"id": "c1", "message": "hello"})
    assert made.status_code == 201
    assert (made.json()["seq"], made.json()["duplicate"]) == (2, False)

    async def replied():
        page = (await http.get("/conversations/c1/events", params={"kind": "reply"})).json()
        return page["events"]

    assert (await eventually(replied))[0]["body"] == {"text": "hello"}
    shape = (await http.get("/conversations/c1")).json()
    assert shape["owner"]["node"] == "n1"
    assert shape["owner"]["expires_in_s"] > 0
    assert shape["epoch"] == shape["owner"]["epoch"] == 1
