# Demo and tests start servers of their own. `make demo ARGS="--vms 5000"` passes arguments on.
# The tests also want a newer Postgres than most machines have, and a browser.
.PHONY: setup newer build demo test soak bench micro check doc fmt clean

setup: ; @scripts/setup
newer: ; @scripts/setup --newer-postgres --browser
build: setup ; cargo build --release --locked --workspace
demo: setup ; cargo run --release --locked -p walcast -- demo $(ARGS)
test: newer check ; cargo test --workspace --locked
soak: newer ; WALCAST_SOAK=1 cargo test --workspace --locked
bench: ; @scripts/setup --bench && cargo build --release --locked -p walcast -p walcast-loadtest && \
	env -u WALCAST_DATABASE_URL target/release/walcast-loadtest bench --json target/bench.json --html target/bench.html $(ARGS) && \
	cargo bench --locked -p walcast --bench instructions
micro: setup ; cargo bench --locked -p walcast --bench backbone --bench hub --bench pgoutput --bench router
check: setup ; scripts/check
doc: ; cargo doc --no-deps --workspace --locked --open
fmt: ; cargo fmt --all
clean: ; cargo clean
