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
local now = clock(ARGV[1])
local due_until = string.format('%020.0f', math.max(now, 0) + 1)

local answer = { int(now) }
for i = 1, half do
  local due = 0
  for a = 2, #ARGV do
    due = due + redis.call('ZLEXCOUNT', KEYS[i], '[' .. ARGV[a], '(' .. ARGV[a] .. due_until)
  end
  local owners = redis.call('ZRANGE', KEYS[half + i], 0, -1, 'WITHSCORES')
  if due > 0 or #owners > 0 then answer[#answer + 1] = { i - 1, due, owners } end
end
return answer
