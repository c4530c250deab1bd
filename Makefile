# Two commands do everything: `make demo` and `make test`. The rest is for people who work on this.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
DEBIAN := mbpoll mosquitto mosquitto-clients openssl shellcheck systemd udev
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint types checks bench test-boot test-power soak clean

demo: $(VENV)/.demo  ## meters, agent, broker and head-end on this machine, live
	$(BIN)/energybid demo $(DEMO)

test: $(VENV)/.test debian checks  ## everything that CI runs
	$(MAKE) worlds WORLDS=100 SITES=10

checks: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest -q -n $$(($$(nproc) + 2)) --dist loadfile --no-loadscope-reorder $(PYTEST) # some wait for real processes
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=90

.PHONY: worlds simulate
WORLDS ?= 200
SITES ?= 20
worlds: $(VENV)/.test  ## virtual days of a small site, and quarters of days of one that bids, with every fault, on two cores
	@mkdir -p build
	$(BIN)/energybid simulate world --seed 1 --seeds $(WORLDS) --jobs 2 --log build
	$(BIN)/energybid simulate world --market --days 0.25 --seed 1 --seeds $(SITES) --jobs 2 --log build

simulate: $(VENV)/.test  ## 2,000 and 200 of them, and 20 days of a large site: an hour and a half
	@mkdir -p build
	$(BIN)/energybid simulate world --seed 1001 --seeds 2000 --jobs 2 --log build
	$(BIN)/energybid simulate world --seed 1 --seeds 20 --jobs 2 --large --log build
	$(BIN)/energybid simulate world --market --days 0.25 --seed 1001 --seeds 200 --jobs 2 --log build

.PHONY: oracle
oracle: $(VENV)/.test  ## bids of 1,000 random sites against a mixed-integer solver, and the day's loss of 100 (minutes)
	ENERGYBID_ORACLE_SITES=1000 ENERGYBID_ORACLE_SEED=1000 $(BIN)/pytest tests/bidding/test_bidding_oracle.py -q
	PYTHONPATH=tests/bidding $(BIN)/python tests/bench/bidding_gap.py --sites 100 --steps 24
	$(BIN)/python tests/bench/bidding_time.py

.PHONY: debian
debian:
	@dpkg -s $(DEBIAN) >/dev/null 2>&1 || { $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(DEBIAN); }

$(VENV)/bin/python:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3-venv; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install -q -e '.[simulator,inspect]'
	@touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install -q -e '.[test]'
	@touch $@ $(VENV)/.demo

test-boot: DEBIAN := debootstrap systemd-container python3-venv
test-boot: debian  ## boots a Debian root with systemd and runs the installed agent in it (root; a minute)
	$(SUDO) systemd/test-boot

soak: DEBIAN := mosquitto iproute2
soak: $(VENV)/.demo debian  ## real processes killed, paused, restarted and cut off for 10 minutes (root; SOAK="--for 60m --seed 3")
	$(SUDO) env PYTHONPATH=tests $(BIN)/python -m soak $(SOAK)

test-power: $(VENV)/.test  ## power cuts at every operation of 60 seeds (about an hour)
	ENERGYBID_POWER_SEEDS=60 ENERGYBID_POWER_SHARE=1 $(BIN)/pytest tests/powercut -q

.PHONY: fuzz
FUZZ ?= 10m
fuzz: $(VENV)/.test  ## every parser of bytes from outside, guided by coverage (FUZZ=1h; ONLY="--only mbap")
	$(BIN)/pip install -q -e '.[fuzz]'
	PYTHONPATH=tests $(BIN)/python -m fuzz --for $(FUZZ) $(ONLY)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
