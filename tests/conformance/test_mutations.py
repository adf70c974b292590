"""The suite is real: with one line of the rules changed, the case that is named here goes red.

Each edit is what a plausible implementation might do. ``old`` must stand in the source exactly once: whoever changes the
rules changes the list, too. The case is green without the edit (``test_stores.py``).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tenure.stores import memory, rules
from tenure.testing.store_suite import CASES, exercise


@dataclass(frozen=True)
class Edit:
    """One edit to a module of the rules, what it means, and the case that sees it."""

    id: str
    what: str
    where: ModuleType
    old: str
    new: str
    killed_by: str


FENCE_EPOCH = "        and record.epoch == lease.epoch\n        and record.token == lease.token\n    )"
NUMBER = "if request.number != row.number + 1 or request.seen > row.record.head:"
WANTED = "wanted=settle.runnable or record.last_command > seen,"
FRESH = "fresh = request.batch.number == row.number + 1 and request.batch.seen <= row.record.head"
CUT = "cut = unreleased and (record.turn is TurnState.OPEN or not record.started)"
EPOCH = "Epoch(max(record.epoch, journal_epoch, request.floor) + 1)"
LOST = "lost=0 if settle.turn_ended or settle.failed else record.lost"
SWEPT = "if owner is None or owner.incarnation == me or self._dead(owner.incarnation):"

# fmt: off
EDITS = [
    # rule 1: the fence
    Edit("R01", "the epoch is not compared", rules, FENCE_EPOCH, "        and record.token == lease.token\n    )",
             "rule_01_an_append_needs_the_lease_that_is_held"),
    Edit("R02", "an older epoch than the lease's is enough", rules, "record.epoch == lease.epoch\n        and record.token", "record.epoch <= lease.epoch\n        and record.token",
             "rule_01_an_append_needs_the_lease_that_is_held"),
    Edit("R03", "the token is not compared", rules, FENCE_EPOCH, "        and record.epoch == lease.epoch\n    )",
             "c1_the_token_fences_where_the_epoch_repeats"),
    Edit("R04", "the owner is not compared", rules, "        and record.owner.incarnation == lease.incarnation\n", "",
             "rule_01_a_release_needs_the_lease_that_is_held"),
    Edit("R05", "a release leaves the owner", rules, "        owner=None,\n        token=None,\n", "",
             "c1_late_append_after_release"),
    Edit("R06", "a release is not fenced", rules, "if not holds(row, lease) or not fresh:", "if not fresh:",
             "c8_late_copy_of_a_release_after_the_next_claim"),
    Edit("R07", "a delta is not fenced", memory, "if row is None or not rules.holds(row, lease):", "if row is None:",
             "rule_01_a_delta_is_fenced"),
    # rule 2: compare and swap
    Edit("R08", "no epoch is compared in a claim", rules, "    if record.epoch != request.expected_epoch:", "    if False:",
             "c3_late_copy_of_a_claim"),
    Edit("R09", "a takeover by force needs no epoch", rules, "    if record.epoch != request.expected_epoch:", "    if record.epoch != request.expected_epoch and not request.forced:",
             "c3_late_copy_of_a_forced_takeover"),
    Edit("R10", "a repeated claim is a new one", rules, "if mine and record.token == request.token:", "if False:",
             "rule_02_a_repeated_claim_gets_the_same_lease"),
    Edit("R11", "mine is mine, whatever the token", rules, "if mine and record.token == request.token:", "if mine:",
             "c2_mine_with_another_token_is_a_new_claim"),
    Edit("R12", "batches are counted on after a claim", rules, "return replace(row, record=after, number=0, digest=None, result=None), event", "return replace(row, record=after), event",
             "c2_batches_are_counted_anew_after_a_claim"),
    Edit("R13", "a live owner is replaced", rules, "if owner is not None and not mine and not owner_dead and not request.forced:", "if False:",
             "g1_of_many_that_claim_at_once_one_holds"),
    # rule 4: epochs
    Edit("R14", "the floor is ignored", rules, EPOCH, "Epoch(max(record.epoch, journal_epoch) + 1)",
             "rule_04_the_floor_raises_the_epoch"),
    Edit("R15", "a tombstone keeps its epoch", rules, "    epoch = Epoch(record.epoch + 1)\n", "    epoch = record.epoch\n",
             "rule_04_the_epoch_survives_deletion"),
    Edit("R16", "a deleted id is used again", rules, "    if record.deleted:\n        return Step(Deleted(record.epoch))\n    if request.create is not None", "    if request.create is not None",
             "rule_04_a_deleted_id_is_never_used_again"),
    # rule 5: numbers
    Edit("R17", "the number is not checked", rules, NUMBER, "if request.seen > row.record.head:",
             "rule_05_the_next_batch_is_the_last_one_plus_one"),
    Edit("R18", "a gap passes", rules, NUMBER, "if request.number <= row.number or request.seen > row.record.head:",
             "c4_gap_in_batch_numbers"),
    Edit("R19", "the same number is the same batch", rules, "row.number > 0 and digest == row.digest and row.result", "row.number > 0 and row.result",
             "c4_the_same_number_with_another_content"),
    Edit("R20", "the same content is the same batch", rules, "if request.number == row.number and row.number > 0 and digest", "if digest",
             "rule_05_the_next_number_with_the_same_content_is_another_batch"),
    Edit("R21", "a repeated batch is refused", rules, "if request.number == row.number and row.number > 0 and digest", "if False and digest",
             "rule_05_a_repeated_batch_gets_the_first_answer"),
    Edit("R22", "a rewound store is not noticed", rules, NUMBER, "if request.number != row.number + 1:",
             "rule_05_a_rewound_store_is_noticed"),
    Edit("R23", "a release is not numbered", rules, FRESH, "fresh = request.batch.seen <= row.record.head",
             "c8_release_is_numbered"),
    Edit("R24", "a release looks at no head", rules, FRESH, "fresh = request.batch.number == row.number + 1",
             "c8_release_over_a_rewound_journal"),
    Edit("R25", "any release of the lease is the same release", rules, "        and row.released_digest == digest\n", "",
             "only_this_very_release_is_repeated"),
    # rule 6 and 7: wanted
    Edit("R26", "wanted is cleared by every settle", rules, WANTED, "wanted=False,",
             "rule_06_wanted_is_runnable_or_an_unseen_command"),
    Edit("R27", "wanted is what the owner says", rules, WANTED, "wanted=settle.runnable,",
             "c7_a_message_that_arrives_while_the_turn_ends"),
    Edit("R28", "only a command to nobody's conversation wakes", rules, "        wanted=True,\n", "        wanted=record.wanted or record.owner is None,\n",
             "c7_message_to_a_live_idle_owner"),
    Edit("R29", "the sweep leaves out what is mine", memory, SWEPT, "if owner is None or self._dead(owner.incarnation):",
             "rule_07_mine_are_wanted"),
    Edit("R30", "the sweep leaves out what the dead own", memory, SWEPT, "if owner is None or owner.incarnation == me:",
             "c7_message_after_its_owner_died_idle"),
    Edit("R31", "a settle counts nothing down", rules, "        unsettled=record.unsettled - len(settle.settled),\n", "",
             "c9_what_a_turn_settles_is_a_list"),
    Edit("R32", "a stop wins over a start that came later", rules, "stopped=(record.last_start <= seen) if settle.stopped else record.stopped", "stopped=settle.stopped or record.stopped",
             "stopped_takes_effect_unless_a_start_came_unseen"),
    # rule 10: death
    Edit("R33", "an incarnation has a second life", memory, "if incarnation in self.disk.nodes:", "if incarnation in self.disk.nodes and not self._dead(incarnation):",
             "rule_10_an_incarnation_is_registered_once_ever"),
    Edit("R34", "the expired renew", memory, "if node is None or node.dead or now >= node.expires:", "if node is None or node.dead:",
             "an_expired_lease_is_never_renewed"),
    Edit("R35", "the buried renew", memory, "if node is None or node.dead or now >= node.expires:", "if node is None or now >= node.expires:",
             "c5_dead_is_stable"),
    Edit("R36", "two copies renew", memory, "beat == node.beat - 1 and nonce == node.nonce", "beat == node.beat - 1",
             "c24_a_second_copy_of_the_process_is_dead"),
    Edit("R37", "whoever is asked about is buried", memory, "if why is Death.EXPIRED and now < node.expires:", "if False:",
             "c5_a_renewal_before_expiry_is_seen_by_the_burial"),
    Edit("R38", "a clock that went back is believed", memory, "            node.expires = min(node.expires, now + node.ttl_s)\n", "",
             "c23_a_clock_that_went_back_is_clamped"),
    Edit("R39", "the expired own nothing, buried or not", memory, "return node is not None and node.dead\n", "return node is not None and (node.dead or self._now() >= node.expires)\n",
             "rule_10_an_expired_owner_that_nobody_buried_counts_as_alive"),
    Edit("R40", "the unknown are dead", memory, '                return Alive(float("inf"))\n', "                return Buried()\n",
             "rule_10_unknown_is_not_dead"),
    # rule 15: back-off and poison
    Edit("R41", "lost owners are not counted", rules, "lost=record.lost + (1 if cut else 0),", "lost=record.lost,",
             "rule_15_lost_counts_owners_that_did_not_release_during_a_turn"),
    Edit("R42", "every takeover counts as lost", rules, CUT, "cut = unreleased",
             "rule_15_releases_and_idle_owners_are_not_lost"),
    Edit("R43", "every batch sets lost to 0", rules, LOST, "lost=0",
             "rule_15_lost_counts_owners_that_did_not_release_during_a_turn"),
    Edit("R44", "there is no back-off", memory, "if row.not_before is not None and row.not_before > now:", "if False:",
             "rule_15_the_back_off_is_judged_by_the_store"),
    Edit("R45", "every release is a failure", rules, "failures=record.failures + 1 if failed else record.failures", "failures=record.failures + 1",
             "rule_15_failures_count_failed_starts_only"),
    Edit("R46", "a start is held back", rules, "return replace(row, record=after, open_start=seq, not_before=None), event", "return replace(row, record=after, open_start=seq), event",
             "rule_15_start_clears_what_holds_a_conversation_back"),
    # rule 18: keys
    Edit("R47", "a key is all that counts", rules, "Duplicate(seq, record) if digest == command.digest() else KeyReused(seq)", "Duplicate(seq, record)",
             "rule_18_the_same_key_with_another_body_is_refused"),
    Edit("R48", "what is stopped refuses duplicates", rules, "    if known is not None:\n        seq, digest = known\n", "    if known is not None and not record.stopped:\n        seq, digest = known\n",
             "a_duplicate_is_recognised_before_anything_is_refused"),
]
# fmt: on


def edited(edit: Edit) -> ModuleType:
    """The module as it is after the edit, beside the real one."""
    source = Path(str(edit.where.__file__)).read_text(encoding="utf-8")
    assert source.count(edit.old) == 1, f"{edit.id}: the source no longer has this line once"
    module = ModuleType(f"{edit.where.__name__}_{edit.id}")
    module.__file__ = edit.where.__file__
    sys.modules[module.__name__] = module  # dataclasses look their module up while they are made
    try:
        exec(compile(source.replace(edit.old, edit.new), f"<{module.__name__}>", "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module


@pytest.mark.parametrize("edit", EDITS, ids=lambda m: f"{m.id} {m.what}")
async def test_the_suite_goes_red(edit: Edit, monkeypatch: pytest.MonkeyPatch):
    module = edited(edit)
    if edit.where is rules:
        monkeypatch.setattr(memory, "rules", module)
    store = module if edit.where is memory else memory
    disk = store.Disk()
    (case,) = [case for case in CASES if case.__name__ == edit.killed_by]
    with pytest.raises(AssertionError):
        await exercise(case, lambda clock, limits: store.MemoryStore(disk, clock, limits))


def test_ids_are_given_once():
    ids = [edit.id for edit in EDITS]
    assert ids == sorted(set(ids))
