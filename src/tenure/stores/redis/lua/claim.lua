-- claim: make the incarnation the owner, by compare-and-swap on the epoch that the caller saw (rules 2 and 4).
--
-- KEYS lock journal epochs wanted owners named created *register
-- ARGV given channel conversation
--      incarnation token expected_epoch node address body forced floor claimant_dead
--      event asked_agent agent user_id asked_settings settings settings_digest policy title metadata seen event_large
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
  event, asked_agent, agent, user_id, asked_settings, settings, settings_digest, policy, title, metadata, seen, event_large
  = unpack(ARGV, 1, 24)

local indexes = { wanted = wanted, owners = owners, named = named }
local creation = event ~= '' and {
  event = event, seen = seen, asked_agent = nullable(asked_agent), agent = agent, user_id = nullable(user_id),
  asked_settings = nullable(asked_settings), settings = settings, settings_digest = settings_digest, policy = policy,
  title = nullable(title), metadata = metadata,
}

local function is_dead(owner)
  if register then return redis.call('HGET', register, owner) == 'dead' end
  for i = 25, #ARGV do
    if ARGV[i] == owner then return true end
  end
  return false
end

local function grant(before, at)
  local after = copy(before)
  local journal_epoch, journal_seq = last_of(journal)
  after.epoch = math.max(before.epoch, journal_epoch, tonumber(floor)) + 1
  after.head = math.max(before.head, journal_seq) + 1
  after.owner, after.owner_node, after.owner_address, after.owner_since = incarnation, node, address, at
  after.token, after.started, after.updated_at = token, 0, at
  after.number, after.digest, after.result = 0, false, false
  if before.owner and (before.turn == 'open' or before.started == 0) then after.lost = before.lost + 1 end
  local previous = before.owner and cjson.encode(before.owner) or 'null'
  local whole = body:sub(1, -2) .. ',"previous":' .. previous .. '}'
  write(journal, after.epoch, after.head, int(after.epoch), 'claimed', at, whole, '{}', '')
  redis.call('ZADD', epochs, int(after.head), int(after.epoch))
  return after
end

if register and redis.call('HGET', register, incarnation) ~= 'registered' then claimant_dead = '1' end
local before = load(lock)
if not before and redis.call('EXISTS', journal) == 1 then return { 'lost' } end
if not before and not creation then return { 'unknown' } end
if not before and claimant_dead == '1' then return { 'dead' } end
if not before and event_large == '1' then return { 'refused', 'settings-too-large' } end
local now, at = clock(given)
local record = before or new_record(conversation, creation, at)
if record.deleted == 1 then return { 'deleted', int(record.epoch) } end
local mine = record.owner == incarnation
if mine and record.token == token then return { 'held', '0', shown(lock, now) } end
if claimant_dead == '1' then return { 'dead' } end
if before and creation and not fits(creation, before) then return { 'refused', 'conversation-exists', shown(lock, now) } end
if record.owner and not mine and forced ~= '1' and not is_dead(record.owner) then
  return { 'elsewhere', shown(lock, now) }
end
if int(record.epoch) ~= expected_epoch then
  return { 'stale', before and shown(lock, now) or drawn(record, now) }
end
if not before then enlist(record, creation, created, journal) end
local after = grant(record, at)
save(lock, indexes, before, after)
tell_moved(channel, after)
return { 'held', before and '0' or '1', shown(lock, now) }
