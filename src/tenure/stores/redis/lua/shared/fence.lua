-- Rule 1: a lease is held while owner, epoch and token are all equal, and the conversation is not deleted. Needs clock.

local function holds(record, lease)
  return record.deleted == 0 and record.owner == lease.incarnation and int(record.epoch) == lease.epoch
    and record.token == lease.token
end

-- Refused writes are logged apart from the journal, the last `most` of them.
local function refuse(refusals, at, operation, lease, most)
  redis.call('LPUSH', refusals,
    int(at) .. ' ' .. operation .. ' ' .. lease.epoch .. ' ' .. #lease.incarnation .. ':' .. lease.incarnation .. lease.token)
  redis.call('LTRIM', refusals, 0, tonumber(most) - 1)
end
