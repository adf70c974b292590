-- What append and release have in common: an owner's batch (rule 5), and what it settles (rule 6). Needs journal.

local function is_next(record, batch)
  return tonumber(batch.number) == record.number + 1 and tonumber(batch.seen) <= record.head
end

-- Events as triples of kind, body, rest, from argument `first` on. False when the stream refuses the first: it was rewound.
-- Before the rest of a recorded command stand its delivery, its digest, and its key with the length; it has no epoch.
local function write_events(journal, keys, record, lease, at, first)
  local seq = record.head
  for i = first, #ARGV, 3 do
    seq = seq + 1
    local kind, body, rest = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local epoch, delivery, digest, length, key = lease.epoch, rest:match('^(%l+) (%x+) (%d+) ')
    if delivery then
      local before_key = #delivery + #digest + #length + 3
      key = rest:sub(before_key + 1, before_key + tonumber(length))
      epoch, rest = '', rest:sub(before_key + #key + 1)
    end
    if not try_write(journal, record.epoch, seq, epoch, kind, at, body, rest, delivery or '') then return false end
    if delivery then redis.call('HSET', keys, key, int(seq) .. ' ' .. digest) end
  end
  return seq
end

local function settle(record, batch)
  local seen = tonumber(batch.seen)
  record.wanted = (batch.runnable == '1' or record.last_command > seen) and 1 or 0
  for settled in batch.settled:gmatch('%d+') do
    record.unsettled = record.unsettled - 1
    if tonumber(settled) == record.open_start then record.open_start = 0 end
  end
  record.turn = batch.turn
  record.started = tonumber(batch.started)
  if batch.stopped == '1' then record.stopped = record.last_start <= seen and 1 or 0 end
  if batch.failed == '1' then record.failed = record.last_command <= seen and 1 or 0 end
  if batch.turn_ended == '1' or batch.failed == '1' then record.lost = 0 end
  if batch.turn_ended == '1' then record.failures = 0 end
  if batch.agent_status ~= '' then record.agent_status = nullable(batch.agent_status) end
end

-- The record after the batch, with the answer that a repeat of it gets; nil when the stream refuses it.
local function take(journal, keys, before, lease, batch, at, first_event)
  local head = write_events(journal, keys, before, lease, at, first_event)
  if not head then return nil end
  local after = changed(before)
  after.head, after.number, after.digest = head, tonumber(batch.number), batch.digest
  if head > before.head then after.updated_at = at end
  if batch.settle == '1' then settle(after, batch) end
  after.result = int(before.head + 1) .. ' ' .. int(head - before.head) .. ' ' .. int(head) .. ' '
    .. int(before.last_command) .. ' ' .. int(at)
  return after
end

-- The fold and the loop's state each replace their last one; a null part leaves it.
local function keep_snapshot(key, seq, fold, loop)
  if seq == '' then return end
  redis.call('HSETNX', key, 'seq', 0)
  if fold ~= '' then redis.call('HSET', key, 'seq', seq, 'fold', fold) end
  if loop ~= '' then redis.call('HSET', key, 'loop', loop) end
end
