//! The write-ahead log as a source.
