"""Edits to the scripts that a Redis server runs."""

from catalogue import Killers, Mutation, suite


def redis(case: str) -> Killers:
    return suite("redis", case)


OUTAGES = "tests/conformance/test_redis_outages.py"
FENCE = "record.owner == lease.incarnation and int(record.epoch) == lease.epoch and record.token == lease.token"
NEXT = "tonumber(batch.number) == record.number + 1 and tonumber(batch.seen) <= record.head"
EPOCH = "record.epoch = math.max(record.epoch, journal_epoch, tonumber(claimant.floor)) + 1"
COMPARED = "if int(record.epoch) ~= expected_epoch then"
LET_GO = "  after.owner, after.owner_node, after.owner_address, after.owner_since = false, false, false, 0\n  after.token, after.started"

# fmt: off
Mutation("M01", "rule 1", "stores/redis/lua/shared/fence.lua", "the fence does not compare the epoch",
         FENCE, "record.owner == lease.incarnation and record.token == lease.token",
         redis("rule_01_an_append_needs_the_lease_that_is_held"))
Mutation("M02", "C1", "stores/redis/lua/shared/fence.lua", "the fence does not compare the token",
         FENCE, "record.owner == lease.incarnation and int(record.epoch) == lease.epoch",
         redis("c1_the_token_fences_where_the_epoch_repeats"))
Mutation("M03", "rule 1", "stores/redis/lua/shared/fence.lua", "the fence does not compare the owner",
         FENCE, "int(record.epoch) == lease.epoch and record.token == lease.token",
         redis("rule_01_a_release_needs_the_lease_that_is_held"))
Mutation("M04", "C8", "stores/redis/lua/release.lua", "a release is not fenced",
         "local next = holds(before, lease) and is_next(before, batch)", "local next = is_next(before, batch)",
         redis("c8_late_copy_of_a_release_after_the_next_claim"))
Mutation("M05", "rule 1", "stores/redis/lua/publish.lua", "a delta is not fenced",
         "if not holds(record, lease) then", "if false then",
         redis("rule_01_a_delta_is_fenced"))
Mutation("M06", "C1", "stores/redis/lua/release.lua", "a release leaves owner and token in the record",
         LET_GO, "  after.started",
         redis("c1_late_append_after_release"))
Mutation("M07", "C3", "stores/redis/lua/claim.lua", "a claim compares no epoch",
         COMPARED, "if false then",
         redis("c3_late_copy_of_a_claim"))
Mutation("M08", "C3", "stores/redis/lua/claim.lua", "a takeover by force compares no epoch",
         COMPARED, "if int(record.epoch) ~= expected_epoch and forced ~= '1' then",
         redis("c3_late_copy_of_a_forced_takeover"))
Mutation("M09", "rule 2", "stores/redis/lua/claim.lua", "a repeated claim is refused",
         "if mine and record.token == token then", "if false then",
         redis("rule_02_a_repeated_claim_gets_the_same_lease"))
Mutation("M10", "C2", "stores/redis/lua/claim.lua", "mine is mine, whatever the token",
         "if mine and record.token == token then", "if mine then",
         redis("c2_mine_with_another_token_is_a_new_claim"))
Mutation("M11", "C2", "stores/redis/lua/claim.lua", "batches are counted on after a claim",
         "  record.number, record.digest, record.result = 0, false, false\n", "",
         redis("c2_batches_are_counted_anew_after_a_claim"))
Mutation("M12", "G1", "stores/redis/lua/claim.lua", "a live owner is replaced",
         "if record.owner and not mine and forced ~= '1' and not is_dead(register, record.owner) then", "if false then",
         redis("g1_a_live_owner_keeps_what_it_holds"))
Mutation("M13", "rule 4", "stores/redis/lua/claim.lua", "the floor is ignored",
         EPOCH, "record.epoch = math.max(record.epoch, journal_epoch) + 1",
         redis("rule_04_the_floor_raises_the_epoch"))
Mutation("M14", "rule 4", "stores/redis/lua/rebuild.lua", "a record is made anew over a journal that has moved on",
         "if redis.call('EXISTS', lock) == 1 or int(last_epoch) ~= epoch or int(last_seq) ~= seq then return 0 end", "if false then return 0 end",
         Killers(OUTAGES, "found_again_meanwhile"))
Mutation("M15", "rule 4", "stores/redis/lua/delete.lua", "a tombstone keeps the last claim's epoch",
         "after.epoch, after.deleted, after.version = before.epoch + 1, 1, 1", "after.epoch, after.deleted, after.version = before.epoch, 1, 1",
         redis("rule_04_the_epoch_survives_deletion"))
Mutation("M16", "rule 5", "stores/redis/lua/shared/batch.lua", "any number is the next one",
         NEXT, "tonumber(batch.seen) <= record.head",
         redis("rule_05_the_next_batch_is_the_last_one_plus_one"))
Mutation("M17", "C8", "stores/redis/lua/shared/batch.lua", "a rewound store is not noticed",
         NEXT, "tonumber(batch.number) == record.number + 1",
         redis("rule_05_a_rewound_store_is_noticed"))
Mutation("M18", "C4", "stores/redis/lua/append.lua", "the same number is the same batch, whatever it holds",
         "number == int(before.number) and digest == before.digest then", "number == int(before.number) then",
         redis("c4_the_same_number_with_another_content"))
Mutation("M19", "rule 5", "stores/redis/lua/append.lua", "a repeated batch is refused",
         "if held and before.result and", "if false and",
         redis("rule_05_a_repeated_batch_gets_the_first_answer"))
Mutation("M20", "rule 5", "stores/redis/lua/release.lua", "any release of the lease is the same release",
         " and record.released_digest == digest", "",
         redis("only_this_very_release_is_repeated"))
Mutation("M21", "C7", "stores/redis/lua/shared/batch.lua", "wanted is what the owner says, though a command came",
         "(batch.runnable == '1' or record.last_command > seen)", "(batch.runnable == '1')",
         redis("c7_a_message_that_arrives_while_the_turn_ends"))
Mutation("M22", "rule 6", "stores/redis/lua/submit.lua", "a command wakes only what nobody owns",
         "record.wanted, record.failed, record.updated_at = 1, 0, at", "record.wanted, record.failed, record.updated_at = record.owner and record.wanted or 1, 0, at",
         redis("c7_message_to_a_live_idle_owner"))
Mutation("M23", "C9", "stores/redis/lua/shared/batch.lua", "what a turn settles is not counted down",
         "    record.unsettled = record.unsettled - 1\n", "",
         redis("c9_what_a_turn_settles_is_a_list"))
Mutation("M24", "rule 6", "stores/redis/lua/shared/batch.lua", "a stop wins over a start that came later",
         "record.stopped = record.last_start <= seen and 1 or 0", "record.stopped = 1",
         redis("stopped_takes_effect_unless_a_start_came_unseen"))
Mutation("M25", "rule 10", "stores/redis/lua/register.lua", "the buried get a second life",
         "if redis.call('HSETNX', register, incarnation, 'registered') == 0 then", "if redis.call('HSET', register, incarnation, 'registered') == 0 and redis.call('HEXISTS', node, 'dead') == 0 then",
         redis("rule_10_an_incarnation_is_registered_once_ever"))
Mutation("M26", "rule 10", "stores/redis/lua/renew.lua", "the expired renew",
         "if dead or now >= tonumber(expires) then", "if dead then",
         redis("an_expired_lease_is_never_renewed"))
Mutation("M27", "C5", "stores/redis/lua/renew.lua", "the buried renew",
         "if dead or now >= tonumber(expires) then", "if now >= tonumber(expires) then",
         redis("c5_dead_is_stable"))
Mutation("M28", "C24", "stores/redis/lua/renew.lua", "two copies of one process renew",
         " or nonce ~= last_nonce then", " then",
         redis("c24_a_second_copy_of_the_process_is_dead"))
Mutation("M29", "C5", "stores/redis/lua/bury.lua", "whoever is asked about is buried",
         "if why == 'expired' and left > 0 then", "if false then",
         redis("c5_a_renewal_before_expiry_is_seen_by_the_burial"))
Mutation("M30", "C23", "stores/redis/lua/bury.lua", "a clock that went back is believed",
         "math.min(tonumber(expires or 0) - now, tonumber(ttl or 0))", "tonumber(expires or 0) - now",
         redis("c23_a_clock_that_went_back_is_clamped"))
Mutation("M31", "rule 10", "stores/redis/lua/bury.lua", "the unknown are dead",
         "if not known then return { 'alive', '' } end", "if not known then return { 'buried' } end",
         redis("rule_10_unknown_is_not_dead"))
Mutation("M32", "rule 15", "stores/redis/lua/claim.lua", "lost owners are not counted",
         "then record.lost = record.lost + 1 end", "then record.lost = record.lost end",
         redis("rule_15_lost_counts_owners_that_did_not_release_during_a_turn"))
Mutation("M33", "rule 15", "stores/redis/lua/release.lua", "there is no back-off",
         "if retry_in ~= '' and after.last_start <= tonumber(seen) then", "if false then",
         redis("rule_15_the_back_off_is_judged_by_the_store"))
Mutation("M34", "rule 18", "stores/redis/lua/submit.lua", "a key is all that counts, whatever the body",
         "if of == digest then", "if true then",
         redis("rule_18_the_same_key_with_another_body_is_refused"))
Mutation("M35", "G4", "stores/redis/lua/submit.lua", "a key is not remembered",
         "  redis.call('HSET', keys, key, int(record.head) .. ' ' .. digest)\n", "",
         redis("rule_18_the_same_key_is_the_same_command"))
Mutation("M36", "rule 4", "stores/redis/lua/submit.lua", "a deleted id is used again",
         "  if before.deleted == 1 then return { 'deleted', int(before.epoch) } end\n", "",
         redis("rule_04_a_deleted_id_is_never_used_again"))
Mutation("M37", "rule 7", "stores/redis/lua/shared/record.lua", "the index of owners is not kept",
         "  shift(indexes.owners, was and before.owner or false, is and after.owner or false)\n", "",
         redis("rule_07_the_dead_owners_are_wanted"))
Mutation("M38", "port 15", "stores/redis/lua/amend.lua", "changes compare no version",
         "if int(before.version) ~= version then", "if false then",
         redis("an_old_version_changes_nothing"))
Mutation("M39", "port 18", "stores/redis/lua/put_paper.lua", "a paper is overwritten, whatever its version",
         "if (old and old:match('^%d+') or '0') ~= version then return 0 end", "if false then return 0 end",
         redis("a_paper_is_written_by_compare_and_swap"))
Mutation("M40", "port 17", "stores/redis/lua/seal.lua", "a secret is overwritten, whatever its version",
         "if (old and old:match('^%d+') or '0') ~= version then", "if false then",
         redis("a_secret_is_replaced_by_compare_and_swap"))
Mutation("M41", "port 19", "stores/redis/lua/shared/fence.lua", "the log of refused writes grows without end",
         "  redis.call('LTRIM', refusals, 0, tonumber(most) - 1)\n", "",
         redis("the_log_of_refusals_is_bounded"))
Mutation("M42", "section 5", "stores/redis/lua/renew.lua", "a node that the register has lost is not dead",
         "  redis.call('HSET', register, incarnation, 'dead')\n  return { 'dead' }", "  return { 'dead' }",
         Killers(OUTAGES, "a_node_that_the_register_has_lost"))
Mutation("M98", "rule 1", "stores/redis/lua/append_many.lua", "a plain batch is not fenced",
         "if not (holds(record, lease) and is_next(record, batch)) then return '' end", "if not is_next(record, batch) then return '' end",
         Killers("tests/conformance/test_redis_traffic.py", "plain_batches_of_many"))
Mutation("M99", "C4", "stores/redis/lua/append_many.lua", "a plain batch has any number",
         "if not (holds(record, lease) and is_next(record, batch)) then return '' end", "if not holds(record, lease) then return '' end",
         redis("rule_05_the_next_batch_is_the_last_one_plus_one"))
# fmt: on
