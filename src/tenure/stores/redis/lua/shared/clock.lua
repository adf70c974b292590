-- The store's clock: microseconds for deadlines, milliseconds for people. A test passes "<microseconds> <milliseconds>".

local texts = {}

-- As text. The format for integers, where every server's has room for it, takes a fraction of what that for floats does; the
-- large ones are the moments of a call, a few and always the same.
local function int(number)
  if number < 2147483648 and number > -2147483648 then return string.format('%d', number) end
  texts[number] = texts[number] or string.format('%.0f', number)
  return texts[number]
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
