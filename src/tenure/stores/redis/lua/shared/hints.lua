-- Hints for whoever follows. They may be lost: a sweep finds everything all the same. Needs clock.

local function tell_moved(channel, record)
  redis.call('PUBLISH', channel .. 'conversation:' .. record.conversation, int(record.head))
end

-- Somebody has something to do: its owner, or, if nobody owns it, anybody.
local function tell_wanted(channel, record)
  if record.wanted ~= 1 then return end
  local topic = record.owner and 'node:' .. record.owner or 'wanted'
  redis.call('PUBLISH', channel .. topic, int(record.head) .. ' ' .. record.conversation)
end
