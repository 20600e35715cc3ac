//! A table rule: one `[[table]]` of `walcast.toml`.

use serde::Deserialize;

/// One `[[table]]`: which table is published, where, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// Schema and table, joined by a dot, unquoted.
    pub name: String,
    /// The topic of a row; column names in braces.
    pub topic: String,
    /// All that the broker keeps and sends of a row. Absent: every column.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// Whether each topic keeps the row as its current value.
    #[serde(default)]
    pub state: bool,
    /// A CEL expression over `data` and `old`.
    #[serde(default)]
    pub when: Option<String>,
    /// Whether the publication names the columns.
    #[serde(default)]
    pub column_list: bool,
}
