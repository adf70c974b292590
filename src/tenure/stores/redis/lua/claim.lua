-- claim: make incarnations the owners of conversations, each by compare-and-swap on the epoch that the caller saw (rules 2 and 4).
--
-- KEYS *keys
-- ARGV given channel keys_each lately_dead
--      *claims
-- includes clock record journal creation hints
--
-- Each claim has `keys_each` of the `keys` (lock journal epochs wanted owners named created, and `register` where that key may be
-- named beside the others), and in `claims` 23 arguments (conversation, incarnation, token, expected_epoch, node, address,
-- body, forced, floor, claimant_dead, then what it creates: event, asked_agent, agent, user_id, asked_settings, settings,
-- settings_digest, policy, title, metadata, create_wanted, seen, event_large). `body` is the event's, without `previous`, which is
-- known here only. Who is dead is looked up in `register`. In a Cluster it is judged before, where the nodes' keys live, and
-- `lately_dead` are buried incarnations that the caller knows of, between blanks. Answers, for each claim: unknown, dead,
-- deleted, lost, refused reason, held created, elsewhere, stale; the record behind them.

local given, channel, keys_each, lately_dead
  = unpack(ARGV, 1, 4)

local now, at = clock(given)
local states = {}

-- What the register says of an incarnation.
local function state_of(register, incarnation)
  if states[incarnation] == nil then states[incarnation] = redis.call('HGET', register, incarnation) end
  return states[incarnation]
end

local function is_dead(register, owner)
  if register then return state_of(register, owner) == 'dead' end
  return lately_dead:find(' ' .. owner .. ' ', 1, true) ~= nil
end

local function creation_of(event, asked_agent, agent, user_id, asked_settings, settings, settings_digest, policy, title,
                           metadata, create_wanted, seen)
  return event ~= '' and {
    event = event, seen = seen, asked_agent = nullable(asked_agent), agent = agent, user_id = nullable(user_id),
    asked_settings = nullable(asked_settings), settings = settings, settings_digest = settings_digest, policy = policy,
    title = nullable(title), metadata = metadata, wanted = create_wanted,
  }
end

local function grant(record, claimant, journal, epochs, is_new)
  local previous = record.owner and cjson.encode(record.owner) or 'null'
  local whole = claimant.body:sub(1, -2) .. ',"previous":' .. previous .. '}'
  local journal_epoch, journal_seq = 0, 0
  if not is_new then journal_epoch, journal_seq = last_of(journal) end
  if record.owner and (record.turn == 'open' or record.started == 0) then record.lost = record.lost + 1 end
  record.epoch = math.max(record.epoch, journal_epoch, tonumber(claimant.floor)) + 1
  record.head = math.max(record.head, journal_seq) + 1
  record.owner, record.owner_node, record.owner_address = claimant.incarnation, claimant.node, claimant.address
  record.token, record.started, record.owner_since, record.updated_at = claimant.token, 0, at, at
  record.number, record.digest, record.result = 0, false, false
  write(journal, record.epoch, record.head, int(record.epoch), 'claimed', at, whole, '{}', '')
  redis.call('ZADD', epochs, int(record.head), int(record.epoch))
end

local function claim_one(key, argument)
  local lock, journal, epochs, wanted, owners, named, created, register = unpack(KEYS, key, key + keys_each - 1)
  local conversation, incarnation, token, expected_epoch, node, address, body, forced, floor, claimant_dead
    = unpack(ARGV, argument, argument + 9)
  local creation = creation_of(unpack(ARGV, argument + 10, argument + 21))
  local event_large = ARGV[argument + 22]

  if register and state_of(register, incarnation) ~= 'registered' then claimant_dead = '1' end
  local before, stands = fetch(lock)
  if not before and redis.call('EXISTS', journal) == 1 then return { 'lost' } end
  if not before and not creation then return { 'unknown' } end
  if not before and claimant_dead == '1' then return { 'dead' } end
  if not before and event_large == '1' then return { 'refused', 'settings-too-large' } end
  local record = before or new_record(conversation, creation, at)
  local as_is = { int(now), stands }
  if record.deleted == 1 then return { 'deleted', int(record.epoch) } end
  local mine = record.owner == incarnation
  if mine and record.token == token then return { 'held', '0', as_is } end
  if claimant_dead == '1' then return { 'dead' } end
  if before and creation and not fits(creation, before) then return { 'refused', 'conversation-exists', as_is } end
  if record.owner and not mine and forced ~= '1' and not is_dead(register, record.owner) then
    return { 'elsewhere', as_is }
  end
  if int(record.epoch) ~= expected_epoch then
    return { 'stale', before and as_is or drawn(record, now) }
  end
  if not before then enlist(record, creation, created, journal) end
  local after = before and changed(before) or record
  local claimant = {
    incarnation = incarnation, token = token, node = node, address = address, body = body, floor = floor,
  }
  grant(after, claimant, journal, epochs, not before)
  local set, gone = save(lock, { wanted = wanted, owners = owners, named = named }, before, after)
  tell_moved(channel, after)
  return { 'held', before and '0' or '1', { int(now), stands, set, gone } }
end

local answers, key = {}, 1
for argument = 5, #ARGV, 23 do
  answers[#answers + 1] = claim_one(key, argument)
  key = key + keys_each
end
return answers
