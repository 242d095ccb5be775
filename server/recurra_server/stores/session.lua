-- What the store does with sessions, each in one step that nothing can come between: a command, and for each key an
-- argument; the answer has a value for each.
--
-- A record is a header of 25 bytes, big-endian: u64 epoch, u64 revision, f64 idle timeout in seconds, u8 durability;
-- and the snapshot, which is empty where the session was deleted. Epochs are kept below 2^53, as numbers here are doubles.

local HEADER = 25

local function read(key)
  local header = redis.call('GETRANGE', key, 0, HEADER - 1)
  if #header < HEADER then
    return nil
  end
  local epoch, revision, timeout = struct.unpack('>I8I8d', header)
  return { epoch = epoch, revision = revision, timeout = timeout, deleted = redis.call('STRLEN', key) == HEADER }
end

local function keep(key, record)
  local _, _, timeout = struct.unpack('>I8I8d', record)
  redis.call('SET', key, record, 'PX', math.max(1, math.ceil(timeout * 1000)))
end

-- Milliseconds since 1970: so an epoch is never given twice, not even by a store that has lost all it knew.
local function next_epoch(found)
  local now = redis.call('TIME')
  local epoch = now[1] * 1000 + math.floor(now[2] / 1000)
  return found and math.max(epoch, found.epoch + 1) or epoch
end

local commands = {}

function commands.save(key, record)
  local epoch, revision = struct.unpack('>I8I8', record)
  local found = read(key)
  if found and found.epoch > epoch then
    return 0
  end
  if not found or found.epoch < epoch or found.revision <= revision then
    keep(key, record)
  end
  return 1
end

function commands.create(key, record)
  local found = read(key)
  if found and not found.deleted then
    return 0
  end
  local epoch = next_epoch(found)
  keep(key, struct.pack('>I8', epoch) .. string.sub(record, 9))
  return epoch
end

function commands.take_over(key)
  local found = read(key)
  if not found or found.deleted then
    return false
  end
  local record = struct.pack('>I8', next_epoch(found)) .. string.sub(redis.call('GET', key), 9)
  keep(key, record)
  return record
end

-- The argument is a header of the owner's epoch + 1.
function commands.delete(key, header)
  local epoch = struct.unpack('>I8', header)
  local found = read(key)
  if not found or found.epoch < epoch then
    local kept = redis.pcall('SET', key, header, 'PX', math.max(1, math.ceil(struct.unpack('>d', header, 17) * 1000)))
    if kept.err then -- a store that is full lets go all the same: so it has room again
      redis.call('DEL', key)
    end
  end
  return 1
end

-- Who the store is, kept in a key that is written each time: so it is also known whether it takes anything.
function commands.identify(key, proposal)
  local known = redis.call('GET', key) or proposal
  redis.call('SET', key, known)
  return known
end

local answers = {}
for i, key in ipairs(KEYS) do
  answers[i] = commands[ARGV[1]](key, ARGV[i + 1])
end
return answers
