-- What may still be taken of meters, counted for all replicas in one place. The only script, one call for many operations.
--
-- KEYS[i]: the meter (or the list of replicas) that operation i is about; a key may appear more than once.
-- ARGV[1]: the id of the replica that asks. Then six per operation: what, shape, limit, a, b, held.
--   what:  take   at least a, at most b, of what is there; nothing when not even a is
--          give   a back, never above the brim; a below zero charges, into debt if need be
--          drain  up to a, but makes no debt
--          touch  slots only: the replica says that it has a of them, whatever was counted
--          beat   (key: the list of replicas) I am here; with a = 1: I leave
--   shape: R refills within a minute, D and M windows (day and month of UTC), S slots
--   held:  slots only: how many the replica has, so that it does not lose them when Redis has forgotten
-- Returns three integers per operation: what was granted or drained, the level after it (below zero: a debt), and for R
-- parts of the next token (60,000,000 make one), for D and M microseconds until the window is over.
-- For beat: the number of replicas seen lately.
--
-- All times are the server's. What is counted is exact for limits up to 10^15: no product and no sum below leaves the
-- whole numbers of a double (2^53) unless the bucket is full then anyway. A key that says nothing is deleted, and every
-- other one expires when it would say nothing any more.

local PARTS = 60000000          -- per token; also microseconds in a minute, so a microsecond refills `limit` parts
local DAY_S = 86400
local SLOTS_LEASE_S = 15        -- slots of a replica that was not heard for so long are free again
local SLOTS_SWEEP_S = 1         -- looked for at most so often, per meter
local REPLICA_SEEN_S = 5        -- a replica that was not heard for so long is gone; they say it once a second
local KEPT_MS_MAX = 32 * DAY_S * 1000

local clock = redis.call('TIME')
local now_s = tonumber(clock[1])
local now_us = now_s * 1000000 + tonumber(clock[2])
local replica = ARGV[1]

local function int(number)      -- tostring would keep 14 digits
  return string.format('%.0f', number)
end

local function read(key, ...)
  local stored = redis.pcall('HMGET', key, ...)
  if stored.err then            -- somebody put something else under our name: it must not stop the whole call
    redis.call('DEL', key)
    stored = redis.call('HMGET', key, ...)
  end
  return stored
end

-- Shapes: `open` reads a meter, `close` writes it back when something changed; both know the key's fields.

local R = {}

function R.open(key, limit)
  local stored = read(key, 'limit', 'level', 'part', 'stamp_us')
  local meter = {limit = limit, level = limit, part = 0, stamp_us = now_us, stored = stored[1]}
  if not stored[1] then
    return meter
  end
  local old, level, part, stamp_us = tonumber(stored[1]), tonumber(stored[2]), tonumber(stored[3]), tonumber(stored[4])
  local elapsed_us = now_us - stamp_us
  if elapsed_us < -PARTS then   -- the clock of another server, after a failover: do not wait until it is reached
    stamp_us = now_us
  elseif elapsed_us > 0 then
    stamp_us = now_us
    -- elapsed_us * old / PARTS, in steps that stay whole: minutes and the rest of one, millions of tokens and the rest
    local rest_us, rest = math.fmod(elapsed_us, PARTS), math.fmod(old, PARTS)
    local parts = rest_us * rest + part
    part = math.fmod(parts, PARTS)
    level = level + (elapsed_us - rest_us) / PARTS * old + rest_us * ((old - rest) / PARTS) + (parts - part) / PARTS
    if level >= old then
      level, part = old, 0
    end
  end
  meter.level, meter.part, meter.stamp_us = level + limit - old, part, stamp_us
  meter.changed = old ~= limit
  return meter
end

function R.close(key, meter)
  if meter.level >= meter.limit then
    if meter.stored then
      redis.call('DEL', key)
    end
    return
  end
  redis.call('HSET', key, 'limit', int(meter.limit), 'level', int(meter.level), 'part', int(meter.part),
    'stamp_us', int(meter.stamp_us))
  local full_ms = DAY_S * 1000  -- a limit of 0 never is
  if meter.limit > 0 then
    full_ms = (meter.limit - meter.level) / meter.limit * 60000
  end
  redis.call('PEXPIRE', key, int(math.min(math.ceil(full_ms) + 60000, KEPT_MS_MAX)))
end

function R.rest(meter)
  return meter.part
end

local function day_of_month(days)  -- days since 1970, by the civil calendar counted from a first of March
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local month = math.floor((5 * doy + 2) / 153)
  return doy - math.floor((153 * month + 2) / 5) + 1
end

local function day_end()
  return now_s - math.fmod(now_s, DAY_S) + DAY_S
end

local function month_end()
  local today = (now_s - math.fmod(now_s, DAY_S)) / DAY_S
  local following = today - day_of_month(today) + 1 + 31  -- a day of the next month, whatever the length of this one
  return (following - day_of_month(following) + 1) * DAY_S
end

local function window(end_of_it)
  local shape = {}

  function shape.open(key, limit)
    local stored = read(key, 'used', 'ends_s')
    local used, ends_s = tonumber(stored[1] or 0), tonumber(stored[2] or 0)
    if now_s >= ends_s then
      used, ends_s = 0, end_of_it()
    end
    return {limit = limit, level = limit - used, ends_s = ends_s, stored = stored[1]}
  end

  function shape.close(key, meter)
    if meter.level < meter.limit then
      redis.call('HSET', key, 'used', int(meter.limit - meter.level), 'ends_s', int(meter.ends_s))
      redis.call('EXPIREAT', key, int(meter.ends_s + 60))
    elseif meter.stored then
      redis.call('DEL', key)
    end
  end

  function shape.rest(meter)
    return meter.ends_s * 1000000 - now_us
  end

  return shape
end

local function sweep(key, gone)  -- what the other replicas have; the fields of those that are gone are added to `gone`
  local fields, has, used = redis.call('HGETALL', key), {}, 0
  for i = 1, #fields, 2 do
    has[fields[i]] = tonumber(fields[i + 1])
  end
  for field, seen_s in pairs(has) do
    local other = string.match(field, '^seen_s:(.*)$')
    if other and other ~= replica then
      if seen_s + SLOTS_LEASE_S > now_s then
        used = used + (has['has:' .. other] or 0)
      else
        table.insert(gone, 'has:' .. other)
        table.insert(gone, field)
      end
    end
  end
  return used
end

local S = {}

function S.open(key, limit, held)
  local stored = read(key, 'used', 'swept_s', 'has:' .. replica)
  local used, swept_s, mine = tonumber(stored[1] or 0), tonumber(stored[2] or 0), tonumber(stored[3] or 0)
  local meter = {limit = limit, swept_s = swept_s, stored = stored[1], gone = {}}
  if not stored[3] and held > 0 then
    used, mine, meter.changed = used + held, held, true
  end
  if stored[1] and now_s >= swept_s + SLOTS_SWEEP_S then
    used = mine + sweep(key, meter.gone)
    meter.swept_s, meter.changed = now_s, true
  end
  meter.level, meter.mine = limit - used, mine
  return meter
end

function S.close(key, meter)
  local used = meter.limit - meter.level
  if used <= 0 then
    if meter.stored then
      redis.call('DEL', key)
    end
    return
  end
  if meter.mine > 0 then
    redis.call('HSET', key, 'used', int(used), 'swept_s', int(meter.swept_s),
      'has:' .. replica, int(meter.mine), 'seen_s:' .. replica, int(now_s))
  else
    redis.call('HSET', key, 'used', int(used), 'swept_s', int(meter.swept_s))
    table.insert(meter.gone, 'has:' .. replica)
    table.insert(meter.gone, 'seen_s:' .. replica)
  end
  if #meter.gone > 0 then
    redis.call('HDEL', key, unpack(meter.gone))
  end
  redis.call('EXPIRE', key, SLOTS_LEASE_S + 5)
end

function S.rest()
  return 0
end

local SHAPES = {R = R, D = window(day_end), M = window(month_end), S = S}

-- What can be done to a level. `mine` is the replica's own part of what is used: slots only.

local function move(meter, tokens)
  meter.level = meter.level + tokens
  if meter.mine then
    meter.mine = meter.mine - tokens
  end
  meter.changed = meter.changed or tokens ~= 0
end

local DO = {}

function DO.take(meter, need, want)
  if meter.level < need or meter.level <= 0 then
    return 0
  end
  local granted = math.min(meter.level, math.max(want, need))
  move(meter, -granted)
  return granted
end

function DO.give(meter, tokens)
  if meter.mine then
    tokens = math.min(tokens, meter.mine)
  end
  move(meter, tokens)
  if meter.level >= meter.limit then
    meter.level, meter.part = meter.limit, 0
  end
  return 0
end

function DO.drain(meter, tokens)
  local drained = math.max(0, math.min(tokens, meter.level))
  move(meter, -drained)
  if drained < tokens and meter.level == 0 and meter.part then
    meter.part, meter.changed = 0, true
  end
  return drained
end

function DO.touch(meter, has)
  move(meter, meter.mine - has)
  meter.changed = true          -- the time is new
  return 0
end

local function beat(key, leaves)
  if leaves == 1 then
    redis.call('ZREM', key, replica)
  else
    redis.call('ZADD', key, int(now_s), replica)
  end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', '(' .. int(now_s - REPLICA_SEEN_S))
  redis.call('EXPIRE', key, 60)
  return redis.call('ZCARD', key)
end

local replies = {}
for i, key in ipairs(KEYS) do
  local at = 6 * i - 4
  local what, shape, a, b = ARGV[at], SHAPES[ARGV[at + 1]], tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local granted, level, rest = 0, 0, 0
  if what == 'beat' then
    granted = beat(key, a)
  else
    local meter = shape.open(key, tonumber(ARGV[at + 2]), tonumber(ARGV[at + 5]))
    granted = DO[what](meter, a, b)
    if meter.changed then
      shape.close(key, meter)
    end
    level, rest = meter.level, shape.rest(meter)
  end
  replies[3 * i - 2], replies[3 * i - 1], replies[3 * i] = granted, level, rest
end
return replies
