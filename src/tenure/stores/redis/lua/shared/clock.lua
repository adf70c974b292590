-- The store's clock: microseconds for deadlines, milliseconds for people. A test passes "<microseconds> <milliseconds>".

local function int(number)
  return string.format('%.0f', number)
end

local function clock(given)
  if given ~= '' then
    local now, at = given:match('^(%S+) (%S+)$')
    return tonumber(now), tonumber(at)
  end
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
  return now, math.floor(now / 1000)
end

-- An argument that may be null: '' is null, '=...' is the rest.
local function nullable(argument)
  return argument ~= '' and argument:sub(2)
end
