# Everything starts with a plain Python 3.10 or newer; demo/host.py finds or makes the ComfyUI that the rest runs in.
PYTHON ?= python3
TESTS ?= tests
PYTEST_ARGS ?=
HOST = $(PYTHON) demo/host.py
# The repository's root has a package's __init__.py and a folder `nodes`: pytest must neither import the first (confcutdir)
# nor put the root on sys.path (importlib), or the host's module `nodes` would be hidden.
# One worker a core, one thread each: tiny tensors gain nothing from a second thread.
WORKERS ?= auto
PYTEST = run-module pytest -p no:cacheprovider --import-mode=importlib --confcutdir=tests -n $(WORKERS) --dist worksteal
test test-long test-all-hosts test-core test-host test-newest-page soak: export OMP_NUM_THREADS ?= 1
MYPY = run-module mypy --config-file "$(CURDIR)/pyproject.toml" --explicit-package-bases --cache-dir "$(CURDIR)"/.mypy_cache
TYPED = ../demo/*.py ../demo/family/*.py ../bench/*.py *.py server_pack/__init__.py
VERSIONS = 0.24.0 0.26.0 0.27.0 0.30.0
# What a change of the host would break: the invariants, what happens on errors and short memory, the node contract, the
# shipped workflows in its real server, the hand-over files, and the installed archive with its help pages, texts and templates.
CORE = $(addprefix tests/test_,cooperation.py every_sampler.py faults.py files.py finite.py handover.py handover_file.py \
    memory.py out_of_memory.py nodes.py workflows.py workflow_runs.py conditioning.py registry.py locales.py \
    host_versions.py fade.py rest.py many_stages.py leg.py keyframes.py controlnet.py step_caches.py)
PAGE_TESTS = $(wildcard tests/test_page_*.py)
# A person's words reach the demo through the environment, exactly as typed: neither make nor the shell reads them.
ifdef PROMPT
override PROMPT := $(value PROMPT)
export PROMPT
endif

.PHONY: demo test test-long test-names lint types test-core test-host test-newest-page test-all-hosts soak mutations family gpu-kit clean help

help:
	@echo 'make demo [PROMPT="a red circle"]   sample with the tiny family in a real ComfyUI'
	@echo 'make test                           lint, types and tests, on the default host'
	@echo 'make test-long                      the tests that take minutes each: soak, killed servers, more families'
	@echo 'make test-core [VERSIONS=0.24.0]    what a change of the host would break, on those versions'
	@echo 'make test-host COMFYUI_PATH=...      the same and the tests of the page, on a ComfyUI that you have'
	@echo 'make test-newest-page               the tests of the page, with the newest comfyui-frontend-package of the index'
	@echo 'make test-all-hosts                 the tests on every ComfyUI version from 0.24.0 to 0.30.0 (long)'
	@echo 'make soak                           200 mixed runs with faults in one server, with the memory it took'
	@echo 'make family                         train the tiny family again (long)'
	@echo 'make gpu-kit                        what bench/gpu.py needs on a GPU machine without a network'
	@echo 'make clean                          remove what tools left in this folder'

demo:
	@$(PYTHON) demo/run.py

test: lint types
	$(HOST) $(PYTEST) -m "not long" $(PYTEST_ARGS) $(TESTS)

# What takes minutes: 200 mixed runs in one server, killed servers, several servers, six more families, 20,000 drawn cases.
test-long: export SRD_CASES = many
test-long:
	$(HOST) $(PYTEST) -m long $(PYTEST_ARGS) $(TESTS)

# All tests by name, for .ci/run: none of them may be left out of both.
test-names:
	@$(HOST) $(PYTEST) --collect-only -q $(TESTS)

lint:
	$(HOST) run-module ruff check --no-cache .
	$(HOST) run-module ruff format --no-cache --check --quiet .

# mypy has to see the pack under the name of a package, whatever its folder is called, and must not stand in the root, where
# it would take the pack's folder `nodes` for the host's module: hence the link, and the change of folder.
types:
	MYPYPATH=demo $(HOST) $(MYPY)/host --strict demo/host.py demo/cache.py demo/client.py
	cd tests && MYPYPATH=.:../bench:../demo:../demo/family $(PYTHON) ../demo/host.py $(MYPY)/rest $(TYPED)
	@set -e; link=$$(mktemp -d); trap 'rm -rf "$$link"' EXIT; ln -s "$(CURDIR)" "$$link/srd_pack"; cd "$$link"; \
	    $(PYTHON) srd_pack/demo/host.py $(MYPY)/pack -p srd_pack.srd_core -p srd_pack.nodes

# Tests marked one_host say nothing about the host's version, or look for a host themselves: they run on the default only.
test-all-hosts: SUITE = $(TESTS)
test-core: SUITE = $(CORE)
test-all-hosts test-core:
	@set -e; unset COMFYUI_PATH; for version in $(VERSIONS); do \
	    echo "== ComfyUI $$version"; \
	    $(HOST) --version $$version $(PYTEST) -m "not one_host" $(PYTEST_ARGS) $(SUITE); \
	done

# Any ComfyUI, also one that is newer than those that can be made: .github/workflows/nightly.yml runs it on the newest tag.
test-host:
	$(HOST) $(PYTEST) -m "not one_host" $(PYTEST_ARGS) $(CORE) $(PAGE_TESTS)

test-newest-page:
	SRD_PAGE_VERSION=newest $(HOST) $(PYTEST) $(PYTEST_ARGS) $(PAGE_TESTS)

# Breaks ten central lines of the pack, one at a time in a copy, and shows that the tests see each.
mutations:
	$(PYTHON) tests/mutate.py

# Part of `make test-long` too; here alone, with what it counted and measured.
soak:
	$(HOST) $(subst -n $(WORKERS) --dist worksteal,-s,$(PYTEST)) $(PYTEST_ARGS) tests/test_soak.py

family:
	@python=$$($(HOST) python) && "$$python" demo/family/train.py

# See docs/developing.md, "On a GPU".
gpu-kit:
	@$(PYTHON) bench/gpu_kit.py

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
