-- A conversation that is created in the same step as its first command or claim. Needs record, journal.
--
-- `creation` holds the arguments of that name; `creation.event` is '' when nothing is to be created.

local function fits(creation, record)
  return creation.user_id == record.user_id
    and (not creation.asked_agent or creation.asked_agent == record.agent)
    and (not creation.asked_settings or creation.asked_settings == record.settings_digest)
end

-- Creation numbers follow the server's clock, but never fall behind the partition's last one or what the caller has seen.
local function creation_number(created, seen)
  local time = redis.call('TIME')
  local number = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), tonumber(seen) + 1)
  local last = redis.call('ZRANGE', created, -1, -1, 'WITHSCORES')
  return math.max(number, last[2] and tonumber(last[2]) + 1 or 0)
end

-- The record of a new conversation; nothing is written yet.
local function new_record(conversation, creation, at)
  local record = setmetatable({ conversation = conversation }, absent)
  record.user_id, record.agent, record.policy = creation.user_id, creation.agent, creation.policy
  record.settings, record.settings_digest = creation.settings, creation.settings_digest
  record.title, record.metadata = creation.title, creation.metadata
  record.version, record.turn, record.head = 1, 'none', 1
  record.wanted = tonumber(creation.wanted)
  record.created_at, record.updated_at = at, at
  return record
end

-- The record of a conversation that is about to be stored, in the shape of `shown`.
local function drawn(record, now)
  local flat = {}
  for field, value in pairs(record) do
    if stored(value) then
      flat[#flat + 1] = field
      flat[#flat + 1] = stored(value)
    end
  end
  return { int(now), flat }
end

-- Enter it into the list of creation, and write its first event.
local function enlist(record, creation, created, journal)
  record.created_no = creation_number(created, creation.seen)
  redis.call('ZADD', created, int(record.created_no), record.conversation)
  write(journal, 0, 1, '', 'created', record.created_at, creation.event, '{}', '')
end
