//! The hub: recent history, current values, and who waits for what.
