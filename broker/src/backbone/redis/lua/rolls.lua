-- Reads what nodes have said, and for how many ms more that holds. Changes nothing.
-- KEYS: the ids of all nodes. ARGV: what the keys of their words begin with, an id that is left out.
local told = {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local word = id ~= ARGV[2] and redis.call('GET', ARGV[1] .. id)
  if word then told[#told + 1] = {word, redis.call('PTTL', ARGV[1] .. id)} end
end
return told
