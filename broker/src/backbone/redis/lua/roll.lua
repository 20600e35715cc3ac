-- Says who waits at a node, and forgets the nodes whose word has expired.
-- KEYS: the ids of all nodes. ARGV: what the keys of their words begin with, an id, its word, how many ms that holds.
local nodes, base, id = KEYS[1], ARGV[1], ARGV[2]
redis.call('SET', base .. id, ARGV[3], 'PX', ARGV[4])
redis.call('SADD', nodes, id)
for _, other in ipairs(redis.call('SMEMBERS', nodes)) do
  if redis.call('PTTL', base .. other) == -2 then redis.call('SREM', nodes, other) end
end
