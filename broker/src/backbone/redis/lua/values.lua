-- Says how far the log goes and what holds of these values, as of one moment. Changes nothing.
-- KEYS: meta. ARGV: topics.
local held = redis.call('HMGET', KEYS[1], 'version', 'fence', 'epoch', 'head', 'inexact')
local values, whole = {}, false
if held[3] then
  local state = string.sub(KEYS[1], 1, -5) .. held[3] .. ':state'
  whole = redis.call('HGET', state, '')
  for at = 1, #ARGV do
    values[at] = redis.call('HGET', state, ARGV[at])
  end
end
return {held[1], held[2], held[3], held[4], held[5], whole, values}
