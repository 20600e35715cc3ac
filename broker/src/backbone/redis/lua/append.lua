-- Appends one page with all that belongs to it, or changes nothing.
-- KEYS: meta; log and state of the page's epoch.
-- ARGV: version, fence, epoch, after, upto, '1' if the line begins here; id of the entry, '' for none; events, remarks,
--   '' for none; inexact; the id from which on entries are kept; what channels begin with, '' to publish nothing; how
--   many topics of events, values set, values removed; those topics, topics and values in turn, topics.
-- Places and fences are digits of equal width and are compared as text: as numbers they would merge above 2^53.
local meta, log, state = KEYS[1], KEYS[2], KEYS[3]
local version, fence, epoch, after, upto = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local begins, id, events, remarks, inexact = ARGV[6] == '1', ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local kept, channels = ARGV[11], ARGV[12]
local topics, sets, removals = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])
local held = redis.call('HMGET', meta, 'version', 'fence', 'epoch', 'head')

if held[1] and held[1] ~= version then return {'version', held[1]} end
if held[2] and fence < held[2] then return {'fenced', held[2]} end
if not begins and (held[3] ~= epoch or held[4] ~= after) then
  -- The answer to this very append was lost.
  if id ~= '' and held[3] == epoch and held[4] == upto and held[2] == fence then return {'ok'} end
  return {'moved', held[3], held[4]}
end

-- From here on everything is done. If memory is used up or this server takes no writes, the first of them fails.
if begins then
  if held[3] then
    local old = string.sub(meta, 1, -5) .. held[3]
    redis.call('UNLINK', old .. ':log', old .. ':state', old .. ':state:new')
  end
  redis.call('UNLINK', log, state, state .. ':new')
end
if id ~= '' then
  local entry = {'after', after}
  if events ~= '' then entry[#entry + 1] = 'events'; entry[#entry + 1] = events end
  if remarks ~= '' then entry[#entry + 1] = 'remarks'; entry[#entry + 1] = remarks end
  local added = redis.pcall('XADD', log, id, unpack(entry))
  if type(added) == 'table' and added.err then
    -- Rights that were withdrawn in the middle of an append leave an entry beyond the head. The same one will do.
    local found = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
    if not found or not string.find(added.err, 'equal or smaller', 1, true) then return added end
    if found[1] ~= id or table.concat(found[2], '\n') ~= table.concat(entry, '\n') then return {'torn', found[1]} end
  end
end
local at = 16
local function each(command, key, count, width)
  local last = at + count * width - 1
  for first = at, last, 1000 do
    redis.call(command, key, unpack(ARGV, first, math.min(first + 999, last)))
  end
  at = last + 1
end
local published = at
at = at + topics
-- A field without a name says that the hash is whole.
if begins then redis.call('HSET', state, '', epoch) end
each('HSET', state, sets, 2)
each('HDEL', state, removals, 1)
redis.call('HSET', meta, 'version', version, 'epoch', epoch, 'head', upto, 'fence', fence, 'inexact', inexact)
redis.call('XTRIM', log, 'MINID', kept)
if channels ~= '' then
  local from = 1
  for topic = published, published + topics - 1 do
    local to = string.find(events, '\n', from, true) or #events + 1
    redis.call('PUBLISH', channels .. ARGV[topic], string.sub(events, from, to - 1))
    from = to + 1
  end
end
return {'ok'}
