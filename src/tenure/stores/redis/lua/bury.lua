-- bury: dead, for good (rule 10). `expired` is judged here, where renewals are.
--
-- KEYS register living node
-- ARGV given channel incarnation why kept
-- includes clock
--
-- `kept` is for how many seconds the dead node's particulars stay readable; its trace in the register stays for ever.
-- Answers: alive expires_in (in microseconds, '' for never registered), buried why.

local register, living, node = unpack(KEYS)
local given, channel, incarnation, why, kept = unpack(ARGV)

local known = redis.call('HGET', register, incarnation)
if not known then return { 'alive', '' } end
if known == 'dead' then return { 'buried', redis.call('HGET', node, 'dead') or '' } end
local now = clock(given)
local expires, ttl = unpack(redis.call('HMGET', node, 'expires', 'ttl'))
local left = math.min(tonumber(expires or 0) - now, tonumber(ttl or 0))
redis.call('HSET', node, 'expires', int(now + left))
if why == 'expired' and left > 0 then return { 'alive', int(left) } end
redis.call('HSET', register, incarnation, 'dead')
redis.call('HSET', node, 'dead', why)
redis.call('EXPIRE', node, kept)
redis.call('ZREM', living, incarnation)
redis.call('PUBLISH', channel .. 'wanted', '')
redis.call('PUBLISH', channel .. 'node:' .. incarnation, '')
return { 'buried', why }
