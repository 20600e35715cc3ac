-- A broker that is to take over from the one that leads says so here; the leader looks, and lets go.
ALTER TABLE walcast.source
    ADD COLUMN takeover_by uuid,
    ADD COLUMN takeover_at timestamptz;
