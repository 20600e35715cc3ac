//! Times routing a change.

mod cases;
mod timed;

fn main() {
    timed::group("router");
}
