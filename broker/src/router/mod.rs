//! Rules: from raw changes to topics and payloads. Pure.
