-- look: which partitions have something that is wanted, and of whom.
--
-- KEYS *indexes
-- ARGV given *nobodys
-- includes clock
--
-- `indexes` are the keys wanted of some partitions, then their keys owners, in the same order; `nobodys` the places where what
-- nobody owns begins, one per agent. Answers: now, then for each partition with something: its number in the request, how many
-- of nobody's are due, and owner, count of what each owner has.

local half = #KEYS / 2
local given = unpack(ARGV, 1, 1)
local now = clock(given)
local due_until = string.format('%020.0f', math.max(now, 0) + 1)

local function look(wanted, owners)
  local due = 0
  for a = 2, #ARGV do
    due = due + redis.call('ZLEXCOUNT', wanted, '[' .. ARGV[a], '(' .. ARGV[a] .. due_until)
  end
  return due, redis.call('ZRANGE', owners, 0, -1, 'WITHSCORES')
end

local answer = { int(now) }
for i = 1, half do
  if redis.call('ZCARD', KEYS[i]) > 0 then
    local due, owners = look(KEYS[i], KEYS[half + i])
    if due > 0 or #owners > 0 then answer[#answer + 1] = { i - 1, due, owners } end
  end
end
return answer
