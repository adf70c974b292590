"""Edits to the functions that a PostgreSQL server runs, and to the code that calls them."""

from catalogue import Killers, Mutation, suite


def postgres(case: str) -> Killers:
    return suite("postgres", case)


def locks(which: str) -> Killers:
    return Killers("tests/conformance/test_postgres_locks.py", which)


def opening(which: str) -> Killers:
    return Killers("tests/conformance/test_postgres_opening.py", which)


def work(which: str) -> Killers:
    return Killers("tests/conformance/test_postgres_work.py", which)


def hints(which: str) -> Killers:
    return Killers("tests/conformance/test_postgres_hints.py", which)


MANY = Killers("tests/conformance/test_postgres_many.py", "in_a_group_each_is_answered_as_if_it_had_come_alone")
HELD = Killers("tests/conformance/test_postgres_many.py", "a_group_leaves_alone_the_row_that_somebody_holds")
SQL = "stores/postgres/sql/functions"
LOCKED = "SELECT * INTO c FROM conversations x WHERE x.id = q.id FOR UPDATE SKIP LOCKED;"

# fmt: off
Mutation("M110", "rule 1", f"{SQL}/append.sql", "the fence does not compare the epoch",
         "OR c.owner IS DISTINCT FROM q.incarnation OR c.epoch <> q.epoch\n", "OR c.owner IS DISTINCT FROM q.incarnation\n",
         postgres("rule_01_an_append_needs_the_lease_that_is_held"))
Mutation("M111", "C1", f"{SQL}/append.sql", "the fence does not compare the token",
         "\n                OR c.token IS DISTINCT FROM q.token THEN 'fenced'", " THEN 'fenced'",
         postgres("c1_the_token_fences_where_the_epoch_repeats"))
Mutation("M112", "rule 1", f"{SQL}/append.sql", "the fence does not compare the owner",
         "OR c.owner IS DISTINCT FROM q.incarnation OR c.epoch", "OR c.epoch",
         postgres("rule_01_a_release_needs_the_lease_that_is_held"))
Mutation("M113", "rule 5", f"{SQL}/append.sql", "gaps between batches pass",
         "WHEN q.number <> c.number + 1 OR", "WHEN q.number <= c.number OR",
         postgres("rule_05_the_next_batch_is_the_last_one_plus_one"))
Mutation("M114", "rule 5", f"{SQL}/append.sql", "a rewound store is not noticed",
         " OR q.seen > c.head THEN 'fenced'", " THEN 'fenced'",
         postgres("rule_05_a_rewound_store_is_noticed"))
Mutation("M115", "C4", f"{SQL}/append.sql", "a number that was used is a repetition, whatever it brings",
         "AND q.number > 0 AND c.digest = q.digest THEN", "AND q.number > 0 THEN",
         postgres("c4_the_same_number_with_another_content"))
Mutation("M116", "C1", f"{SQL}/append.sql", "a release leaves owner and token in the record",
         "            c.owner := NULL; c.owner_node := NULL; c.owner_address := NULL; c.owner_since := NULL; c.token := NULL;\n", "",
         postgres("c1_late_append_after_release"))
Mutation("M117", "C6", f"{SQL}/append.sql", "the row is read and not locked",
         LOCKED, "SELECT * INTO c FROM conversations x WHERE x.id = q.id;",
         locks("c6_an_append_waits_for_a_claim_and_is_fenced"))
Mutation("M118", "C15", f"{SQL}/append.sql", "a group waits for a row that somebody holds",
         LOCKED, "SELECT * INTO c FROM conversations x WHERE x.id = q.id FOR UPDATE;",
         HELD)
Mutation("M119", "C3", f"{SQL}/claim.sql", "a claim compares no epoch",
         "WHEN c.epoch <> q.expected_epoch THEN 'stale'", "WHEN false THEN 'stale'",
         postgres("c3_late_copy_of_a_claim"))
Mutation("M120", "G1", f"{SQL}/claim.sql", "a live owner is replaced",
         "AND NOT q.forced AND c.owner IS DISTINCT FROM buried THEN", "AND false THEN",
         postgres("g1_a_live_owner_keeps_what_it_holds"))
Mutation("M121", "C2", f"{SQL}/claim.sql", "mine is mine, whatever the token",
         "ELSIF c.owner = q.incarnation AND c.token = q.token THEN", "ELSIF c.owner = q.incarnation THEN",
         postgres("c2_mine_with_another_token_is_a_new_claim"))
Mutation("M122", "C5", f"{SQL}/nodes.sql", "the time of a renewal is that of its transaction's start",
         "now := store_now(clock);\n    IF NOT FOUND", "now := coalesce(clock[1], extract(epoch FROM now())::float8);\n    IF NOT FOUND",
         locks("c5_a_lease_that_ran_out_while_its_renewal_waited_is_not_renewed"))
Mutation("M123", "C5", f"{SQL}/nodes.sql", "whoever is asked about is buried",
         "(asked_why <> 'expired' OR left_s <= 0)", "true",
         postgres("c5_a_renewal_before_expiry_is_seen_by_the_burial"))
Mutation("M124", "C24", f"{SQL}/nodes.sql", "two copies of one process renew",
         "(at_beat = n.beat - 1 AND with_nonce = n.nonce)", "at_beat = n.beat - 1",
         postgres("c24_a_second_copy_of_the_process_is_dead"))
Mutation("M125", "C7", f"{SQL}/read.sql", "the sweep leaves out what the dead own",
         "JOIN nodes n ON n.incarnation = o.owner WHERE n.death IS NOT NULL", "JOIN nodes n ON n.incarnation = o.owner WHERE false",
         postgres("c7_message_after_its_owner_died_idle"))
Mutation("M126", "G4", f"{SQL}/submit.sql", "a key is not remembered",
         "        INSERT INTO keys (conversation, key, seq, digest) VALUES (c.created_no, q.key, seq, q.digest);\n", "",
         postgres("rule_18_the_same_key_is_the_same_command"))
Mutation("M127", "rule 4", f"{SQL}/change.sql", "a tombstone keeps the last claim's epoch",
         "epoch = u.epoch + 1, deleted = true", "deleted = true",
         postgres("rule_04_the_epoch_survives_deletion"))
Mutation("M128", "rule 1", f"{SQL}/many.sql", "many appends do not compare the token",
         "          AND u.token = q.token AND u.number + 1", "          AND u.number + 1", MANY)
Mutation("M129", "rule 5", f"{SQL}/many.sql", "many appends pass gaps",
         "u.number + 1 = q.number", "u.number < q.number", MANY)
Mutation("M130", "port 5", f"{SQL}/many.sql", "many messages know no limit",
         " AND u.unsettled < most_unsettled\n", "\n", MANY)
Mutation("M131", "G1", f"{SQL}/many.sql", "many claims replace a live owner",
         "AND (c.owner IS NULL OR (SELECT", "AND (true OR (SELECT", MANY)
Mutation("M132", "C3", f"{SQL}/many.sql", "many claims compare no epoch",
         "AND NOT c.deleted AND c.epoch = q.expected_epoch AND", "AND NOT c.deleted AND", MANY)
Mutation("M133", "rule 17", "stores/postgres/lanes.py", "what the function for many leaves alone counts as refused",
         "            item.plain = False\n            self.put(item)\n", "            _fail(item, StoreUnavailableError('left alone'))\n", MANY)
Mutation("M134", "C15", f"{SQL}/many.sql", "many wait for a row that somebody holds",
         "ORDER BY c.id FOR UPDATE SKIP LOCKED) l", "ORDER BY c.id FOR UPDATE) l",
         HELD)
Mutation("M135", "section 5", "stores/postgres/link.py", "a role decides whether commits are durable",
         "WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END", "WHEN 'remote_apply' THEN 'remote_apply' ELSE current_setting('synchronous_commit') END",
         opening("synchronous_commit_is_set_whatever_the_role_says"))
Mutation("M136", "section 5", "stores/postgres/schema.py", "tables of a later time are opened",
         "    if oldest > SCHEMA:\n", "    if False:\n",
         opening("tables_of_a_release_that_does_not_know_us_any_more"))
Mutation("M137", "port 16", f"{SQL}/publish.sql", "a delta is not fenced",
         "c.owner = q.incarnation AND c.epoch = q.epoch AND c.token = q.token THEN", "true THEN",
         postgres("rule_01_a_delta_is_fenced"))
Mutation("M150", "section 5", "stores/postgres/hints.py", "hints go out without a pause",
         "            await asyncio.sleep(SLICE_S)\n", "            await asyncio.sleep(0)\n",
         hints("between_two_tellings_there_is_a_pause"))
Mutation("M151", "section 5", "stores/postgres/hints.py", "each hint is notified by itself",
         "            told, self._untold = self._untold, {}\n", "            told = dict([self._untold.popitem()])\n",
         hints("what_happens_at_one_moment_is_told_in_a_few_transactions"))
Mutation("M152", "port 14", "stores/postgres/hints.py", "of what happens at one moment the last is told",
         "            self._untold[name] = (conversation, head)\n", "            self._untold = {name: (conversation, head)}\n",
         hints("what_happens_at_one_moment_is_told_in_a_few_transactions"))
Mutation("M153", "port 14", "stores/postgres/hints.py", "a store hears its own hints twice",
         "        if me == self._me:\n            return\n", "",
         hints("what_a_store_tells_it_does_not_hear_again"))
Mutation("M154", "port 14", "stores/postgres/hints.py", "nobody is told that hints were missed",
         "            if self._lapsed:\n", "            if False:\n",
         Killers("tests/conformance/test_hints.py", "listening_that_fails_begins_anew_and_says_so and postgres"))
Mutation("M155", "section 5", f"{SQL}/append.sql", "a write notifies",
         "        first := c.head + 1;\n", "        first := c.head + 1; PERFORM pg_notify('tenure', q.id);\n",
         Killers("tests/conformance/test_postgres_outages.py", "no_write_notifies"))
Mutation("M156", "section 5", "stores/postgres/fitness.py", "a pooler passes whose session was there once",
         "return set(seen) == {(seen[0][0], mark)}", "return any(found == mark for _, found in seen)",
         opening("transaction_pooling_is_refused_with_the_remedy"))
Mutation("M157", "section 5", "stores/postgres/schema.py", "a migration holds up the release before",
         "SET LOCAL lock_timeout = '{LOCK_MS}ms'", "SET LOCAL lock_timeout = '50s'",
         opening("a_migration_gives_way_to_the_release_before"))
Mutation("M158", "rule 1", f"{SQL}/one.sql", "a lone append does not compare the token",
         "\n      AND u.token = of_token AND u.number", "\n      AND u.number",
         postgres("c1_the_token_fences_where_the_epoch_repeats"))
Mutation("M159", "rule 1", f"{SQL}/one.sql", "a lone append does not compare the epoch",
         " AND u.epoch = of_epoch\n", "\n",
         Killers("tests/conformance/test_postgres_many.py", "rule_01_a_plain_append_needs_the_lease_that_is_held"))
Mutation("M160", "rule 5", f"{SQL}/one.sql", "a lone append passes gaps",
         "u.number + 1 = of_number", "u.number < of_number",
         postgres("rule_05_the_next_batch_is_the_last_one_plus_one"))
Mutation("M161", "rule 5", f"{SQL}/one.sql", "a lone append does not notice a rewound store",
         " AND u.head >= of_seen\n", "\n",
         postgres("rule_05_a_rewound_store_is_noticed"))
Mutation("M162", "C15", f"{SQL}/one.sql", "a lone append waits for a row that somebody holds",
         "FOR UPDATE SKIP LOCKED;", "FOR UPDATE;", HELD)
Mutation("M163", "section 5", "stores/postgres/sql/migrations/0001_tables.sql", "a sweep goes through all that is stored",
         "CREATE INDEX conversations_wanted ON conversations (owner, agent, not_before, created_no) WHERE wanted;\n", "",
         work("a_sweep_looks_at_what_it_finds_whatever_is_stored"))
Mutation("M164", "section 5", "stores/postgres/sql/migrations/0001_tables.sql", "a reader goes through all journals",
         "    delivery     text,\n    PRIMARY KEY (conversation, seq) ", "    delivery     text ",
         work("no_operation_goes_through_a_table"))
Mutation("M165", "C15", f"{SQL}/submit.sql", "a group of messages waits for a row that somebody holds",
         LOCKED, "SELECT * INTO c FROM conversations x WHERE x.id = q.id FOR UPDATE;", HELD)
Mutation("M166", "C15", f"{SQL}/claim.sql", "a group of claims waits for a row that somebody holds",
         LOCKED, "SELECT * INTO c FROM conversations x WHERE x.id = q.id FOR UPDATE;", HELD)
# fmt: on
