//! Times the hub's part of a wake-up, by the number of topics that somebody waits on.

mod cases;
mod timed;

fn main() {
    timed::group("hub");
}
