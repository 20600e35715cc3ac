//! Which environment variables are ours. One that looks so and is not is a mistake that nobody would notice.

use toml::{Table, Value};

use super::{ConfigError, DOCUMENT, parse};

/// What the names of all our variables begin with.
const PREFIX: &str = "WALCAST_";
/// Read by others than the configuration: flags of commands, tests and their tools.
const ELSEWHERE: [&str; 9] = [
    "CONFIG",
    "TOKEN",
    "DATABASE_URL",
    "URL",
    "SABOTAGE",
    "SOAK",
    "TEST_POSTGRES",
    "NEWER_POSTGRES",
    "THROWAWAY_ROLE",
];

/// What a variable is to the configuration.
pub(super) enum Variable {
    /// It sets this key.
    Sets(String),
    /// It is `DATABASE_URL`.
    Database,
    /// It is nothing to us.
    Foreign,
    /// It begins as ours do, and nothing reads it.
    Unknown(ConfigError),
}

/// Goes by the name alone.
pub(super) fn read(name: &str) -> Variable {
    match name.strip_prefix(PREFIX) {
        None if name == "DATABASE_URL" => Variable::Database,
        None => Variable::Foreign,
        Some("LOG") => Variable::Sets("log.level".to_owned()),
        Some(rest) if rest.contains("__") => Variable::Sets(rest.to_ascii_lowercase().replace("__", ".")),
        Some(rest) if ELSEWHERE.contains(&rest) || of_a_service(rest) => Variable::Foreign,
        Some(rest) => Variable::Unknown(unknown(name, rest)),
    }
}

/// Whether Kubernetes makes it by itself, for a service whose name begins with `walcast`.
fn of_a_service(rest: &str) -> bool {
    let rest = format!("_{rest}");
    let numbered = |(_, port): (&str, &str)| port.starts_with(|first: char| first.is_ascii_digit());
    rest.ends_with("_SERVICE_HOST")
        || rest.ends_with("_SERVICE_PORT")
        || rest.contains("_SERVICE_PORT_")
        || rest.ends_with("_PORT")
        || rest.rsplit_once("_PORT_").is_some_and(numbered)
}

fn unknown(name: &str, rest: &str) -> ConfigError {
    let remedy = match likely(rest) {
        Some(likely) => format!("write {likely}, with two underscores after the section"),
        None => format!(
            "write {PREFIX}SECTION__KEY, with two underscores after the section, or unset it (all keys are in \
             {DOCUMENT})"
        ),
    };
    ConfigError { origin: name.to_owned(), key: None, cause: "no such variable is known".into(), remedy }
}

/// The variable that was meant, if only the second underscore is missing. The sections themselves are asked.
fn likely(rest: &str) -> Option<String> {
    let known = |(at, _): &(usize, &str)| {
        let (section, key) = (rest[..*at].to_ascii_lowercase(), rest[at + 1..].to_ascii_lowercase());
        let probe = Table::from_iter([(key, Value::Boolean(false))]);
        let probe = Table::from_iter([(section.clone(), Value::Table(probe))]);
        // Rules are in the file only.
        section != "table" && !parse(&probe).is_err_and(|(_, cause)| cause.starts_with("unknown field"))
    };
    let (at, _) = rest.match_indices('_').find(known)?;
    Some(format!("{PREFIX}{}__{}", &rest[..at], &rest[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_ours_and_is_not_is_told() {
        let check = |name: &str, remedy: &str| match read(name) {
            Variable::Unknown(error) => {
                let text = error.to_string();
                assert!(text.starts_with(name) && text.contains(remedy), "{text}");
            }
            _ => panic!("{name} was taken"),
        };
        check("WALCAST_HTTP_LISTEN", "write WALCAST_HTTP__LISTEN, ");
        check("WALCAST_HTTP_WAIT_MAX", "write WALCAST_HTTP__WAIT_MAX, ");
        check("WALCAST_POSTGRES_URL", "write WALCAST_POSTGRES__URL, ");
        check("WALCAST_SOURCE_SEED_BYTES_PER_SECOND", "write WALCAST_SOURCE__SEED_BYTES_PER_SECOND, ");
        check("WALCAST_HTTP_LISEN", "WALCAST_SECTION__KEY");
        check("WALCAST_TABLE_NAME", "WALCAST_SECTION__KEY");
        check("WALCAST_LISTEN", "docs/configuration.md");
        check("WALCAST_", "docs/configuration.md");
    }

    #[test]
    fn what_others_make_is_left_alone() {
        let foreign = [
            "PATH",
            "WALCAST_CONFIG",
            "WALCAST_DATABASE_URL",
            "WALCAST_SERVICE_HOST",
            "WALCAST_SERVICE_PORT",
            "WALCAST_SERVICE_PORT_HTTP",
            "WALCAST_PORT",
            "WALCAST_PORT_8480_TCP",
            "WALCAST_PORT_8480_TCP_ADDR",
            "WALCAST_PORT_8480_TCP_PORT",
            "WALCAST_PORT_8480_TCP_PROTO",
            "WALCAST_HTTP_SERVICE_HOST",
            "WALCAST_HTTP_PORT_8480_TCP",
        ];
        for name in foreign {
            assert!(matches!(read(name), Variable::Foreign), "{name}");
        }
    }
}
