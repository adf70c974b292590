-- release: the last append of a lease; afterwards nothing of it is accepted but its own repetition (rule 5).
--
-- KEYS lock journal keys snapshot refusals wanted owners named
-- ARGV given channel
--      incarnation epoch token refusals_limit
--      number seen digest large
--      settle runnable settled turn turn_ended started stopped failed agent_status
--      snapshot_seq fold loop
--      body failed_start retry_in
--      *events
-- includes clock record journal batch fence hints
--
-- As append; `body` is that of the event `released`, `retry_in` microseconds or ''. Answers: fenced [record], large,
-- released wanted head repeated.

local lock, journal, keys, snapshot, refusals, wanted, owners, named = unpack(KEYS)
local given, channel,
  incarnation, epoch, token, refusals_limit,
  number, seen, digest, large,
  settle, runnable, settled, turn, turn_ended, started, stopped, failed, agent_status,
  snapshot_seq, fold, loop,
  body, failed_start, retry_in
  = unpack(ARGV, 1, 25)

local lease = { incarnation = incarnation, epoch = epoch, token = token }
local batch = {
  number = number, seen = seen, digest = digest, settle = settle, runnable = runnable, settled = settled, turn = turn,
  turn_ended = turn_ended, started = started, stopped = stopped, failed = failed, agent_status = agent_status,
}

local SHORT = 100 -- entries

local function is_repeated(record)
  return not record.owner and record.deleted == 0
    and int(record.epoch) == epoch and record.epoch == record.released_epoch
    and number == int(record.number) and record.released_token == token and record.released_digest == digest
end

-- False when the stream refuses the event; then the batch before it had none, and nothing was written.
local function let_go(before, after, now, at)
  after.head = after.head + 1
  if not try_write(journal, before.epoch, after.head, epoch, 'released', at, body, '{}', '') then return false end
  after.owner, after.owner_node, after.owner_address, after.owner_since = false, false, false, 0
  after.token, after.started, after.updated_at = false, 0, at
  after.digest, after.result = false, false
  if failed_start == '1' then after.failures = after.failures + 1 end
  after.released_epoch, after.released_token, after.released_digest = before.epoch, token, digest
  after.not_before = 0
  if retry_in ~= '' and after.last_start <= tonumber(seen) then
    after.not_before = math.max(now + tonumber(retry_in), 0)
  end
  return true
end

-- A stream makes room for 4 KB at once, and whoever rests may rest for years: written anew it takes what it holds. Of a longer one
-- that would be work without end for little; and a user who may not restore keeps it as it is.
local function tighten(stream)
  if redis.call('XLEN', stream) > SHORT then return end
  local whole = redis.pcall('DUMP', stream)
  if type(whole) == 'string' then redis.pcall('RESTORE', stream, 0, whole, 'REPLACE') end
end

local before = load(lock)
if not before then return { 'fenced' } end
if is_repeated(before) then return { 'released', int(before.wanted), int(before.head), '1' } end
local now, at = clock(given)
local next = holds(before, lease) and is_next(before, batch)
if next and large == '1' then return { 'large' } end
local after = next and take(journal, keys, before, lease, batch, at, 26)
if not (after and let_go(before, after, now, at)) then
  refuse(refusals, at, 'release', lease, refusals_limit)
  return { 'fenced', shown(lock, now) }
end
keep_snapshot(snapshot, snapshot_seq, fold, loop)
save(lock, { wanted = wanted, owners = owners, named = named }, before, after)
tell_moved(channel, after)
tell_wanted(channel, after)
if after.wanted ~= 1 then tighten(journal) end
return { 'released', int(after.wanted), int(after.head), '0' }
