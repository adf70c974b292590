"""``/metrics``: every series there at zero, nothing of a conversation in them, and true; dashboard and alerts know no others."""

import asyncio
import inspect
import json
import logging
import re
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tenure import facts
from tenure.abc import Creation, Death, Reason, Submit
from tenure.errors import StoreUnavailableError
from tenure.journal import CORE_COMMANDS, TURN_ENDS, Command, Delivery
from tenure.node import deltas, tenure
from tenure.node.metrics import CALLS, ENDS, KINDS, OPERATIONS, REFUSALS, RELEASES, TURNS, Metrics
from tenure.node.telling import CALL_ENDS, known_kind
from tenure.stores import rules
from tenure.stores.memory import MemoryStore

ROOT = Path(__file__).resolve().parents[2]
NAMES = re.compile(r"\btenure_[a-z_]+\b")
SELECTOR = re.compile(r"(tenure_[a-z_]+)\{([^}]*)\}")
GROUPED = re.compile(r"by \(([^)]*)\)")


async def samples(http) -> dict[str, list]:
    reply = await http.get("/metrics")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/plain")
    found: dict[str, list] = {}
    for family in text_string_to_metric_families(reply.text):
        for one in family.samples:
            found.setdefault(one.name, []).append(one)
    return found


def total(found, name: str, **labels: str) -> float:
    return sum(s.value for s in found[name] if labels.items() <= s.labels.items())


async def test_each_series_is_there_at_zero_and_names_its_node(http):
    found = await samples(http)
    assert all(name.startswith("tenure_") for name in found)
    assert {s.labels["node"] for series in found.values() for s in series} == {"n1"}
    counters = {name for name in found if name.endswith(("_total", "_count"))} - {
        "tenure_renewal_seconds_count",
        "tenure_event_loop_stalls_total",
    }
    assert len(counters) > 15 and all(total(found, name) == 0 for name in counters)
    assert not [name for name in found if name.endswith("_created")]
    assert total(found, "tenure_ready") == 1 and total(found, "tenure_heartbeat_slack_seconds") > 0


async def test_received_is_accepted_plus_refused(http, cluster, eventually):
    await http.post("/conversations", json={"id": "c1", "message": "hello", "key": "k1"})
    await http.post("/conversations/c1/messages", json={"text": "again", "key": "k2"})
    await http.post("/conversations/c1/messages", json={"text": "again", "key": "k2"})
    assert (await http.post("/conversations/c1/messages", json={"text": "other", "key": "k2"})).status_code == 409
    assert (await http.post("/conversations/nobody/messages", json={"text": "x"})).status_code == 404
    await http.post("/conversations/c1/stop")
    await http.delete("/conversations/c1")
    assert (await http.post("/conversations/c1/messages", json={"text": "x"})).status_code == 410
    found = await samples(http)
    received, accepted = total(found, "tenure_commands_received_total"), total(found, "tenure_commands_accepted_total")
    assert (received, accepted) == (7, 4)
    assert received == accepted + total(found, "tenure_commands_refused_total")
    assert total(found, "tenure_commands_refused_total", reason="key-reused") == 1
    assert total(found, "tenure_commands_received_total", kind="stop") == 1


async def test_a_turn_and_a_takeover_are_counted(http, cluster):
    told = cluster.nodes["n1"].facts
    ended = asyncio.ensure_future(told.until(facts.TurnEnded, conversation="c2"))
    await http.post("/conversations", json={"id": "c2", "message": "hello"})
    async with asyncio.timeout(20):
        assert (await ended).outcome == "completed"
    found = await samples(http)
    assert total(found, "tenure_turn_seconds_count", outcome="completed") == 1
    assert total(found, "tenure_claims_total", why="wanted") == 1
    assert total(found, "tenure_provisionings_total", outcome="provisioned") == 1
    assert total(found, "tenure_journal_lag_seconds_count") == 1
    assert (total(found, "tenure_owned"), total(found, "tenure_takeovers_total")) == (1, 0)
    live = asyncio.ensure_future(told.until(facts.Live, conversation="c2"))
    await http.post("/conversations/c2/takeover")
    async with asyncio.timeout(20):
        assert (await live).takeover
    found = await samples(http)
    assert total(found, "tenure_takeovers_total", ended="forced") == 1
    assert total(found, "tenure_takeover_seconds_count") == 1
    assert total(found, "tenure_conversations_lost_total") == 1, "its own, by force"


async def test_no_id_and_no_word_of_a_client_is_in_them(http):
    await http.post("/conversations", json={"id": "telltale", "user_id": "ann-onymous", "message": "hush-hush"})
    text = (await http.get("/metrics")).text
    assert not re.search("telltale|ann-onymous|hush-hush", text)
    assert len(text.splitlines()) < 600


async def test_a_node_with_a_key_keeps_them_to_itself(cluster):
    http = await cluster.http(await _keyed(cluster))
    assert (await http.get("/metrics")).status_code == 401
    assert (await http.get("/metrics", headers={"Authorization": "Bearer key"})).status_code == 200


async def _keyed(cluster) -> str:
    await cluster.node("keyed", api_key="key")
    return "keyed"


# --- dashboard, alerts, documentation


def expressions() -> list[str]:
    dashboard = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [one["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    rules = yaml.safe_load((ROOT / "deploy/prometheus-alerts.yaml").read_text())
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(panels) > 15 and len(alerts) > 8
    return panels + variables + alerts


async def test_panels_and_alerts_ask_for_what_a_node_exports(http):
    found = await samples(http)
    labels = {name: set().union(*(s.labels for s in series)) for name, series in found.items()}
    for expression in expressions():
        names = set(NAMES.findall(expression))
        assert names and names <= set(found), expression
        for name, selector in SELECTOR.findall(expression):
            asked = dict(re.findall(r'(\w+)=~?"([^"]*)"', selector))
            assert set(asked) <= labels[name], expression
            for label, values in asked.items():
                known = {s.labels[label] for s in found[name]}
                assert values == "$node" or set(values.split("|")) <= known, expression
        for group in GROUPED.findall(expression):
            assert {part.strip() for part in group.split(",")} <= set().union(*(labels[n] for n in names)), expression


async def test_every_metric_is_documented_and_asked_for(http):
    families = [f.name for f in text_string_to_metric_families((await http.get("/metrics")).text)]
    page = (ROOT / "docs/operating/metrics.md").read_text()
    documented = set(re.findall(r"^\| `(tenure_[a-z_]+)", page, re.M))
    exported = {name if f"`{name}`" in page else f"{name}_total" for name in families}
    assert documented == exported
    asked = {re.sub("_(total|bucket|count|sum)$", "", name) for text in expressions() for name in NAMES.findall(text)}
    assert set(families) == asked, "a metric that no panel and no alert looks at"


def test_every_fact_has_a_name_of_its_own_and_is_documented():
    page = (ROOT / "docs/operating/metrics.md").read_text()
    assert len(facts.ALL) == len({cls.__name__ for cls in facts.ALL.values()}) > 40
    rows = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| (\w+) \|", page, re.M)
    assert sorted(rows) == sorted((name, logging.getLevelName(fact.level).lower()) for name, fact in facts.ALL.items())


def test_the_values_of_labels_are_those_that_the_code_has_words_for():
    """A word without a series would be counted as another one, or make a series that was not there at zero."""
    assert set(ENDS) == {death.value for death in Death} | {"forced", "unknown"}
    assert set(RELEASES) == {reason.value for reason in Reason}
    assert set(KINDS) == {known_kind(kind) for kind in (*CORE_COMMANDS, "a loop's own")}
    assert set(TURNS) == {kind.removeprefix("turn_") for kind in TURN_ENDS}
    assert set(CALLS) == {*CALL_ENDS.values(), "failed"}
    writes = inspect.getsource(tenure) + inspect.getsource(deltas)
    assert set(OPERATIONS) == set(re.findall(r"\.refused\(\"(\w+)\"\)", writes))
    of_the_store = set(re.findall(r"return \"([a-z-]+)\"", inspect.getsource(rules)))
    of_any_answer = {"key-reused", "too-large", "conversation-deleted", "unknown-conversation", "conversation-exists"}
    assert set(REFUSALS) == of_the_store | of_any_answer | {"unavailable", "cancelled", "other"}


# --- each of them moves


async def test_what_waits_is_told_by_queue(http, cluster, eventually, monkeypatch):
    async def depth(queue):
        return total(await samples(http), "tenure_queue_depth", queue=queue)

    never, publish = asyncio.Event(), cluster.stores["n1"].store.publish
    cluster.stack.callback(never.set)
    cluster.stack.callback(cluster.parrot.gate.set)

    async def slow(*args):
        await never.wait()
        return await publish(*args)

    monkeypatch.setattr(cluster.stores["n1"].store, "publish", slow)
    sent = await http.post("/conversations", json={"id": "c1", "message": "delta one two three four"})
    assert sent.status_code == 201
    await eventually(lambda: _at_least(depth("deltas"), 3))  # the first is being published
    for _ in range(2):
        assert (await http.post("/conversations/c1/messages", json={"text": "later"})).status_code == 202
    await eventually(lambda: _at_least(depth("commands"), 2))
    assert {s.labels["queue"] for s in (await samples(http))["tenure_queue_depth"]} == {
        "commands", "starts", "claims", "copies", "deltas", "store",
    }  # fmt: skip
    never.set()
    cluster.parrot.gate.set()
    for queue in ("deltas", "commands"):
        await eventually(lambda queue=queue: _at_most(depth(queue), 0))


async def test_starts_and_claims_under_way_are_told(http, cluster, eventually, monkeypatch):
    """A start that somebody waits for, and a claim that the sweep makes: both while the store does not answer."""

    async def depth(queue):
        return total(await samples(http), "tenure_queue_depth", queue=queue)

    answers, claim_all = asyncio.Event(), cluster.stores["n1"].store.claim_all
    cluster.stack.callback(answers.set)

    async def slow(*args):
        await answers.wait()
        return await claim_all(*args)

    monkeypatch.setattr(cluster.stores["n1"].store, "claim_all", slow)
    said = Command("message", {"text": "hello"}, "k", Delivery.TURN)
    await cluster.stores["n1"].store.submit(Submit("swept", said, Creation(default_agent="parrot")))  # through no node
    await eventually(lambda: _at_least(depth("claims"), 1))
    assert (await http.post("/conversations", json={"id": "asked"})).status_code == 201
    asking = asyncio.ensure_future(http.post("/conversations/asked/start?here=true", json={}))
    await eventually(lambda: _at_least(depth("starts"), 1))
    answers.set()
    assert (await asking).status_code in (200, 202)
    for queue in ("claims", "starts"):
        await eventually(lambda queue=queue: _at_most(depth(queue), 0))


async def _at_least(depth, least: float) -> bool:
    return await depth >= least


async def _at_most(depth, most: float) -> bool:
    return await depth <= most


async def test_slack_and_sweeps_age_while_the_store_is_away(http, cluster, eventually, monkeypatch):
    async def fails(*args):
        raise StoreUnavailableError("no answer")

    before = await samples(http)
    assert total(before, "tenure_heartbeat_slack_seconds") > 0
    monkeypatch.setattr(MemoryStore, "renew", fails)
    cluster.stores["n1"].down = True

    async def aged():
        now = await samples(http)
        less = total(now, "tenure_heartbeat_slack_seconds") < total(before, "tenure_heartbeat_slack_seconds")
        unanswered = total(now, "tenure_renewals_unanswered_total") > 0
        waits = total(now, "tenure_store_waits_total") > 0
        return less and unanswered and waits and total(now, "tenure_sweep_age_seconds") > 1

    await eventually(aged)
    cluster.stores["n1"].down = False
    monkeypatch.undo()

    async def young():
        return total(await samples(http), "tenure_sweep_age_seconds") < 1

    await eventually(young)


async def test_what_an_outage_refuses_is_counted_too(http, cluster):
    cluster.stores["n1"].down = True
    assert (await http.post("/conversations", json={"id": "c1", "message": "hello"})).status_code == 503
    found = await samples(http)
    assert total(found, "tenure_commands_received_total") == total(found, "tenure_commands_refused_total") == 1
    assert total(found, "tenure_commands_refused_total", reason="unavailable") == 1


MOVES = {
    "tenure_commands_received_total": facts.Received("c", "message"),
    "tenure_commands_accepted_total": facts.Accepted("c", "stop", 1, duplicate=False),
    "tenure_commands_refused_total": facts.Refused("c", "stop", "a word that nobody knows"),
    "tenure_claims_total": facts.Claimed("c", 1, "start"),
    "tenure_takeovers_total": facts.Claimed("c", 2, "takeover", "exited"),
    "tenure_takeover_seconds_count": facts.Live("c", 2, 0.1, takeover=True),
    "tenure_conversations_lost_total": facts.Lost("c", 1, "why"),
    "tenure_releases_total": facts.Released("c", 1, "idle"),
    "tenure_leases_lost_total": facts.GaveUp("i", "why", 1),
    "tenure_writes_refused_total": facts.WriteRefused("c", 1, "append"),
    "tenure_renewal_seconds_count": facts.Renewed("i", 0.1, 2.0),
    "tenure_renewals_unanswered_total": facts.RenewalUnanswered("i", "why"),
    "tenure_turns_total": facts.TurnEnded("c", 1, "t1", "interrupted", None),
    "tenure_calls_total": facts.CallEnded("c", 1, "t1", "t1.look", "interrupted", None),
    "tenure_turn_seconds_count": facts.TurnEnded("c", 1, "t1", "completed", 0.1),
    "tenure_call_seconds_count": facts.CallEnded("c", 1, "t1", "t1.look", "finished", 0.1),
    "tenure_journal_lag_seconds_count": facts.Read("c", "message", 0.1),
    "tenure_provisionings_total": facts.StartFailed("c", 1, "boot", "why", permanent=True),
    "tenure_provisioning_seconds_count": facts.Provisioned("c", 1, "attached", 0.1),
    "tenure_event_loop_stalls_total": facts.LoopBlocked(0.5, "stack"),
    "tenure_store_waits_total": facts.StoreAwaited("sweep", "why"),
}
"""Every counter and histogram, and a fact that moves it."""


def test_each_series_is_moved_by_its_fact_and_none_is_left_out():
    def counted(metrics: Metrics) -> dict[str, float]:
        families = text_string_to_metric_families(metrics.text().decode())
        found = {sample.name: 0.0 for family in families for sample in family.samples}
        for family in text_string_to_metric_families(metrics.text().decode()):
            for sample in family.samples:
                found[sample.name] += sample.value
        return {name: value for name, value in found.items() if name.endswith(("_total", "_count"))}

    assert set(counted(Metrics("n1"))) == set(MOVES)
    for name, fact in MOVES.items():
        metrics = Metrics("n1")
        series = metrics.text().count(b"\n")
        metrics.hear(fact)
        assert counted(metrics)[name] == 1, name
        assert metrics.text().count(b"\n") == series, f"{name} made a series that was not there at zero"
