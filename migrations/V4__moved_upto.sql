-- How far the broker has ever moved the slot of this generation, written down before it moves it. NULL until it has
-- seen the slot. A slot beyond was moved by somebody else, or is another one of the same name.
ALTER TABLE walcast.source ADD COLUMN moved_upto pg_lsn;
