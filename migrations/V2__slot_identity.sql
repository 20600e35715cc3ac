-- By what the broker knows that a slot is still the one it left. All NULL until the broker has seen it.
ALTER TABLE walcast.source
    -- The publication that it was made for. One that is dropped and made again under its old name has another
    -- oid: for all that was written before, Postgres does not know it, so the slot has to be made again, too.
    ADD COLUMN publication_oid oid,
    -- Where the slot was moved to when `quiet_lsn` was written. Beyond that somebody else moved it.
    ADD COLUMN quiet_upto pg_lsn;
