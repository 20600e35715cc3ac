-- Makes this leader the one that may append, unless a later one was here. Says how far the log goes.
-- KEYS: meta. ARGV: version, fence.
-- Of the values nothing is known until the leader has compared: all of them are marked.
local meta, version, fence = KEYS[1], ARGV[1], ARGV[2]
local held = redis.call('HMGET', meta, 'version', 'fence', 'epoch', 'head')
if held[1] and held[1] ~= version then return {'version', held[1]} end
if held[2] and fence < held[2] then return {'fenced', held[2]} end
if not (held[1] and held[3] and held[4]) then return {'nothing'} end
redis.call('HSET', meta, 'fence', fence, 'inexact', '["**"]')
return {'ok', held[3], held[4]}
