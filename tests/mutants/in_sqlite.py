"""Edits to the SQL of the embedded store, and to the code that sends it."""

from catalogue import Killers, Mutation, suite, unit


def sqlite(case: str) -> Killers:
    return suite("sqlite", case)


# fmt: off
Mutation("M50", "rule 10", "stores/sqlite/statements.py", "the buried get a second life",
         "ON CONFLICT (incarnation) DO NOTHING", "ON CONFLICT (incarnation) DO UPDATE SET dead = 0",
         sqlite("rule_10_an_incarnation_is_registered_once_ever"))
Mutation("M51", "rule 10", "stores/sqlite/registry.py", "the expired renew",
         "if dead or tx.store_now >= expires:", "if dead:",
         sqlite("an_expired_lease_is_never_renewed"))
Mutation("M52", "C5", "stores/sqlite/registry.py", "the buried renew",
         "if dead or tx.store_now >= expires:", "if tx.store_now >= expires:",
         sqlite("c5_dead_is_stable"))
Mutation("M53", "C24", "stores/sqlite/registry.py", "two copies of one process renew",
         "beat == last_beat - 1 and nonce == last_nonce", "beat == last_beat - 1",
         sqlite("c24_a_second_copy_of_the_process_is_dead"))
Mutation("M54", "C5", "stores/sqlite/registry.py", "whoever is asked about is buried",
         "if why is Death.EXPIRED and left > 0:", "if False:",
         sqlite("c5_a_renewal_before_expiry_is_seen_by_the_burial"))
Mutation("M55", "C23", "stores/sqlite/registry.py", "a clock that went back is believed",
         "left = min(expires - tx.store_now, ttl_s)", "left = expires - tx.store_now",
         sqlite("c23_a_clock_that_went_back_is_clamped"))
Mutation("M56", "rule 10", "stores/sqlite/registry.py", "the unknown are dead",
         '        return Alive(float("inf"))\n', "        return Buried()\n",
         sqlite("rule_10_unknown_is_not_dead"))
Mutation("M57", "C7", "stores/sqlite/statements.py", "the sweep leaves out what the dead own",
         "nodes.incarnation = owners.owner WHERE nodes.dead <> 0", "nodes.incarnation = owners.owner WHERE nodes.dead > 9",
         sqlite("c7_message_after_its_owner_died_idle"))
Mutation("M58", "rule 15", "stores/sqlite/statements.py", "the sweep asks for no back-off",
         "AND agent = ? AND not_before <= ?", "AND agent = ? AND not_before <= ? + 1e12",
         sqlite("rule_15_the_back_off_is_judged_by_the_store"))
Mutation("M59", "G4", "stores/sqlite/transaction.py", "a key is not remembered",
         "                self._keys[kept.created_no, event.key] = stands\n", "",
         sqlite("rule_18_the_same_key_is_the_same_command"))
Mutation("M60", "G4", "stores/sqlite/transaction.py", "a commit is not synced to the disk",
         "PRAGMA synchronous={'FULL' if durable else 'NORMAL'}", "PRAGMA synchronous={'NORMAL' if durable else 'OFF'}",
         unit("sqlite_file", "a_commit_is_durable"))
Mutation("M61", "rule 1", "stores/sqlite/transaction.py", "rows in memory are good whatever others wrote",
         "if changes != self._changes or len(self._rows) > ROWS_IN_MEMORY:", "if len(self._rows) > ROWS_IN_MEMORY:",
         unit("sqlite_lane", "another_writer_is_noticed"))
Mutation("M62", "section 5", "stores/sqlite/transaction.py", "a file that was moved away is written on",
         '        self.connection.execute("BEGIN IMMEDIATE")\n        self._file.check()\n        changes,', '        self.connection.execute("BEGIN IMMEDIATE")\n        changes,',
         unit("sqlite_file", "a_file_that_is_no_longer_there"))
Mutation("M63", "rule 4", "stores/sqlite/transaction.py", "the dead claim",
         "claimant_dead=self._dead(request.incarnation) is not False,", "claimant_dead=False,",
         Killers("tests/conformance/test_stores.py", "can_tell_that_a_claimant_is_dead and sqlite"))
Mutation("M64", "G1", "stores/sqlite/transaction.py", "every owner counts as buried",
         "owner_dead=owner is not None and self._dead(owner.incarnation) is True,", "owner_dead=True,",
         sqlite("g1_a_live_owner_keeps_what_it_holds"))
Mutation("M65", "rule 9", "stores/sqlite/statements.py", "a new fold takes the loop's own state with it",
         "loop = coalesce(excluded.loop, loop)", "loop = excluded.loop",
         sqlite("a_snapshot_replaces_the_last_one_part_by_part"))
Mutation("M66", "rule 4", "stores/sqlite/statements.py", "deletion leaves the vault",
         '    "DELETE FROM vault WHERE conversation = ?",\n', "",
         sqlite("deleting_erases_all_but_the_record"))
Mutation("M67", "port 19", "stores/sqlite/transaction.py", "the log of refused writes grows without end",
         '        self.connection.execute(sql.TRIM_REFUSALS, {"conversation": kept.created_no, "kept": self.limits.refusals})\n', "",
         sqlite("the_log_of_refusals_is_bounded"))
Mutation("M68", "rule 1", "stores/sqlite/transaction.py", "a delta is not fenced",
         "        if not rules.holds(row, lease):\n", "        if False:\n",
         sqlite("rule_01_a_delta_is_fenced"))
Mutation("M69", "port 18", "stores/sqlite/registry.py", "a paper is overwritten, whatever its version",
         "    old = tx.connection.execute(sql.PAPER, (kind, id)).fetchone()\n    if (old[1] if old else 0) != version:", "    if False:",
         sqlite("a_paper_is_written_by_compare_and_swap"))
# fmt: on
