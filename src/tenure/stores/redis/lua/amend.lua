-- amend: title, metadata, settings, by compare-and-swap on the version; settings also stand in the journal.
--
-- KEYS lock journal wanted owners named
-- ARGV given channel version title metadata settings settings_digest body
-- includes clock record journal hints
--
-- '' leaves a part as it is; `title` is '-' for null, else '=...'. `body` is that of `settings_changed`. Answers: unknown,
-- deleted epoch, stale record, amended record.

local lock, journal, wanted, owners, named = unpack(KEYS)
local given, channel, version, title, metadata, settings, settings_digest, body = unpack(ARGV)

local before = load(lock)
if not before then return { 'unknown' } end
if before.deleted == 1 then return { 'deleted', int(before.epoch) } end
local now, at = clock(given)
if int(before.version) ~= version then return { 'stale', shown(lock, now) } end

local after = changed(before)
after.version, after.updated_at = before.version + 1, at
if title ~= '' then after.title = title ~= '-' and title:sub(2) end
if metadata ~= '' then after.metadata = metadata end
if settings ~= '' then
  after.settings, after.settings_digest = settings, settings_digest
  after.head = before.head + 1
  write(journal, before.epoch, after.head, '', 'settings_changed', at, body, '{}', '')
end
save(lock, { wanted = wanted, owners = owners, named = named }, before, after)
tell_moved(channel, after)
return { 'amended', shown(lock, now) }
