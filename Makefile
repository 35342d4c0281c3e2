# Every target sets up what it needs. Variables: PYTHON (3.11 or later), VENV, ARGS (options of `make run` and
# `make bench`); SWAP=1 and FORCE=1, which deploy/up.sh explains.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILED := $(VENV)/.compiled
LOCK := requirements-dev.txt
# Without --only-binary a package without a wheel for this Python would be built with whatever its author asks for.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help install run up down logs status monitoring exporter monitoring-down install-host uninstall-host test test-unit test-wire test-page test-container test-vm test-oclgrind test-intel-cpu test-qemu test-gpu lint dist bench

help:
	@echo "make install    create $(VENV) with $(BIN)/vramblk, CPU OpenCL, man page and completions ($(VENV)/share)"
	@echo "make run        serve VRAM on 127.0.0.1:10809; without a GPU, 512M of RAM (options: ARGS='--size 1G')"
	@echo
	@echo "With Docker:"
	@echo "make up         build the image, start the server, wait until it is healthy, print how to connect"
	@echo "make up SWAP=1  the same in swap mode, then turn swap on (needs root)"
	@echo "make status     what the server in the container reports; make logs: its log"
	@echo "make down       turn swap off if it is on, then stop the server and remove the container"
	@echo "                make up and make down refuse to lose data or cut off clients; FORCE=1 allows it"
	@echo "make monitoring Prometheus and Grafana beside the container; make exporter: the metrics page only;"
	@echo "                make monitoring-down: stop both"
	@echo
	@echo "make install-host, make uninstall-host   vramblk-swap, its man page and systemd units (as root; DESTDIR)"
	@echo
	@echo "For contributors:"
	@echo "make test       every group of tests that this machine can run: about 90 minutes (CONTRIBUTING.md lists the groups)"
	@echo "make test-GROUP one group: unit, wire, page, container, vm, gpu; with more cases than in make test: vm, oclgrind;"
	@echo "                not in make test: qemu (a Debian machine that swaps), intel-cpu (700 MB from PyPI)"
	@echo "make lint       ruff, mypy --strict, import contracts, generated files, prose, zizmor, shellcheck"
	@echo "make dist       source distribution, and a wheel for the Python of $(VENV), in dist"
	@echo "make bench      the fio table"

# An editable install leaves the man page and the completions out.
install: $(COMPILED)
	@mkdir -p $(VENV)/share && cp -R share/. $(VENV)/share/

# The hot modules also run uncompiled, so a machine without compiler or headers only gets a slower server.
# Compiled is what has a .pxd file with C types beside it. A .pxd file may also stand alone.
TYPES := $(shell find vramblk -name '*.pxd')
$(COMPILED): $(STAMP) setup.py $(TYPES) $(wildcard $(TYPES:.pxd=.py))
	@mkdir -p build
	@deploy/packages.sh 'make install' cc:gcc /usr/include/stdio.h:libc6-dev \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h:python3-dev" || true
	@find vramblk -name '*.so' -delete
	@$(BIN)/python setup.py build_ext --inplace >build/compile.log 2>&1 && \
		$(BIN)/python -c 'import sys, vramblk.nbd.runs as m; sys.exit(m.__file__.endswith(".py"))' || \
		echo "not compiled, so slower (build/compile.log): this requires a C compiler and the headers of $(BIN)/python"
	@touch $@

$(STAMP): pyproject.toml $(LOCK)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; set PYTHON=/path/to/python3"; exit 1; }
	@deploy/packages.sh 'make install' \
		"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')/ensurepip/__init__.py:python3-venv"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --only-binary :all: -r $(LOCK)
	VRAMBLK_COMPILE=no $(PIP) --no-index --no-deps --no-build-isolation -e .
	@touch $@

# --allow-cpu only where there is no GPU: a "GPU disk" must not silently be system RAM, also not where the question
# itself fails, as with a broken driver.
run: install
	@found=$$($(BIN)/vramblk devices --json) || { status=$$?; \
		echo "vramblk devices failed, so it is not known whether there is a GPU; to serve system RAM, type: $(BIN)/vramblk --allow-cpu" >&2; \
		exit $$status; }; \
	if printf '%s\n' "$$found" | $(BIN)/python -c 'import json, sys; \
		sys.exit(not any(d["type"].upper() == "GPU" and d["usable"] for d in json.load(sys.stdin)["devices"]))'; \
	then exec $(BIN)/vramblk $(ARGS); \
	else echo "no usable GPU: serving system RAM through CPU OpenCL"; \
		VRAMBLK_SIZE=$${VRAMBLK_SIZE:-512M} exec $(BIN)/vramblk --allow-cpu $(ARGS); fi

up down logs status monitoring exporter monitoring-down:
	@deploy/up.sh $@

install-host:
	@host/install.sh install

uninstall-host:
	@host/install.sh uninstall

test: install
	$(BIN)/python tests/run.py

# Twice the RAM twenty times over: an hour, more than a run of all groups has.
test-vm: export VRAMBLK_TEST_VM_REPEATS ?= 20

# Minutes of simulation; a run of all groups has a part of it.
test-oclgrind: export VRAMBLK_TEST_OCLGRIND ?= all

test-unit test-wire test-page test-container test-vm test-oclgrind test-qemu test-gpu: test-%: install
	$(BIN)/python tests/run.py $*

test-intel-cpu: install
	tests/setup.sh
	tests/intel_cpu/setup.sh $(BIN)/python
	$(BIN)/python tests/run.py intel_cpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.docsgen --check
	$(BIN)/python -m tools.shellgen --check
	$(BIN)/python -m tools.monitoring --check
	$(BIN)/python -m tools.prose
	$(BIN)/zizmor --offline --no-progress --quiet .github
	@if deploy/packages.sh 'make lint' shellcheck:shellcheck; then shellcheck -x $$(git ls-files -co --exclude-standard '*.sh') \
		.ci/run host/vramblk-swap tests/vm/guest/init tests/vm/guest/watch tests/qemu/guest/main; \
	else echo "shell scripts were not checked"; fi

# Without build/lib*, the wheel would hold modules that were deleted since the last build.
dist: install
	rm -rf dist build/lib* build/bdist*
	$(BIN)/python setup.py -q sdist
	VRAMBLK_COMPILE=require $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-index --no-deps \
		--no-build-isolation --wheel-dir dist .

bench: install
	@deploy/packages.sh 'make bench' fio:fio nbdkit:nbdkit || true
	$(BIN)/python bench/run.py $(ARGS)
