-- Puts the new values in the place of all, if they still are those of the head.
-- KEYS: meta, values, the new values. ARGV: version, fence, epoch, head, inexact, how many values there are.
local meta, state, new = KEYS[1], KEYS[2], KEYS[3]
local version, fence, epoch, head, inexact, count = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local held = redis.call('HMGET', meta, 'version', 'fence', 'epoch', 'head')
if held[1] and held[1] ~= version then return {'version', held[1]} end
if held[2] and fence < held[2] then return {'fenced', held[2]} end
if held[2] ~= fence or held[3] ~= epoch or held[4] ~= head then return {'moved', held[3], held[4]} end
-- One more for the field that says that the hash is whole.
if redis.call('HLEN', new) ~= count + 1 then return {'again'} end
-- Freed aside: to do it at once would hold up everybody else.
redis.call('UNLINK', state)
redis.call('RENAME', new, state)
redis.call('HSET', meta, 'inexact', inexact)
return {'ok', held[3], held[4]}
