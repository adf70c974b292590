-- append_many: plain batches of many owners at once, each through the fence (rules 1 and 5).
--
-- KEYS *keys
-- ARGV given channel
--      *batches
-- includes clock record journal batch fence hints
--
-- Each batch has two `keys`, its lock and its journal, and in `batches` seven arguments (incarnation, epoch, token, number, seen,
-- digest, how many events), then its events as triples of kind, body, rest. Plain is what settles nothing, brings no snapshot
-- and records no command. Answers, for each batch: its result; or '' where that is not simply the next one of a lease that is
-- held, and then nothing was done about it: `append` does it, or tells why not.

local given, channel
  = unpack(ARGV, 1, 2)

local _, at = clock(given)

local function glance(lock)
  local read = redis.call('HMGET', lock, 'conversation', 'owner', 'epoch', 'token', 'number', 'head', 'last_command')
  return {
    conversation = read[1], owner = read[2], epoch = tonumber(read[3] or 0), token = read[4], number = tonumber(read[5] or 0),
    head = tonumber(read[6] or 0), last_command = read[7] or '0',
  }
end

-- False where the stream refuses the first event: then there is nothing to undo.
local function write_each(journal, record, epoch, first, count)
  for i = 0, count - 1 do
    local kind, body, rest = ARGV[first + 3 * i], ARGV[first + 3 * i + 1], ARGV[first + 3 * i + 2]
    if not try_write(journal, record.epoch, record.head + 1 + i, epoch, kind, at, body, rest, '') then return false end
  end
  return true
end

local function append_one(lock, journal, lease, batch, first, count)
  local record = glance(lock)
  if not (holds(record, lease) and is_next(record, batch)) then return '' end
  if not write_each(journal, record, lease.epoch, first, count) then return '' end
  local first_seq, moment = record.head + 1, int(at)
  record.head = record.head + count
  local head = int(record.head)
  local result = int(first_seq) .. ' ' .. count .. ' ' .. head .. ' ' .. record.last_command .. ' ' .. moment
  local changed = { 'number', batch.number, 'digest', batch.digest, 'result', result, 'head', head }
  if count > 0 then changed[9], changed[10] = 'updated_at', moment end
  redis.call('HSET', lock, unpack(changed))
  tell_moved(channel, record)
  return result
end

local answers, argument = {}, 3
for i = 1, #KEYS, 2 do
  local incarnation, epoch, token, number, seen, digest, count = unpack(ARGV, argument, argument + 6)
  local lease = { incarnation = incarnation, epoch = epoch, token = token }
  local batch = { number = number, seen = seen, digest = digest }
  answers[#answers + 1] = append_one(KEYS[i], KEYS[i + 1], lease, batch, argument + 7, tonumber(count))
  argument = argument + 7 + 3 * count
end
return answers
