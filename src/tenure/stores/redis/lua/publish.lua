-- publish: a delta for whoever follows the conversation now; fenced like an append, never stored.
--
-- KEYS lock refusals
-- ARGV given channel incarnation epoch token refusals_limit delta
-- includes clock record fence
--
-- `delta` is '' where it is larger than a delta may be: it is lost. Answers: fenced [record], sent.

local lock, refusals = unpack(KEYS)
local given, channel, incarnation, epoch, token, refusals_limit, delta = unpack(ARGV)

local lease = { incarnation = incarnation, epoch = epoch, token = token }
local record = load(lock)
if not record then return { 'fenced' } end
local now, at = clock(given)
if not holds(record, lease) then
  refuse(refusals, at, 'publish', lease, refusals_limit)
  return { 'fenced', shown(lock, now) }
end
if delta ~= '' then redis.call('PUBLISH', channel .. 'conversation:' .. record.conversation, '+' .. delta) end
return { 'sent' }
