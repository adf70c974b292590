-- The record, and the indexes that change with it. Needs clock.
--
-- In the hash a field that is 0, false or null is not there. In a script a number that is not there is 0, a text is false.
-- The bodies (settings, metadata, title) are never read by a script, only written: nothing here decodes JSON.

local NUMBERS = {
  'version', 'epoch', 'owner_since', 'head', 'last_command', 'last_start', 'unsettled', 'started', 'wanted', 'not_before',
  'lost', 'failures', 'stopped', 'failed', 'deleted', 'created_no', 'created_at', 'updated_at', 'number',
  'released_epoch', 'open_start',
}
local TEXTS = {
  'conversation', 'user_id', 'agent', 'settings_digest', 'policy', 'owner', 'owner_node', 'owner_address', 'token', 'turn',
  'agent_status', 'digest', 'result', 'released_token', 'released_digest',
}
local BODIES = { 'settings', 'metadata', 'title' }

local READ = {}
for _, field in ipairs(NUMBERS) do READ[#READ + 1] = field end
for _, field in ipairs(TEXTS) do READ[#READ + 1] = field end

local function load(lock)
  local values = redis.call('HMGET', lock, unpack(READ))
  local record = {}
  for i, field in ipairs(READ) do
    if i <= #NUMBERS then
      record[field] = tonumber(values[i] or 0)
    else
      record[field] = values[i]
    end
  end
  return record.conversation and record or nil
end

local function copy(record)
  local other = {}
  for field, value in pairs(record) do other[field] = value end
  return other
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
  for _, fields in ipairs({ NUMBERS, TEXTS, BODIES }) do
    for _, field in ipairs(fields) do
      local value = after[field]
      if value ~= before[field] then
        if stored(value) then
          set[#set + 1] = field
          set[#set + 1] = stored(value)
        else
          gone[#gone + 1] = field
        end
      end
    end
  end
  if #set > 0 then redis.call('HSET', lock, unpack(set)) end
  if #gone > 0 then redis.call('HDEL', lock, unpack(gone)) end
end

-- Where a record stands among the wanted; nil if it is not wanted. The text says all that a sweep has to know.
local function place(record)
  if not record or record.wanted ~= 1 then return nil end
  local owner, token = record.owner or '', record.token or ''
  return #owner .. ':' .. owner .. #record.agent .. ':' .. record.agent
    .. string.format('%020.0f', record.not_before)
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

-- Write what changed, in the record and in its partition's indexes. A nil record is one that is not there.
local function save(lock, indexes, before, after)
  before = before or {}
  write_fields(lock, before, after)
  local was, is = place(before), place(after)
  if was ~= is then
    if was then redis.call('ZREM', indexes.wanted, was) end
    if is then redis.call('ZADD', indexes.wanted, 0, is) end
  end
  shift(indexes.owners, was and before.owner or false, is and after.owner or false)
  shift(indexes.named, before.owner or false, after.owner or false)
end

-- The record as an answer carries it: the store's now, then the hash.
local function shown(lock, now)
  return { int(now), redis.call('HGETALL', lock) }
end
