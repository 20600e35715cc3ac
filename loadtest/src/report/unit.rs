//! How figures are written for people: their name's ending says the unit.
//!
//! Pure; three significant digits throughout, for no run on a shared machine is worth more.

use super::figure;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, in powers of 1,000.
    Bytes,
    /// Microseconds.
    Micros,
    /// Per cent; of CPU, 100 is one core.
    Percent,
    /// Things a second.
    PerSecond,
    /// A quotient.
    Ratio,
    /// Things.
    Count,
}

/// The endings of names: what they mean, and the factor to the base unit.
const ENDINGS: [(&str, Unit, f64); 6] = [
    ("_per_second", Unit::PerSecond, 1.0),
    ("_bytes", Unit::Bytes, 1.0),
    ("_us", Unit::Micros, 1.0),
    ("_ms", Unit::Micros, 1e3),
    ("_seconds", Unit::Micros, 1e6),
    ("_percent", Unit::Percent, 1.0),
];

impl Unit {
    /// The unit of the figure `name`, and the factor that takes its values there.
    #[must_use]
    pub fn of(name: &str) -> (Self, f64) {
        if name.contains("_us_per_") {
            return (Self::Micros, 1.0);
        }
        if name.starts_with("ratio_") {
            return (Self::Ratio, 1.0);
        }
        let found = ENDINGS.iter().find(|(ending, ..)| name.ends_with(ending));
        found.map_or((Self::Count, 1.0), |(_, unit, factor)| (*unit, *factor))
    }

    /// `value`, which is in the base unit, for people.
    #[must_use]
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Bytes => scaled(value, &[(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")]),
            Self::Micros => scaled(value, &[(1e6, "s"), (1e3, "ms"), (1.0, "µs")]),
            Self::Percent => format!("{} %", significant(value)),
            Self::PerSecond => format!("{}/s", significant(value)),
            Self::Ratio | Self::Count => significant(value),
        }
    }
}

/// A figure's value as it stands in a run.
#[must_use]
pub fn show(name: &str, value: f64) -> String {
    let (unit, factor) = Unit::of(name);
    unit.show(value * factor)
}

/// A figure's name as the head of a column: the unit stands at its values.
#[must_use]
pub fn title(name: &str) -> String {
    if name == figure::CPU_US_PER_DELIVERY {
        return "CPU per delivery (walcast: without Postgres)".to_owned();
    }
    let name = ENDINGS.iter().find_map(|(ending, ..)| name.strip_suffix(ending)).unwrap_or(name);
    let words = name.replace("_us_per_", "_per_").replace("noop", "no-op").replace('_', " ");
    let words = words.replace("pg notify", "pg_notify");
    words.split(' ').map(|word| if word == "cpu" { "CPU" } else { word }).collect::<Vec<_>>().join(" ")
}

/// Three significant digits; whole numbers in groups of three.
#[must_use]
pub fn significant(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "–".to_owned();
    }
    if size >= 1000.0 {
        return grouped(&format!("{value:.0}"));
    }
    let decimals = match size {
        _ if value.fract() == 0.0 => 0,
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.01 => 2,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

/// A whole number, in groups of three.
#[must_use]
pub fn count(number: u64) -> String {
    grouped(&number.to_string())
}

fn scaled(value: f64, steps: &[(f64, &str)]) -> String {
    let fits = steps.iter().find(|(step, _)| value.abs() >= step * 0.9995).or(steps.last());
    let (step, name) = fits.copied().unwrap_or((1.0, ""));
    format!("{} {name}", significant(value / step))
}

fn grouped(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |rest| ("-", rest));
    let mut text = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_carry_the_unit_of_their_name() {
        for (name, value, expected) in [
            ("memory_per_client_bytes", 1234.0, "1.23 kB"),
            ("memory_per_client_bytes", 999.9, "1.00 kB"),
            ("memory_bytes", 12_345_678.0, "12.3 MB"),
            ("cpu_us_per_event", 99.97, "100 µs"),
            ("cpu_us_per_event", 4800.0, "4.80 ms"),
            ("commit_to_last_ms", 287.4, "287 ms"),
            ("consumer_cpu_seconds", 2.5, "2.50 s"),
            ("deliveries_per_second", 612_345.6, "612,346/s"),
            ("cpu_percent", 0.834, "0.83 %"),
            ("ratio_to_noop", 0.913, "0.91"),
            ("rounds", 5.0, "5"),
            ("rounds", 1_000_000.0, "1,000,000"),
            ("rounds", -1234.0, "-1,234"),
            ("rounds", 0.0, "0"),
            ("rounds", 0.0012, "0.0012"),
            ("ratio_to_noop", f64::NAN, "–"),
        ] {
            assert_eq!(show(name, value), expected, "{name} {value}");
        }
    }

    #[test]
    fn titles_leave_the_unit_to_the_values() {
        for (name, expected) in [
            ("memory_per_client_after_burst_bytes", "memory per client after burst"),
            ("broker_cpu_us_per_event", "broker CPU per event"),
            ("cpu_us_per_delivery", "CPU per delivery (walcast: without Postgres)"),
            ("deliveries_per_second", "deliveries"),
            ("ratio_to_noop", "ratio to no-op"),
            ("ratio_to_pg_notify", "ratio to pg_notify"),
        ] {
            assert_eq!(title(name), expected);
        }
    }
}
