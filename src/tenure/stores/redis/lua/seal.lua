-- seal: keep a ciphertext in the conversation's vault, by compare-and-swap on its version.
--
-- KEYS lock vault
-- ARGV given name version ciphertext
-- includes clock record
--
-- Answers: unknown, deleted epoch, stale record, sealed.

local lock, vault = unpack(KEYS)
local given, name, version, ciphertext = unpack(ARGV)

local record = load(lock)
if not record then return { 'unknown' } end
if record.deleted == 1 then return { 'deleted', int(record.epoch) } end
local old = redis.call('HGET', vault, name)
if (old and old:match('^%d+') or '0') ~= version then return { 'stale', shown(lock, (clock(given))) } end
redis.call('HSET', vault, name, int(tonumber(version) + 1) .. ' ' .. ciphertext)
return { 'sealed' }
