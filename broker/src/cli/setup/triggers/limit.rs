//! What a table's trigger function leaves out of a row that is too large.
//!
//! A string in JSON has a limit and a value in Postgres another, and a statement that changes a small column is not to
//! write megabytes beside it. Values are measured before they are read from where they are stored, and the row once more
//! when it is text. This must never leave out a key that can be written.

use super::body::{Field, KEY, Shape, record};

/// The text of a row that is sent whole, in bytes.
pub(super) const ROW_BYTES_MAX: usize = 8 << 20;

/// What is sent of a row that was too large as text though it did not look it, in bytes of a value as it is measured.
const VALUE_BYTES_MAX: usize = 1 << 10;

/// The types `text`, `char(n)` and `varchar(n)`.
const STRINGS: [u32; 3] = [25, 1042, 1043];
const BYTEA: u32 = 17;

/// Whether a change is, as text.
pub(super) fn too_large() -> String {
    format!("greatest(octet_length(new_row), octet_length(old_row)) > {ROW_BYTES_MAX}")
}

impl Field {
    /// About how long its text is: of a string its bytes, of `bytea` its hexadecimal digits, of others what they take in
    /// storage, which may be much less.
    fn size(&self, row: &str) -> String {
        let value = self.of(row);
        match self.kind {
            kind if STRINGS.contains(&kind) => format!("octet_length({value})"),
            BYTEA => format!("2 * octet_length({value})::pg_catalog.int8"),
            _ => format!("pg_column_size({value})"),
        }
    }
}

impl Shape<'_> {
    /// Those that may be left out, with their numbers. A key is in an index, which takes no long one; REPLICA IDENTITY
    /// FULL asks for none.
    fn long(&self) -> impl Iterator<Item = (usize, &Field)> {
        self.fields.iter().enumerate().filter(|(_, field)| field.long && (self.full || !field.key))
    }

    /// Gives up on a row that is too large. Only one with a value above its share can be, and that is quickly seen.
    pub(super) fn fits(&self, row: &str) -> String {
        let sizes: Vec<_> = self.long().map(|(_, field)| field.size(row)).collect();
        if sizes.is_empty() {
            return String::new();
        }
        let (sizes, share) = (sizes.join(", "), ROW_BYTES_MAX / self.fields.len());
        format!(
            "IF greatest({sizes}) > {share} THEN
                IF (SELECT sum(size) FROM unnest(ARRAY[{sizes}]::pg_catalog.int8[]) AS size) > {ROW_BYTES_MAX} THEN
                    RAISE program_limit_exceeded;
                END IF;
            END IF;"
        )
    }

    /// Makes the rows of a change that is too large: without the values above their share, else with short ones only,
    /// else with nothing. Where none is above its share, the text would be the one that was too large, and making it may
    /// take long.
    pub(super) fn cut_down(&self) -> String {
        let (above_new, cut_new) = self.cut("NEW", "new");
        let (above_old, cut_old) = if self.full {
            self.cut("OLD", "old")
        } else {
            (String::new(), format!("old_row := {}::pg_catalog.text;", self.key_of("OLD")))
        };
        let (altered, too_large) = (self.cut_altered(), too_large());
        format!(
            "IF NOT same THEN
            {altered}
        END IF;
        FOREACH most IN ARRAY ARRAY[{ROW_BYTES_MAX} / greatest(jsonb_array_length(columns), 1), {VALUE_BYTES_MAX}] LOOP
            BEGIN
                IF TG_OP <> 'DELETE' AND same THEN
                    {above_new}
                END IF;
                IF TG_OP <> 'INSERT' AND same THEN
                    {above_old}
                END IF;
                CONTINUE WHEN same AND most > {VALUE_BYTES_MAX}
                    AND coalesce(cardinality(new_omitted), 0) + coalesce(cardinality(old_omitted), 0) = 0;
                IF TG_OP <> 'DELETE' AND same THEN
                    {cut_new}
                ELSIF TG_OP <> 'DELETE' THEN
                    EXECUTE cut INTO new_row, new_omitted USING NEW, most;
                END IF;
                IF TG_OP <> 'INSERT' AND same THEN
                    {cut_old}
                ELSIF TG_OP <> 'INSERT' THEN
                    EXECUTE cut INTO old_row, old_omitted USING OLD, most;
                END IF;
                large := {too_large};
                EXIT WHEN NOT large;
            EXCEPTION WHEN OTHERS THEN
                large := true;
            END;
        END LOOP;
        IF large THEN
            -- Its key is too large. That it changed is all that can be said.
            new_omitted := ARRAY(SELECT generate_series(0, jsonb_array_length(columns) - 1));
            old_omitted := new_omitted;
            cut := '(' || repeat(',', jsonb_array_length(columns) - 1) || ')';
            new_row := CASE WHEN TG_OP <> 'DELETE' THEN cut END;
            old_row := CASE WHEN TG_OP <> 'INSERT' THEN cut END;
        END IF;
        omitted := nullif(jsonb_strip_nulls(jsonb_build_object('new', new_omitted, 'old', old_omitted)), '{{}}');"
        )
    }

    /// Which values of `row` are longer than `most`; and, as the second statement, the row without those.
    fn cut(&self, row: &str, to: &str) -> (String, String) {
        let omitted = self
            .long()
            .map(|(number, field)| format!("CASE WHEN {} > most THEN {number} END", field.size(row)));
        let omitted = omitted.collect::<Vec<_>>().join(", ");
        let mut values: Vec<_> = self.fields.iter().map(|field| field.of(row)).collect();
        for (number, field) in self.long() {
            values[number] = format!("CASE WHEN {number} <> ALL ({to}_omitted) THEN {} END", field.of(row));
        }
        let values = record(values.into_iter());
        (
            format!("{to}_omitted := array_remove(ARRAY[{omitted}]::pg_catalog.int4[], NULL);"),
            format!("{to}_row := {values}::pg_catalog.text;"),
        )
    }

    /// The same of a table that was altered: a statement of a row `$1`, where `$2` is `most`.
    fn cut_altered(&self) -> String {
        let (full, strings) = (self.full, STRINGS.map(|oid| oid.to_string()).join(", "));
        format!(
            "SELECT format('SELECT ROW(%s)::pg_catalog.text, o.o
                FROM (SELECT array_remove(ARRAY[%s]::pg_catalog.int4[], NULL) AS o OFFSET 0) AS o',
                string_agg(format('CASE WHEN %s <> ALL (o.o) THEN ($1).%I END', a.number, a.attname), ', ' ORDER BY a.number),
                string_agg(format('CASE WHEN ' || CASE
                    WHEN a.attlen > 0 OR NOT {full} AND a.is_key THEN '0'
                    WHEN a.atttypid IN ({strings}) THEN 'octet_length(($1).%2$I)'
                    WHEN a.atttypid = {BYTEA} THEN '2 * octet_length(($1).%2$I)::pg_catalog.int8'
                    ELSE 'pg_column_size(($1).%2$I)' END || ' > $2 THEN %1$s END', a.number, a.attname), ', ' ORDER BY a.number))
            INTO cut
            FROM (SELECT a.attname, a.atttypid, a.attlen, a.attnum = ANY ({KEY}) AS is_key,
                    row_number() OVER (ORDER BY a.attnum) - 1 AS number
                FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped) AS a;"
        )
    }
}
