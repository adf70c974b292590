-- claim: make the incarnation the owner, by compare-and-swap on the epoch that the caller saw (rules 2 and 4).
--
-- KEYS lock journal epochs wanted owners named created *register
-- ARGV given channel conversation
--      incarnation token expected_epoch node address body forced floor claimant_dead
--      event asked_agent agent user_id asked_settings settings settings_digest policy title metadata create_wanted seen event_large
--      *dead
-- includes clock record journal creation hints
--
-- `body` is the event's, without `previous`, which is known here only. Who is dead is looked up in `register` where that key may
-- be named beside the others. In a Cluster it may not: who is dead was judged before, where the nodes' keys live, and `dead`
-- are buried incarnations that the caller knows of. Answers: unknown, dead, deleted, lost, refused reason, held created,
-- elsewhere, stale; the record behind them.

local lock, journal, epochs, wanted, owners, named, created = unpack(KEYS, 1, 7)
local register = KEYS[8]
local given, channel, conversation,
  incarnation, token, expected_epoch, node, address, body, forced, floor, claimant_dead,
  event, asked_agent, agent, user_id, asked_settings, settings, settings_digest, policy, title, metadata, create_wanted, seen, event_large
  = unpack(ARGV, 1, 25)

local indexes = { wanted = wanted, owners = owners, named = named }
local creation = event ~= '' and {
  event = event, seen = seen, asked_agent = nullable(asked_agent), agent = agent, user_id = nullable(user_id),
  asked_settings = nullable(asked_settings), settings = settings, settings_digest = settings_digest, policy = policy,
  title = nullable(title), metadata = metadata, wanted = create_wanted,
}

local function is_dead(owner)
  if register then return redis.call('HGET', register, owner) == 'dead' end
  for i = 26, #ARGV do
    if ARGV[i] == owner then return true end
  end
  return false
end

local function grant(record, at)
  local previous = record.owner and cjson.encode(record.owner) or 'null'
  local whole = body:sub(1, -2) .. ',"previous":' .. previous .. '}'
  local journal_epoch, journal_seq = last_of(journal)
  if record.owner and (record.turn == 'open' or record.started == 0) then record.lost = record.lost + 1 end
  record.epoch = math.max(record.epoch, journal_epoch, tonumber(floor)) + 1
  record.head = math.max(record.head, journal_seq) + 1
  record.owner, record.owner_node, record.owner_address, record.owner_since = incarnation, node, address, at
  record.token, record.started, record.updated_at = token, 0, at
  record.number, record.digest, record.result = 0, false, false
  write(journal, record.epoch, record.head, int(record.epoch), 'claimed', at, whole, '{}', '')
  redis.call('ZADD', epochs, int(record.head), int(record.epoch))
end

if register and redis.call('HGET', register, incarnation) ~= 'registered' then claimant_dead = '1' end
local before, stands = fetch(lock)
if not before and redis.call('EXISTS', journal) == 1 then return { 'lost' } end
if not before and not creation then return { 'unknown' } end
if not before and claimant_dead == '1' then return { 'dead' } end
if not before and event_large == '1' then return { 'refused', 'settings-too-large' } end
local now, at = clock(given)
local record = before or new_record(conversation, creation, at)
local as_is = { int(now), stands }
if record.deleted == 1 then return { 'deleted', int(record.epoch) } end
local mine = record.owner == incarnation
if mine and record.token == token then return { 'held', '0', as_is } end
if claimant_dead == '1' then return { 'dead' } end
if before and creation and not fits(creation, before) then return { 'refused', 'conversation-exists', as_is } end
if record.owner and not mine and forced ~= '1' and not is_dead(record.owner) then
  return { 'elsewhere', as_is }
end
if int(record.epoch) ~= expected_epoch then
  return { 'stale', before and as_is or drawn(record, now) }
end
if not before then enlist(record, creation, created, journal) end
local after = before and changed(before) or record
grant(after, at)
local set, gone = save(lock, indexes, before, after)
tell_moved(channel, after)
return { 'held', before and '0' or '1', { int(now), stands, set, gone } }
