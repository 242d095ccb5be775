-- What the store does with a session, each in one step that nothing can come between.
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

local function keep(key, record, seconds)
  redis.call('SET', key, record, 'PX', math.max(1, math.ceil(seconds * 1000)))
end

local command = ARGV[1]

if command == 'save' then
  local still_owned = {}
  for i, key in ipairs(KEYS) do
    local record = ARGV[i + 1]
    local epoch, revision, timeout = struct.unpack('>I8I8d', record)
    local found = read(key)
    if found and found.epoch > epoch then
      still_owned[i] = 0
    else
      still_owned[i] = 1
      if not found or found.epoch < epoch or found.revision <= revision then
        keep(key, record, timeout)
      end
    end
  end
  return still_owned
end

local key = KEYS[1]
local found = read(key)

if command == 'create' then
  if found and not found.deleted then
    return 0
  end
  local now = redis.call('TIME')
  local epoch = now[1] * 1000 + math.floor(now[2] / 1000)
  if found then
    epoch = math.max(epoch, found.epoch + 1)
  end
  local record = ARGV[2]
  local _, _, timeout = struct.unpack('>I8I8d', record)
  keep(key, struct.pack('>I8', epoch) .. string.sub(record, 9), timeout)
  return epoch
end

if command == 'take_over' then
  if not found or found.deleted then
    return false
  end
  local record = struct.pack('>I8', found.epoch + 1) .. string.sub(redis.call('GET', key), 9)
  keep(key, record, found.timeout)
  return record
end

if command == 'delete' then
  for i, each in ipairs(KEYS) do
    local epoch, remember = tonumber(ARGV[i + 1]), tonumber(ARGV[#KEYS + i + 1])
    local record = read(each)
    if not record or record.epoch <= epoch then
      keep(each, struct.pack('>I8I8dB', epoch + 1, 0, remember, 0), remember)
    end
  end
  return 1
end

return redis.error_reply('unknown command')
