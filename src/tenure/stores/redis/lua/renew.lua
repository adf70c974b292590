-- renew: the heartbeat. One key, whatever the node holds; a compare-and-swap on the beat (rule 10).
--
-- KEYS register node
-- ARGV given incarnation beat nonce ttl owned draining
-- includes clock
--
-- An incarnation that the register has lost (a fail-over to a stale replica) is told that it is dead, and is dead from then on:
-- what it owns may be taken over. Answers: dead, granted beat.

local register, node = unpack(KEYS)
local given, incarnation, beat, nonce, ttl, owned, draining = unpack(ARGV)

local last_beat, last_nonce, expires, dead = unpack(redis.call('HMGET', node, 'beat', 'nonce', 'expires', 'dead'))
if not expires then
  redis.call('HSET', register, incarnation, 'dead')
  return { 'dead' }
end
local now = clock(given)
if dead or now >= tonumber(expires) then return { 'dead' } end
if beat == last_beat then
  last_beat = int(tonumber(beat) + 1)
elseif int(tonumber(beat) + 1) ~= last_beat or nonce ~= last_nonce then
  return { 'dead' }
end
redis.call('HSET', node, 'beat', last_beat, 'nonce', nonce, 'ttl', ttl, 'expires', int(now + tonumber(ttl)),
  'owned', owned, 'draining', draining)
return { 'granted', last_beat }
