-- submit: a client's command, and with a creation the conversation as well. Not fenced.
--
-- KEYS lock journal keys wanted owners named created
-- ARGV given channel conversation
--      kind key digest body rest delivery large unsettled_limit
--      event asked_agent agent user_id asked_settings settings settings_digest policy title metadata create_wanted seen event_large
-- includes clock record journal creation hints
--
-- A null command has kind ''; without creation `event` is ''. `large` and `event_large` are 1 where the body is larger than the
-- store takes, and then it was not sent. Answers: unknown, deleted, lost, large command|event, refused reason, duplicate seq,
-- reused seq, accepted seq created; the record behind them where the port wants it.

local lock, journal, keys, wanted, owners, named, created = unpack(KEYS)
local given, channel, conversation,
  kind, key, digest, body, rest, delivery, large, unsettled_limit,
  event, asked_agent, agent, user_id, asked_settings, settings, settings_digest, policy, title, metadata, create_wanted, seen, event_large
  = unpack(ARGV)

local indexes = { wanted = wanted, owners = owners, named = named }
local creation = event ~= '' and {
  event = event, seen = seen, asked_agent = nullable(asked_agent), agent = agent, user_id = nullable(user_id),
  asked_settings = nullable(asked_settings), settings = settings, settings_digest = settings_digest, policy = policy,
  title = nullable(title), metadata = metadata, wanted = create_wanted,
}

local function known(record, as_is)
  local stands = redis.call('HGET', keys, key)
  if stands then
    local seq, of = stands:match('^(%d+) (.*)$')
    if of == digest then return { 'duplicate', seq, as_is } end
    return { 'reused', seq }
  end
  if kind == 'start' and record.open_start ~= 0 then
    return { 'duplicate', int(record.open_start), as_is }
  end
end

local function refusal(record)
  if delivery == 'turn' and record.stopped == 1 then return 'conversation-stopped' end
  if record.unsettled >= tonumber(unsettled_limit) and kind ~= 'stop' then return 'too-many-unsettled' end
  if kind == 'message' and record.policy == 'reject' and record.turn ~= 'none' then return 'turn-open' end
end

-- Journal the command behind the head. A stream that is ahead of the record (a partial restore) is taken at its word.
local function journal_command(record, at)
  local steers = kind == 'message' and record.policy == 'steer' and record.turn ~= 'none'
  local function attempt(in_force, head)
    record.head = head + 1
    return try_write(journal, in_force, record.head, '', kind, at, body, rest, steers and 'now' or delivery)
  end
  if not attempt(record.epoch, record.head) then
    local epoch, seq = last_of(journal)
    attempt(math.max(epoch, record.epoch), math.max(seq, record.head - 1))
  end
  redis.call('HSET', keys, key, int(record.head) .. ' ' .. digest)
end

local function accept(record, at)
  journal_command(record, at)
  record.last_command, record.unsettled = record.head, record.unsettled + 1
  record.wanted, record.failed, record.updated_at = 1, 0, at
  if kind == 'start' then
    record.stopped, record.lost, record.failures, record.not_before = 0, 0, 0, 0
    record.last_start, record.open_start = record.head, record.head
  end
end

if kind ~= '' and large == '1' then return { 'large', 'command' } end
local before, stands = fetch(lock)
if not before and redis.call('EXISTS', journal) == 1 then return { 'lost' } end
if not before and not creation then return { 'unknown' } end
if not before and event_large == '1' then return { 'large', 'event' } end
local now, at = clock(given)
local as_is = { int(now), stands }
local after
if before then
  if before.deleted == 1 then return { 'deleted', int(before.epoch) } end
  if creation and not fits(creation, before) then return { 'refused', 'conversation-exists', as_is } end
  if kind == '' then return { 'duplicate', int(before.head), as_is } end
  local answer = known(before, as_is)
  if answer then return answer end
  local reason = refusal(before)
  if reason then return { 'refused', reason, as_is } end
  after = changed(before)
else
  after = new_record(conversation, creation, at)
  enlist(after, creation, created, journal)
end
if kind ~= '' then accept(after, at) end
local set, gone = save(lock, indexes, before, after)
tell_moved(channel, after)
tell_wanted(channel, after)
return { 'accepted', int(after.head), before and '0' or '1', { int(now), stands, set, gone } }
