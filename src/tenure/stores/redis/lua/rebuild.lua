-- rebuild: the record anew, where it was lost and its journal was not (evicted, or restored in part).
--
-- KEYS lock journal wanted owners named created
-- ARGV epoch seq places *fields
-- includes clock record journal creation
--
-- `epoch` and `seq` are those of the last entry that was folded; `fields` are `places` texts that stand in `wanted` for this
-- conversation, then the hash. Answers: 1 if it was written, 0 if there is one again or the journal has moved: look again.

local lock, journal, wanted, owners, named, created = unpack(KEYS)
local epoch, seq, places = unpack(ARGV, 1, 3)

local last_epoch, last_seq = last_of(journal)
if redis.call('EXISTS', lock) == 1 or int(last_epoch) ~= epoch or int(last_seq) ~= seq then return 0 end

local first_field = 4 + tonumber(places)
for i = 4, first_field - 1 do
  if redis.call('ZREM', wanted, ARGV[i]) == 1 then
    local length = ARGV[i]:match('^%d+')
    local owner = ARGV[i]:sub(#length + 2, #length + 1 + tonumber(length))
    shift(owners, owner ~= '' and owner, false)
  end
end

redis.call('HSET', lock, unpack(ARGV, first_field))
local record = load(lock)
record.created_no = tonumber(redis.call('ZSCORE', created, record.conversation) or creation_number(created, 0))
redis.call('HSET', lock, 'created_no', int(record.created_no))
redis.call('ZADD', created, int(record.created_no), record.conversation)
redis.call('ZADD', wanted, 0, place(record))
shift(owners, false, record.owner)
if record.owner and not redis.call('ZSCORE', named, record.owner) then shift(named, false, record.owner) end
return 1
