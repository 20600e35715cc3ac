-- Writes some of the values that are to take the place of all.
-- KEYS: meta, the new values. ARGV: version, fence, epoch, '1' for the first of them; topics and values in turn.
-- A leader that is none any more must not mix his values with ours, so each part asks for the fence.
local meta, new = KEYS[1], KEYS[2]
local version, fence, epoch, first = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local held = redis.call('HMGET', meta, 'version', 'fence', 'epoch', 'head')
if held[1] and held[1] ~= version then return {'version', held[1]} end
if held[2] and fence < held[2] then return {'fenced', held[2]} end
if held[2] ~= fence or held[3] ~= epoch then return {'moved', held[3], held[4]} end
if first then
  redis.call('UNLINK', new)
  redis.call('HSET', new, '', epoch)
end
for at = 5, #ARGV, 1000 do
  redis.call('HSET', new, unpack(ARGV, at, math.min(at + 999, #ARGV)))
end
return {'ok'}
