"""Edits to the node: the other half of the protocol, which no store can check."""

from catalogue import Killers, Mutation, unit

FENCED = '                    self.lose("another claim is in force" if record else "the conversation is gone")\n                    self.insist()\n'
WRITTEN = "                    return Appended(batch.seen + 1, len(batch.drafts), batch.seen + len(batch.drafts), batch.seen, self.means.clock.now())\n"
REWOUND = "            if reading.record.head < self.fold.seq:"
SAME_LEASE = "if tenure is None or (tenure.lease.epoch, tenure.lease.token) != (wanted.epoch, wanted.token):"


def seeds(name: str) -> Killers:
    return Killers("tests/simulation/test_cluster.py", name)


# fmt: off
Mutation("M70", "rule 11", "node/heartbeat.py", "trust counts from the answer, however late it came",
         "self._window = window.renewed(first_sent)", "self._window = window.renewed(self._clock.boottime())",
         unit("node_heartbeat", "trust_counts_from_the_start_of_the_attempt"))
Mutation("M71", "rule 11", "node/heartbeat.py", "trust counts from the last transmission of a renewal",
         "            if first_sent is None:\n                first_sent = now\n", "            first_sent = now\n",
         unit("node_heartbeat", "two_transmissions_counts_from_the_first"))
Mutation("M72", "rule 11", "node/heartbeat.py", "the heartbeat never calls the lease lost",
         "            if not window.trusts(now):\n", "            if False:\n",
         unit("node_heartbeat", "it_stops_at_stop_at_and_is_lost_at_trusted_until"))
Mutation("M73", "C11", "node/heartbeat.py", "what was given up is renewed",
         "            if stopped:  # given up for good: no further renewal, or nobody could take over\n", "            if False:\n",
         unit("node_heartbeat", "c11_given_up_means_no_further_renewal"))
Mutation("M74", "rule 17", "node/heartbeat.py", "a renewal waits as long as it likes",
         "min(self._timing.call_timeout_s, mark - now)", "3600.0",
         unit("node_heartbeat", "renewals_stay_under_their_time_limit"))
Mutation("M75", "rule 3", "node/initiation.py", "a claim is repeated with a new token",
         "return await means.store.claim(request)", "return await means.store.claim(replace(request, token=new_token()))",
         unit("node_initiation", "c2_a_claim_whose_reply_is_lost_is_repeated_with_the_same_token"))
Mutation("M76", "C21", "node/initiation.py", "what the table says is joined, whatever the store says",
         "if record is None or (record.epoch, record.token) != (tenure.lease.epoch, tenure.lease.token):", "if record is None:",
         unit("node_initiation", "c21_local_answer_is_not_stale"))
Mutation("M77", "C2", "node/initiation.py", "a late answer replaces a later claim",
         "if before is not None and before.lease.epoch >= held.lease.epoch:", "if False:",
         unit("node_initiation", "an_answer_that_comes_after_that_of_a_later_claim_begins_nothing"))
Mutation("M78", "C17", "node/initiation.py", "a runtime that never became ready is attached",
         "if name is None or not tenure.fold.runtime_ready or not named_by(", "if name is None or not named_by(",
         unit("node_initiation", "c17_a_runtime_that_was_requested_but_never_ready"))
Mutation("M79", "rule 15", "node/release.py", "a failed start is tried again at once, for ever",
         "retry_in_s=None if failure.permanent else back_off,", "retry_in_s=None,",
         unit("node_initiation", "c19_backoff_and_poison"))
Mutation("M80", "C8", "node/tenure.py", "a rewound journal is read on",
         REWOUND, "            if False:",
         unit("node_tenure", "c8_an_owner_that_reads_a_rewound_journal"))
Mutation("M81", "rule 1", "node/tenure.py", "the loss is swallowed: a refused append counts as written",
         FENCED, WRITTEN,
         unit("node_tenure", "c1_the_late_write_of_a_loser"))
Mutation("M82", "rule 11", "node/tenure.py", "a tenure asks nobody whether it may still act",
         "        if self._loss is None and not self.state.ended and self.means.trusts():\n            return\n", "        if self._loss is None and not self.state.ended:\n            return\n",
         unit("node_tenure", "who_wakes_from_a_pause_does_nothing"))
Mutation("M83", "rule 5", "node/tenure.py", "batches go out side by side",
         "        async with self._door:\n            self.insist()\n            if unless", "        if True:\n            self.insist()\n            if unless",
         unit("node_tenure", "one_batch_is_under_way_at_a_time"))
Mutation("M84", "rule 13", "conversation/planning.py", "an idempotent call is interrupted first",
         "if idempotent_too or not c.idempotent]", "]",
         unit("node_turns", "c16_an_idempotent_call_is_not_interrupted_first"))
Mutation("M85", "G7", "conversation/planning.py", "a call that was cut keeps an unknown fate",
         '        write(*interrupt_calls(provisional, "owner lost"))\n', "        pass\n",
         unit("plan", "no_call_is_left_whose_outcome_is_unknown"))
Mutation("M86", "rule 15", "conversation/planning.py", "a turn that kills its owners is tried for ever",
         "    if turn is not None and lost > lost_limit:\n", "    if False:\n",
         unit("node_turns", "a_turn_that_costs_its_owners_their_lives_is_abandoned"))
Mutation("M87", "rule 14", "node/release.py", "a runtime is destroyed before the journal says so",
         "    await tenure.release(reason, lambda fold: _discarding(tenure, fold, reason.value))\n", "    await tenure.release(reason)\n",
         unit("node_initiation", "c17_destroyed_only_after_the_journal_says_so"))
Mutation("M88", "rule 14", "node/reaper.py", "the reaper takes runtimes that nobody retired",
         "if name in state.retired:", "if name:",
         unit("node_reaper", "a_current_runtime_is_never_reaped"))
Mutation("M89", "rule 7", "node/claimer.py", "what the store calls mine is mine, though the table holds nothing",
         SAME_LEASE + "\n            return False", "if tenure is None:\n            return wanted.owner == self._incarnation.id",
         unit("node_initiation", "c2_already_mine_but_no_loop_runs_is_found_by_the_sweep"))
Mutation("M90", "rule 16", "node/claimer.py", "a draining node claims on",
         "if self._incarnation.draining or not self._incarnation.trusts():", "if not self._incarnation.trusts():",
         unit("node_drain", "a_draining_node_claims_nothing"))
Mutation("M91", "C23", "node/claimer.py", "a lease that a step of the clock made long is believed",
         "if node.expires_in_s <= 0 or node.expires_in_s > self._means.config.ttl_s:", "if node.expires_in_s <= 0:",
         unit("node_claimer", "c23_a_lease_that_a_step_of_the_stores_clock_made_long"))
Mutation("M92", "rule 12", "node/witness.py", "a closed pipe counts as the end of the process",
         "            if not chunk:\n                poller.unregister(sys.stdin.fileno())\n", "            if not chunk:\n                return True\n",
         unit("node_witness", "c13_it_buries_at_once_when_the_process_is_killed_and_never_before"))
Mutation("M93", "C24", "node/incarnation.py", "a forked child believes that it holds what its parent holds",
         "    for incarnation in _OF_THIS_PROCESS:\n        incarnation.given_up = True\n", "    return\n",
         unit("node_heartbeat", "c24_a_forked_child_holds_nothing"))
Mutation("M94", "rule 11", "node/drain.py", "a new incarnation registers while old loops run",
         "    if await incarnation.ended(patience_s):\n        return True\n", "    return True\n",
         unit("node_node", "old_loops_end_then_it_retires_then_the_next_one_registers"))
Mutation("M95", "rule 9", "node/initiation.py", "a stop waits for a provider that is down",
         "        if not todo.then.needs_loop:\n            return let_go(tenure, todo)\n", "",
         unit("node_initiation", "c18_stop_is_settled_while_the_provider_is_down"))
Mutation("M96", "rule 3", "node/claimer.py", "a batch of claims whose answer was lost is forgotten",
         "                failures = min(failures + 1, 8)\n                await asyncio.sleep(0.01 * 2**failures * self._means.rng.uniform(0.5, 1.5))\n", "                return ()\n",
         unit("node_claimer", "c2_a_batch_of_claims_whose_answer_is_lost"))
Mutation("M97", "rule 10", "node/claimer.py", "the expired are never buried",
         "                await self._means.store.bury(node.incarnation, Death.EXPIRED)\n", "                continue\n",
         unit("node_claimer", "a_dead_owners_work_goes_on_with_nobody_asking"))
# fmt: on
