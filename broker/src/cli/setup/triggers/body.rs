//! What a table's trigger function does with a changed row: it writes it to the outbox.
//!
//! It must never make the application's statement fail. Where the table is no longer what setup saw, rows are sent as
//! they are; where a row is too large, what makes it so is left out. And it never casts a table's row, nor a value whose
//! type it has not looked at: its owner may have made a cast that is a function of his own, and that would run with the
//! rights of ours. (A record is written by its columns' output functions, and those only a superuser makes.)

use super::super::statements::{ident, literal};
use super::limit::{ROW_BYTES_MAX, too_large};

/// Types below this one have the same oid on every server, and after a restore.
const FIRST_OWN_TYPE: u32 = 10_000;

/// The numbers of the columns of a table's replica identity.
pub(super) const KEY: &str = "ARRAY(
                SELECT unnest(i.indkey[0:i.indnkeyatts - 1])
                FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_index AS i ON i.indrelid = c.oid
                WHERE c.oid = TG_RELID
                    AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END)";

/// A field of the rows that are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// The column's, unquoted.
    pub(super) name: String,
    /// The oid of its type.
    pub(super) kind: u32,
    /// Values of its type may have any length.
    pub(super) long: bool,
    /// Generated columns are not, as by the log.
    pub(super) published: bool,
    /// Belongs to the replica identity.
    pub(super) key: bool,
}

impl Field {
    pub(super) fn of(&self, row: &str) -> String {
        format!("{row}.{}", ident(&self.name))
    }

    fn is_built_in(&self) -> bool {
        self.kind < FIRST_OWN_TYPE
    }
}

/// A table as setup saw it, and what is to be sent of it.
#[derive(Debug)]
pub(super) struct Shape<'a> {
    /// Its schema and name.
    pub(super) topic: &'a str,
    pub(super) fields: &'a [Field],
    /// The columns of the replica identity.
    pub(super) key: &'a [String],
    /// The replica identity is the whole row.
    pub(super) full: bool,
    /// All columns are sent, also those that are added.
    pub(super) whole: bool,
}

impl Shape<'_> {
    /// The source of the function.
    pub(super) fn body(&self) -> String {
        let (topic, full) = (literal(self.topic), self.full);
        let (columns, other_types) = (self.columns(), self.other_types());
        let (new, old) = (self.row("NEW"), if full { self.row("OLD") } else { self.key_of("OLD") });
        let (fits_new, fits_old) = (self.fits("NEW"), self.fits("OLD"));
        // A column that was added is not among those that are named, so the whole is compared.
        let (same_new, same_old, same_columns) = if self.whole {
            (
                format!("same := new_row = {};", as_it_is("NEW")),
                format!("same := {}::pg_catalog.text = {};", self.row("OLD"), as_it_is("OLD")),
                "same := same AND actual IS NOT DISTINCT FROM columns;",
            )
        } else {
            (String::new(), String::new(), "")
        };
        let fits_deleted = if full || self.whole { fits_old.as_str() } else { "" };
        let (moved, fits_old) = if full { (String::new(), fits_old.as_str()) } else { (self.moved(), "") };
        let (whole_new, whole_old) = (as_it_is("NEW"), as_it_is("OLD"));
        let (actual, cut_down, too_large) = (self.actual(), self.cut_down(), too_large());
        format!(
            "
DECLARE
    columns pg_catalog.jsonb;
    actual  pg_catalog.jsonb;
    new_row pg_catalog.text;
    old_row pg_catalog.text;
    new_omitted pg_catalog.int4[];
    old_omitted pg_catalog.int4[];
    omitted pg_catalog.jsonb;
    same    pg_catalog.bool := true;
    large   pg_catalog.bool := false;
    most    pg_catalog.int4;
    cut     pg_catalog.text;
BEGIN
    IF walcast.carry() <> 'outbox' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO walcast.outbox (lane, topic, options, data)
        VALUES (walcast.lane(), {topic}, ' op=truncate', '{{}}');
        RETURN NULL;
    END IF;
    BEGIN
        columns := {columns};
        IF {other_types} THEN
            RAISE datatype_mismatch;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            {fits_new}
            new_row := {new}::pg_catalog.text;
            {same_new}
        ELSE
            {fits_deleted}
            old_row := {old}::pg_catalog.text;
            {same_old}
        END IF;
        IF TG_OP = 'UPDATE'{moved} THEN
            {fits_old}
            old_row := {old}::pg_catalog.text;
        END IF;
        large := {too_large};
    EXCEPTION
        WHEN undefined_column OR datatype_mismatch THEN
            same := false;
        WHEN OTHERS THEN
            large := true;
    END;
    IF NOT same OR large THEN
        {actual}
        {same_columns}
    END IF;
    IF NOT same THEN
        -- The table was altered since setup, so its rows go as they are.
        columns := actual;
        BEGIN
            IF greatest(pg_column_size(NEW), pg_column_size(OLD)) > {ROW_BYTES_MAX} THEN
                RAISE program_limit_exceeded;
            END IF;
            new_row := CASE WHEN TG_OP <> 'DELETE' THEN {whole_new} END;
            old_row := CASE WHEN TG_OP <> 'INSERT' THEN {whole_old} END;
            large := {too_large};
        EXCEPTION WHEN OTHERS THEN
            large := true;
        END;
    END IF;
    IF large THEN
        {cut_down}
    END IF;
    INSERT INTO walcast.outbox (lane, topic, options, data)
    VALUES (walcast.lane(), {topic}, ' op=' || lower(TG_OP), jsonb_strip_nulls(jsonb_build_object(
        'columns', columns, 'new', new_row, 'old', old_row, 'full', {full}, 'omitted', omitted)));
    RETURN NULL;
END "
        )
    }

    /// What tells a reader of each field: its name, its type, whether it is a key's. The type of one that is not built in
    /// is looked up, for a restore makes it anew.
    fn columns(&self) -> String {
        if self.fields.iter().all(Field::is_built_in) {
            let told = |field: &Field| field.published.then(|| (field.name.clone(), field.kind, field.key));
            let told: Vec<_> = self.fields.iter().map(told).collect();
            // Strings, numbers and flags: nothing that could fail.
            return literal(&serde_json::to_string(&told).unwrap_or_default()) + "::pg_catalog.jsonb";
        }
        let columns = self.fields.iter().map(|field| {
            if !field.published {
                return "NULL".to_owned();
            }
            let (name, value) = (literal(&field.name), field.of("NEW"));
            format!(
                "jsonb_build_array({name}, pg_typeof({value})::pg_catalog.oid::pg_catalog.int8, {})",
                field.key
            )
        });
        format!(
            "to_jsonb(ARRAY[{}]::pg_catalog.jsonb[])",
            columns.collect::<Vec<_>>().join(",\n            ")
        )
    }

    /// Some column has not the type that it had. It is a statement of its own because the next one would find casts of
    /// the new type as soon as it is parsed.
    fn other_types(&self) -> String {
        let other = self
            .fields
            .iter()
            .filter(|field| field.is_built_in())
            .map(|field| format!("pg_typeof({})::pg_catalog.oid <> {}", field.of("NEW"), field.kind));
        other.chain(["false".to_owned()]).collect::<Vec<_>>().join(" OR ")
    }

    /// `row` as a record.
    fn row(&self, row: &str) -> String {
        record(self.fields.iter().map(|field| field.of(row)))
    }

    /// The same with nothing but the key.
    pub(super) fn key_of(&self, row: &str) -> String {
        record(
            self.fields
                .iter()
                .map(|field| if field.published && field.key { field.of(row) } else { "NULL".to_owned() }),
        )
    }

    /// The update changed the key.
    fn moved(&self) -> String {
        let key = |row: &str| record(self.key.iter().map(|name| format!("{row}.{}", ident(name))));
        format!(" AND record_image_ne({}, {})", key("OLD"), key("NEW"))
    }

    /// The columns as the catalog has them, likewise.
    fn actual(&self) -> String {
        format!(
            "actual := (
            SELECT jsonb_agg(CASE WHEN a.attgenerated = '' THEN jsonb_build_array(a.attname, a.atttypid::pg_catalog.int8,
                {full} OR a.attnum = ANY ({KEY})) END ORDER BY a.attnum)
            FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped);",
            full = self.full
        )
    }
}

/// Of these values.
pub(super) fn record(values: impl Iterator<Item = String>) -> String {
    format!("ROW({})", values.collect::<Vec<_>>().join(", "))
}

/// A row with all its columns, whatever they are.
fn as_it_is(row: &str) -> String {
    format!("pg_catalog.textin(pg_catalog.record_out({row}))")
}
