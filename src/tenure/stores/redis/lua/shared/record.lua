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

local function empty(field_number)
  return field_number <= NUMBERS and 0 or false
end

local function load(lock)
  local values = redis.call('HMGET', lock, unpack(READ))
  local record = {}
  for i, field in ipairs(READ) do
    local value = values[i]
    record[field] = value and i <= NUMBERS and tonumber(value) or value or empty(i)
  end
  return record.conversation and record or nil
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
    if value ~= before[field] then
      local text = stored(value)
      if text then
        set[#set + 1] = field
        set[#set + 1] = text
      else
        gone[#gone + 1] = field
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

-- Write what changed, in the record and in its partition's indexes. `before` is nil where there was none; then `after` is whole.
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
