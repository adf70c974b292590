-- forget: erase a secret if its version is still this one.
--
-- KEYS vault
-- ARGV name version
--
-- Answers: 1 if it is gone now, else 0.

local vault = unpack(KEYS)
local name, version = unpack(ARGV)

local old = redis.call('HGET', vault, name)
if old and old:match('^%d+') == version then
  redis.call('HDEL', vault, name)
  return 1
end
return old and 0 or 1
