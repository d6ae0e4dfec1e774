# `make` prints what there is.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

CACHE := $(or $(MILLRACE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/millrace)
# The build cache lies outside the clone: a fresh clone does not build its dependencies again.
export CARGO_TARGET_DIR ?= $(CACHE)/target
export MILLRACE_CACHE := $(CACHE)
DEV := deploy/dev

help: ## What there is
	@printf 'Millrace: collector, bridge and stream engine around Kafka.\n\n'
	grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | while IFS='|' read -r name what; do printf '  make %-8s %s\n' "$$name" "$$what"; done

setup: ## Install what building, the demo and the tests need (as root; otherwise says what is missing)
	@$(DEV)/install

build: setup ## Build the three services, the CLI and the examples
	@cargo build --workspace --bins

install: setup ## Build optimised binaries and copy them to PREFIX/bin (PREFIX, by default ~/.local)
	@cargo build --release -p collector -p broker-bridge -p stream-engine -p admin-cli --bins
	install -Dt "$${PREFIX:-$$HOME/.local}/bin" $(addprefix "$(CARGO_TARGET_DIR)"/release/,millrace millrace-collector millrace-bridge millrace-engine)

demo: setup ## nginx log → collector → Kafka → engine → Redis and a page; DEMO_SECONDS=n ends by itself and compares the counts
	@$(DEV)/demo

test: setup ## Everything: formats, lints, unit tests, tests on real servers, manifests
	@$(DEV)/test

check: ## Formatting, clippy, tidy, licences; about a minute when warm
	@cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test -q --workspace --test tidy
	$(DEV)/cargo-deny --log-level error check bans licenses sources

bench: setup ## Collector against real Flume 1.11, the engine's window job, the bridge; prints ratios and what is aimed at
	@$(DEV)/bench

chaos: setup ## kill -9 of collector, engine and broker under load, CHAOS_ROUNDS times; counts must stay equal
	@for round in $$(seq 1 $${CHAOS_ROUNDS:-5}); do echo "round $$round"; DEMO_SECONDS=$${DEMO_SECONDS:-60} DEMO_FAULTS=1 $(DEV)/demo; done

fuzz: ## Property tests of parsers, formats and channels with many cases (FUZZ_CASES, 20,000 by default)
	@log=$$(mktemp)
	PROPTEST_CASES=$${FUZZ_CASES:-20000} cargo test --workspace --lib --test agent_files -- makes_it_panic nor_a_damaged_one special_characters survives_text its_model move_in_order comes_out every_cut nothing_is_lost | tee "$$log"
	# A filter that matches nothing passes; count what ran.
	ran=$$(grep -c '^test .* \.\.\. ok$$' "$$log"); rm -f "$$log"
	[ "$$ran" -ge 40 ] || { echo "only $$ran property tests ran; have they been renamed?"; exit 1; }

fmt: ## Format all code
	@cargo fmt --all

clean: ## Remove the build cache and the downloaded servers
	@rm -rf "$(CACHE)"

.PHONY: help setup build install demo test check bench chaos fuzz fmt clean
