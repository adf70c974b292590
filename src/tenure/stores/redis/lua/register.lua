-- register: make an incarnation known and alive. Once, ever: the register never forgets (rule 10).
--
-- KEYS register living node
-- ARGV given incarnation ttl about
-- includes clock
--
-- `ttl` is in microseconds. Answers: refused, granted.

local register, living, node = unpack(KEYS)
local given, incarnation, ttl, about = unpack(ARGV)

if redis.call('HSETNX', register, incarnation, 'registered') == 0 then return { 'refused' } end
local now = clock(given)
local number = redis.call('HLEN', register)
redis.call('HSET', node, 'number', number, 'about', about, 'ttl', ttl, 'expires', int(now + tonumber(ttl)), 'beat', 0)
redis.call('ZADD', living, number, incarnation)
return { 'granted' }
