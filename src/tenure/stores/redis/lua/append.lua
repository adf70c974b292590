-- append: an owner's batch, through the fence (rules 1, 5 and 6).
--
-- KEYS lock journal keys snapshot refusals wanted owners named
-- ARGV given channel
--      incarnation epoch token refusals_limit
--      number seen digest large
--      settle runnable settled turn turn_ended started stopped failed agent_status
--      snapshot_seq fold loop
--      *events
-- includes clock record journal batch fence hints
--
-- `events` are triples of kind, body, rest. `large` is 1 where one is larger than the store takes; then none was sent. `settled`
-- are seqs between blanks. Answers: fenced [record], repeated result, large, appended result.

local lock, journal, keys, snapshot, refusals, wanted, owners, named = unpack(KEYS)
local given, channel,
  incarnation, epoch, token, refusals_limit,
  number, seen, digest, large,
  settle, runnable, settled, turn, turn_ended, started, stopped, failed, agent_status,
  snapshot_seq, fold, loop
  = unpack(ARGV, 1, 22)

local lease = { incarnation = incarnation, epoch = epoch, token = token }
local batch = {
  number = number, seen = seen, digest = digest, settle = settle, runnable = runnable, settled = settled, turn = turn,
  turn_ended = turn_ended, started = started, stopped = stopped, failed = failed, agent_status = agent_status,
}

local before = load(lock)
if not before then return { 'fenced' } end
local now, at = clock(given)
local held = holds(before, lease)
if held and before.result and number == int(before.number) and digest == before.digest then
  return { 'repeated', before.result }
end
local next = held and is_next(before, batch)
if next and large == '1' then return { 'large' } end
local after = next and take(journal, keys, before, lease, batch, at, 23)
if not after then
  refuse(refusals, at, 'append', lease, refusals_limit)
  return { 'fenced', shown(lock, now) }
end
keep_snapshot(snapshot, snapshot_seq, fold, loop)
save(lock, { wanted = wanted, owners = owners, named = named }, before, after)
tell_moved(channel, after)
return { 'appended', after.result }
