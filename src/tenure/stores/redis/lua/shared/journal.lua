-- The journal: a stream whose ids are <epoch in force>-<seq>, so that the stream itself refuses an older epoch and a seq that
-- stands already. Needs clock.

local function entry(journal, command, in_force, seq, epoch, kind, at, body, rest, delivery)
  return command('XADD', journal, int(in_force) .. '-' .. int(seq), 'kind', kind, 'at', int(at), 'epoch', epoch,
    'body', body, 'rest', rest, 'delivery', delivery)
end

local function write(journal, ...)
  return entry(journal, redis.call, ...)
end

-- The same, or false where the stream refuses the id. Any other error is the server's (no memory, say) and passed on.
local function try_write(journal, ...)
  local answer = entry(journal, redis.pcall, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if answer.err:find('equal or smaller', 1, true) then return false end
  error(answer.err)
end

-- The highest epoch that the journal carries, and its last seq; both 0 when it is empty.
local function last_of(journal)
  local last = redis.call('XREVRANGE', journal, '+', '-', 'COUNT', 1)[1]
  if not last then return 0, 0 end
  local epoch, seq = last[1]:match('^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(seq)
end
