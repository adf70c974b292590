-- Rule 1: a lease is held while owner, epoch and token are all equal. A tombstone has neither owner nor token. Needs clock.

local function holds(record, lease)
  return record.owner == lease.incarnation and int(record.epoch) == lease.epoch and record.token == lease.token
end

-- Refused writes are logged apart from the journal, the last `most` of them.
local function refuse(refusals, at, operation, lease, most)
  local who = #lease.incarnation .. ':' .. lease.incarnation .. lease.token
  redis.call('LPUSH', refusals, int(at) .. ' ' .. operation .. ' ' .. lease.epoch .. ' ' .. who)
  redis.call('LTRIM', refusals, 0, tonumber(most) - 1)
end
