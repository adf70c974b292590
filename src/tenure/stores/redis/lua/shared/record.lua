-- The record, and the indexes that change with it. Needs clock.
--
-- In the hash a field that is 0, false or null is not there. In a script a number that is not there is 0, a text is false.
-- The bodies (settings, metadata, title) are never read by a script, only written: nothing here decodes JSON.

local READ = {
  'version', 'epoch', 'owner_since', 'head', 'last_command', 'last_start', 'unsettled', 'started', 'wanted', 'not_before',
  'lost', 'failures', 'stopped', 'failed', 'deleted', 'created_no', 'created_at', 'updated_at', 'number',
  'released_epoch', 'open_start',
  -- numbers up to here, texts from here on
  'conversation', 'user_id', 'agent', 'settings_digest', 'policy', 'owner', 'owner_node', 'owner_address', 'token', 'turn',
  'agent_status', 'digest', 'result', 'released_token', 'released_digest',
}
local NUMBERS = 21

local is_number = {}
for i = 1, NUMBERS do is_number[READ[i]] = true end

-- A record in which what was never set is 0 or false.
local absent = { __index = function(_, field) return is_number[field] and 0 or false end }

local function load(lock)
  local values = redis.call('HMGET', lock, unpack(READ))
  local record = {}
  for i = 1, NUMBERS do record[READ[i]] = tonumber(values[i] or 0) end
  for i = NUMBERS + 1, #READ do record[READ[i]] = values[i] end
  return record.conversation and record or nil
end

-- The same for scripts that answer the record, and therefore read its bodies too; behind it the hash as it stands.
local function fetch(lock)
  local flat, record = redis.call('HGETALL', lock), {}
  for i = 1, #flat, 2 do
    local field, value = flat[i], flat[i + 1]
    record[field] = is_number[field] and tonumber(value) or value
  end
  return record.conversation and setmetatable(record, absent) or nil, flat
end

-- A record that may be changed: it holds what was set, and shows `record` for the rest.
local function changed(record)
  return setmetatable({}, { __index = record })
end

-- How a field stands in the hash; nil when it is not there.
local function stored(value)
  if type(value) == 'number' then
    return value ~= 0 and int(value) or nil
  end
  return value or nil
end

local function write_fields(lock, before, after)
  local set, gone = {}, {}
  for field, value in pairs(after) do
    if not before or value ~= before[field] then
      local text = stored(value)
      if text then
        set[#set + 1] = field
        set[#set + 1] = text
      elseif before then
        gone[#gone + 1] = field
      end
    end
  end
  if #set > 0 then redis.call('HSET', lock, unpack(set)) end
  if #gone > 0 then redis.call('HDEL', lock, unpack(gone)) end
  return set, gone
end

local NEVER = ('0'):rep(20)

-- Where a record stands among the wanted; nil if it is not wanted. The text says all that a sweep has to know.
local function place(record)
  if not record or record.wanted ~= 1 then return nil end
  local owner, token = record.owner or '', record.token or ''
  return #owner .. ':' .. owner .. #record.agent .. ':' .. record.agent
    .. (record.not_before == 0 and NEVER or string.format('%020.0f', record.not_before))
    .. int(record.epoch) .. ' ' .. #token .. ':' .. token .. record.conversation
end

-- One conversation less for one owner, one more for another; either may be nobody.
local function shift(index, from, to)
  if from == to then return end
  if from then
    redis.call('ZINCRBY', index, -1, from)
    redis.call('ZREMRANGEBYSCORE', index, '-inf', 0)
  end
  if to then redis.call('ZINCRBY', index, 1, to) end
end

-- Whether the indexes say the same of both: most batches move nothing that they know.
local function stays(before, after)
  return after.wanted == before.wanted and after.owner == before.owner and after.not_before == before.not_before
    and after.epoch == before.epoch and after.token == before.token
end

-- Write what changed, in the record and in its partition's indexes. `before` is nil where there was none; then `after` is whole.
-- Returns the fields that were written, with their values, and those that are gone.
local function save(lock, indexes, before, after)
  local set, gone = write_fields(lock, before, after)
  if before and stays(before, after) then return set, gone end
  before = before or {}
  local was, is = place(before), place(after)
  if was ~= is then
    if was then redis.call('ZREM', indexes.wanted, was) end
    if is then redis.call('ZADD', indexes.wanted, 0, is) end
  end
  shift(indexes.owners, was and before.owner or false, is and after.owner or false)
  shift(indexes.named, before.owner or false, after.owner or false)
  return set, gone
end

-- The record as an answer carries it: the store's now, then the hash.
local function shown(lock, now)
  return { int(now), redis.call('HGETALL', lock) }
end
