# `make demo` shows it running, `make test` proves it. Both install what the machine lacks.

CARGO ?= cargo
# Given to the demo: make demo ARGS='--listen 127.0.0.1:4100'
ARGS ?=
# Tests at once. Each runs a PostgreSQL and mostly waits, so there are more of them than cores.
TEST_THREADS ?= 4

.PHONY: help demo demo-check test deps lint docs

help:
	@echo 'make demo        a private PostgreSQL, a relay and example data, until Ctrl-C (ARGS=... for options)'
	@echo 'make demo-check  the same, checking itself and ending'
	@echo 'make test        format, lints, documentation, unit and integration tests'

deps:
	@sh scripts/install-deps.sh

demo: deps
	@$(CARGO) build
	@$(CARGO) run --quiet -- demo $(ARGS)

demo-check: deps
	@$(CARGO) build
	@$(CARGO) run --quiet -- demo --check $(ARGS)

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' $(CARGO) doc --quiet --no-deps --document-private-items

# One cargo command builds the library, the program and the tests, and then runs them all.
test: deps lint docs
	$(CARGO) test --quiet --no-run
	$(CARGO) test -- --test-threads=$(TEST_THREADS)
