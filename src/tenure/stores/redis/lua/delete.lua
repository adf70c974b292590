-- delete: leave the tombstone, erase everything beside it (rule 4).
--
-- KEYS lock journal epochs keys snapshot vault wanted owners named created
-- ARGV given channel expected_epoch
-- includes clock record hints
--
-- Answers: unknown, stale record, deleted epoch.

local lock, journal, epochs, keys, snapshot, vault, wanted, owners, named, created = unpack(KEYS)
local given, channel, expected_epoch = unpack(ARGV)

local before = load(lock)
if not before then return { 'unknown' } end
if before.deleted == 1 then return { 'deleted', int(before.epoch) } end
local now, at = clock(given)
if int(before.epoch) ~= expected_epoch then return { 'stale', shown(lock, now) } end

local after = { settings = false, metadata = false, title = false }
for _, field in ipairs(READ) do after[field] = absent.__index(nil, field) end
after.conversation, after.user_id, after.agent = before.conversation, before.user_id, before.agent
after.epoch, after.deleted, after.version = before.epoch + 1, 1, 1
after.created_no, after.created_at, after.updated_at = before.created_no, before.created_at, at
redis.call('UNLINK', journal, epochs, keys, snapshot, vault)
redis.call('ZREM', created, before.conversation)
save(lock, { wanted = wanted, owners = owners, named = named }, before, after)
tell_moved(channel, after)
return { 'deleted', int(after.epoch) }
