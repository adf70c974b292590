-- remove_paper: if its version is still this one.
--
-- KEYS documents ids
-- ARGV id version
--
-- Answers: 1 if it is gone now, else 0.

local documents, ids = unpack(KEYS)
local id, version = unpack(ARGV)

local old = redis.call('HGET', documents, id)
if old and old:match('^%d+') == version then
  redis.call('HDEL', documents, id)
  redis.call('ZREM', ids, id)
  return 1
end
return old and 0 or 1
