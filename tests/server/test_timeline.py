"""``GET /conversations/{id}/timeline``: who owned it, why it moved, and what was refused; page by page."""

from tenure.client import Client
from tenure.conversation import Ended
from tenure.journal import Draft


async def test_who_owned_it_and_why_it_moved(cluster, http):
    first = await cluster.by_hand()
    await first.claim("start")
    await first.release()
    await first.claim("wanted")
    second = await cluster.by_hand()
    await second.claim("forced")
    await cluster.store.append(first._batch((Draft("late"),)))
    reply = await http.get("/conversations/c1/timeline")
    assert reply.status_code == 200
    page = reply.json()
    assert [(one["epoch"], one["why"], one["ended"]) for one in page["tenures"]] == [
        (1, "start", "drained"),
        (2, "wanted", "forced"),
        (3, "forced", None),
    ]
    assert [[late["operation"] for late in one["refused"]] for one in page["tenures"]] == [[], ["append"], []]
    assert page["owner"]["incarnation"] == second.incarnation == page["tenures"][-1]["incarnation"]
    assert page["tenures"][1]["until"] == page["tenures"][2]["since"]
    assert page["next_after"] is None


async def test_pages_join_without_gap_or_repetition(cluster, http):
    hand = await cluster.by_hand()
    for _ in range(7):
        await hand.claim()
        await hand.release()
    seen, after, pages = [], 0, 0
    while after is not None:
        page = (await http.get("/conversations/c1/timeline", params={"after": after, "limit": 2})).json()
        assert len(page["tenures"]) <= 2
        seen += [(one["epoch"], one["ended"]) for one in page["tenures"]]
        after, pages = page["next_after"], pages + 1
    assert (seen, pages) == ([(epoch, "drained") for epoch in range(1, 8)], 4)


async def test_nobody_yet_and_not_there(cluster, http):
    await cluster.by_hand()
    page = (await http.get("/conversations/c1/timeline")).json()
    assert (page["tenures"], page["owner"], page["next_after"]) == ([], None, None)
    assert (await http.get("/conversations/none/timeline")).status_code == 404
    assert (await http.get("/conversations/c1/timeline", params={"user_id": "eve"})).status_code == 404
    assert (await http.get("/conversations/c1/timeline", params={"limit": 0})).status_code == 422


async def test_the_client_joins_the_pages(cluster):
    hand = await cluster.by_hand()
    for _ in range(120):
        await hand.claim(started=False)
    async with Client(await cluster.serve()) as client:
        owners = await client.timeline("c1")
    assert [one.epoch for one in owners] == list(range(1, 121))
    assert {one.ended for one in owners[:-1]} == {Ended.RECLAIMED} and owners[-1].ended is None
