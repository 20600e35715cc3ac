//! Client for the walcast notification broker.
