# `make demo` shows it running, `make test` proves it. Both install what the machine lacks.

CARGO ?= cargo
# Where cargo builds.
TARGET = $(or $(CARGO_TARGET_DIR),target)
# Given to the demo: make demo ARGS='--listen 127.0.0.1:4100'
ARGS ?=
# Fresh seeds of the oracle; about four seconds each. SEED=n in the environment runs one again.
SEEDS ?= $(if $(SEED),1,50)
# Of the oracle: tables,devices,rounds,connections,transactions,alterations.
SIZE ?= 6,6,3,4,100,4
# What breaks meanwhile: none, all, or names of faults with commas between them.
FAULTS ?= none
# Tests at once. Each runs a PostgreSQL and mostly waits, so there are more of them than cores.
TEST_THREADS ?= 4
# How long each fuzz target runs; TARGETS='values frames' names some of them.
SECONDS ?= 60
TARGETS ?=
# The versions of PostgreSQL that the integration tests run on, by their first number.
VERSIONS ?= 15 16 17 18

# Of the benchmark: which figures (names with commas), a factor of all sizes, one more of the large logs, how often each is measured.
FIGURES ?= all
SCALE ?= 1
LOG_SCALE ?= 0.2
RUNS ?= 3
RESULTS ?= benches/results

.PHONY: help bench bench-deps demo demo-check test test-matrix test-mutants test-bounds oracle fuzz corpus audit deps fuzz-deps lint docs

help:
	@echo 'make demo        a private PostgreSQL, a relay and example data, until Ctrl-C (ARGS=... for options)'
	@echo 'make demo-check  the same, checking itself and ending'
	@echo 'make test        format, lints, documentation, unit and integration tests'
	@echo 'make test-matrix  the integration tests on PostgreSQL 15 to 18, with servers from npm (VERSIONS="17 18" for some)'
	@echo 'make oracle      random writers and devices, for SEEDS=n fresh seeds, or one of them again with SEED=n; FAULTS=all breaks all meanwhile'
	@echo 'make test-bounds  what must stay bounded at full size: 10,000 sessions, a transaction of 2 million rows, …'
	@echo 'make bench       every figure with its reference, a table, JSON and plots (FIGURES=ingest,fanout SCALE=0.1 RUNS=3; see benches/README.md)'
	@echo 'make fuzz        bytes at random for everything that reads outside input, SECONDS=n for each target'
	@echo 'make corpus      the seeds of the fuzz targets anew, from a PostgreSQL and a log'
	@echo 'make audit       known holes in the dependencies, by the RustSec advisories (needs the network)'
	@echo 'make test-mutants  builds the relay with a known mistake, which the tests must find'

deps:
	@sh scripts/install-deps.sh

fuzz-deps:
	@sh scripts/install-deps.sh fuzz

bench-deps:
	@sh scripts/install-deps.sh bench

# The optimized relay; quiet machines give better figures. SCALE=0.05 RUNS=1 shows in minutes whether it all runs.
bench: bench-deps
	$(CARGO) build --release --package rowcast --package rowcast-benches
	FIGURES='$(FIGURES)' SCALE='$(SCALE)' LOG_SCALE='$(LOG_SCALE)' RUNS='$(RUNS)' \
		$(TARGET)/release/rowcast-benches --results '$(RESULTS)'

demo: deps
	@$(CARGO) build
	@$(CARGO) run --quiet -- demo $(ARGS)

demo-check: deps
	@$(CARGO) build
	@$(CARGO) run --quiet -- demo --check $(ARGS)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --quiet --all-targets -- -D warnings
	$(CARGO) clippy --quiet --package rowcast-fuzz -- -D warnings
	$(CARGO) clippy --quiet --package rowcast-benches --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' $(CARGO) doc --quiet --no-deps --document-private-items

# One cargo command builds the library, the program and the tests, and then runs them all.
test: fuzz-deps lint docs
	$(CARGO) test --quiet --no-run
	$(CARGO) test -- --test-threads=$(TEST_THREADS)
	fuzz/run.sh run $(SECONDS) $(TARGETS)

test-matrix: deps
	MATRIX_ARGS='--test-threads=$(TEST_THREADS)' sh scripts/test-matrix.sh $(VERSIONS)

oracle: deps
	ROWCAST_ORACLE_SEEDS=$(SEEDS) ROWCAST_ORACLE_FAULTS=$(FAULTS) $(if $(SIZE),ROWCAST_ORACLE_SIZE=$(SIZE)) \
		$(CARGO) test --test relay -- --exact oracle::seeds_that_were_never_tried --nocapture

# Half an hour, 10,000 open files, some 5 GB of disk; the figures are printed. BOUNDS=sessions runs one of them.
BOUNDS ?=
test-bounds: deps
	ROWCAST_TEST_BOUNDS=100 $(CARGO) test --test relay -- bounds::$(BOUNDS) --test-threads=1 --nocapture

# The tests of the handoff, against a relay that forgets what a snapshot does not show: each must fail.
MUTANT_TESTS = full::handoff::a_commit_that_is_decoded_and_not_visible_is_neither_lost_nor_repeated \
	full::rate::no_handoff_loses_or_repeats_a_change
test-mutants: deps
	$(CARGO) test --quiet --features failpoints --test relay --no-run
	@for test in $(MUTANT_TESTS); do \
		if $(CARGO) test --quiet --features failpoints --test relay -- --exact $$test >$(TARGET)/mutant.txt 2>&1 \
			|| ! grep -q 'assertion .* failed' $(TARGET)/mutant.txt; \
		then cat $(TARGET)/mutant.txt; echo "$$test did not find the mistake"; exit 1; fi; \
		echo "found by $$test:"; grep -A1 'panicked at' $(TARGET)/mutant.txt | cut -c-150 | head -4; \
	done

# Two targets at a time, each for SECONDS. A finding fails, and names the command that replays it.
fuzz: fuzz-deps
	fuzz/run.sh run $(SECONDS) $(TARGETS)

corpus: fuzz-deps
	rm -rf $(TARGET)/fuzz/captured
	ROWCAST_CORPUS=$(TARGET)/fuzz/captured $(CARGO) test --test relay -- --exact corpus::seeds_are_captured --ignored
	fuzz/run.sh pack $(TARGET)/fuzz/captured

# Apart from `make test`, which does without the network once its dependencies are there, and whose outcome does
# not depend on the day. What is known and borne, and why, stands in .cargo/audit.toml.
audit:
	@$(CARGO) audit --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-audit
	$(CARGO) audit
