-- read: events after a seq, in order, with the record of the same moment.
--
-- KEYS lock journal epochs snapshot
-- ARGV given after limit from_snapshot most_bytes most_scanned *kinds
-- includes clock record
--
-- Bounded: it ends early after `most_bytes` of bodies or `most_scanned` entries, and says where to go on. Answers: unknown,
-- lost, deleted epoch, reading record snapshot scanned complete [id kind at epoch body rest delivery]...

local lock, journal, epochs, snapshot = unpack(KEYS)
local given, after, limit, from_snapshot, most_bytes, most_scanned = unpack(ARGV, 1, 6)
after, limit, most_bytes, most_scanned = tonumber(after), tonumber(limit), tonumber(most_bytes), tonumber(most_scanned)

local PIECE = 100

local kinds = #ARGV > 6 and {} or nil
for i = 7, #ARGV do kinds[ARGV[i]] = true end

-- The id of the first entry behind `seq`: entries stand by epoch, so find the one in force there.
local function id_after(seq)
  local epoch = redis.call('ZREVRANGEBYSCORE', epochs, int(seq + 1), '-inf', 'LIMIT', 0, 1)[1] or '0'
  return epoch .. '-' .. int(seq + 1)
end

local exists, deleted, epoch = unpack(redis.call('HMGET', lock, 'conversation', 'deleted', 'epoch'))
if not exists then return { redis.call('EXISTS', journal) == 1 and 'lost' or 'unknown' } end
if deleted == '1' then return { 'deleted', epoch } end

local start = false
if from_snapshot == '1' then
  local seq, fold, loop = unpack(redis.call('HMGET', snapshot, 'seq', 'fold', 'loop'))
  if seq then start = { seq, fold, loop } end
  if fold and tonumber(seq) > after then after = tonumber(seq) end
end

local found, count, bytes, scanned, complete = {}, 0, 0, 0, true
local from = id_after(after)
while count < limit do
  if bytes >= most_bytes or scanned >= most_scanned then
    complete = false
    break
  end
  local asked = math.min(PIECE, limit - count)
  local piece = redis.call('XRANGE', journal, from, '+', 'COUNT', asked)
  for _, one in ipairs(piece) do
    local id, fields = one[1], one[2]
    after, from = tonumber(id:match('%d+$')), '(' .. id
    scanned = scanned + 1
    if not kinds or kinds[fields[2]] then
      count, bytes = count + 1, bytes + #fields[8]
      found[#found + 1] = id
      for f = 2, 12, 2 do found[#found + 1] = fields[f] end
    end
  end
  if #piece < asked then break end
end
return { 'reading', shown(lock, (clock(given))), start, int(after), complete and '1' or '0', found }
