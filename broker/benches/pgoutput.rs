//! Times reading a transaction from the replication stream.

mod cases;
mod timed;

fn main() {
    timed::group("pgoutput");
}
