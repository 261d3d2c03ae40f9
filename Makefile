# The commands of this project. Each one works as the first on a fresh clone: it sets up what is missing.
.DEFAULT_GOAL := help
.PHONY: help setup serve demo check test test-tools test-integrations test-architectures fuzz endurance bench docs build lock clean

BIN := .venv/bin
SCRIPTS := scripts/setup scripts/lock scripts/build scripts/checkov scripts/integrations scripts/playground-types scripts/test-tools \
	scripts/common.sh .ci/run

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 21

setup: ## make .venv: the engine that fits this machine (CPU or CUDA), the tools, densepath
	@scripts/setup

serve: setup ## build the small demo pair once and serve it
	$(BIN)/densepath serve --demo

demo: setup ## run the paper's whole method on two cores: SFT, the pair's service, DPR, a report
	$(BIN)/densepath demo

check: setup ## format, lint, types, import contracts, security, scripts, containers, manifests, workflows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml service scripts
	$(BIN)/shellcheck --external-sources $(SCRIPTS)
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose*.yml
	$(BIN)/zizmor --offline --persona=pedantic --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	@scripts/playground-types
	@scripts/checkov

test: setup ## run the tests; those of the playground and of the alerts need test-tools
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-tools: ## install Chromium and Prometheus for the tests, by apt, where they are missing
	@scripts/test-tools

test-integrations: setup ## run the tests of the training frameworks, in .venv-integrations
	@scripts/integrations
	.venv-integrations/bin/pytest --timeout 1200 tests/integrations_heavy

test-architectures: setup ## hold every architecture against transformers; WRITE=1 records what came of them
	ARCHITECTURES=$(if $(WRITE),write,all) $(BIN)/pytest tests/architectures

endurance: setup ## load, chaos and soak; LOAD=60 CHAOS=120 (seconds), SOAK=100000 (requests), SEED=1; 0 leaves one out
	PYTHONPATH=tests $(BIN)/python -m endurance --load $(or $(LOAD),60) --chaos $(or $(CHAOS),120) \
		--soak $(or $(SOAK),100000) --seed $(or $(SEED),1)

fuzz: setup ## send 20,000 cases to each parser and to the routes of the OpenAPI document, in process
	$(BIN)/pytest tests/fuzz tests/test_wire.py --hypothesis-profile fuzz --timeout 0

bench: setup ## run every benchmark; each prints its ratio and its largest difference
	@set -e; for file in benchmarks/[!_]*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

docs: setup ## build the documentation into site/, with a strict link check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

build: setup ## make the wheel and the sdist in dist/, and in sbom/ what each engine's lock installs (CycloneDX)
	rm -rf dist sbom
	@scripts/build --out-dir dist
	mkdir sbom
	for engine in cpu cuda; do $(BIN)/python -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml \
		--output-reproducible --output-file sbom/$$engine.cdx.json locks/$$engine.txt || exit 1; done

lock: ## make locks/ anew from pyproject.toml (UPGRADE=1 moves the pins)
	@scripts/lock $(if $(UPGRADE),--upgrade)

clean: ## remove what the other targets made, .venv included
	rm -rf .venv .venv-integrations .venv-checkov .venv-typescript .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist sbom site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
