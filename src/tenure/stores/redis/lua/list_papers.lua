-- list_papers: those of a kind whose ids begin alike, by id.
--
-- KEYS documents ids
-- ARGV prefix limit
--
-- Answers: id, "<version> <document>", in turn.

local documents, ids = unpack(KEYS)
local prefix, limit = unpack(ARGV)

local found = redis.call('ZRANGEBYLEX', ids, '[' .. prefix, '(' .. prefix .. '\255', 'LIMIT', 0, limit)
local answer = {}
for _, id in ipairs(found) do
  answer[#answer + 1] = id
  answer[#answer + 1] = redis.call('HGET', documents, id)
end
return answer
