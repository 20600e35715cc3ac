//! Times the cases of one group by criterion.

use criterion::Criterion;

use crate::cases;

/// Times the group, as the command line asks for.
pub(crate) fn group(name: &str) {
    let mut criterion = Criterion::default().configure_from_args();
    for case in cases::ALL.iter().filter(|case| case.name.split('/').next() == Some(name)) {
        let mut operation = (case.make)();
        criterion.bench_function(case.name, |bencher| bencher.iter(&mut operation));
    }
    criterion.final_summary();
}
