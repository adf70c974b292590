-- put_paper: a small document of the cluster, by compare-and-swap on its version.
--
-- KEYS documents ids
-- ARGV id version document topic
--
-- `topic` is the channel of the node that it is for, or ''. Answers: 1 if it was written, else 0.

local documents, ids = unpack(KEYS)
local id, version, document, topic = unpack(ARGV)

local old = redis.call('HGET', documents, id)
if (old and old:match('^%d+') or '0') ~= version then return 0 end
redis.call('HSET', documents, id, string.format('%.0f', tonumber(version) + 1) .. ' ' .. document)
redis.call('ZADD', ids, 0, id)
if topic ~= '' then redis.call('PUBLISH', topic, '') end
return 1
