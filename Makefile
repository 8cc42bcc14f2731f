# `make demo` and `make test` do everything, set-up included, on a Debian or Ubuntu with CPython 3.11,
# 3.12 or 3.13. Of several, the first is taken; PYTHON=python3.13 VENV=.venv-3.13 chooses another.
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13,$(shell command -v $(python))))
VENV ?= .venv
RUN := $(VENV)/bin/python
# Imports of TensorFlow are slow where byte code is not kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test lint lock clean

demo: $(VENV)/core.stamp
	$(RUN) -m speechgpt_jax.demo

# What a change must pass before it is committed: minutes of tests are left to `make test`.
check: FAST = -m "not slow"
check: test

test: $(VENV)/test.stamp
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n 2 --dist=worksteal $(FAST)

lint: $(VENV)/test.stamp
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

# After a change of versions in pyproject.toml: the whole list of what `make demo` installs.
lock: $(VENV)/bin/uv
	$(VENV)/bin/uv pip compile -q --universal --no-annotate --python-version 3.11 \
	  --custom-compile-command "make lock" --extra train --extra corpus \
	  -o requirements.txt pyproject.toml

clean:
	rm -rf $(VENV)

$(VENV)/bin/uv:
	@test -n "$(PYTHON)" && command -v "$(PYTHON)" >/dev/null || { \
	  echo "No CPython 3.11, 3.12 or 3.13 found$(if $(PYTHON), as $(PYTHON)); install one or call make PYTHON=/path/to/python3.11."; exit 1; }
	@# Debian's python3 comes without ensurepip; pip then comes from the package index.
	$(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) tools/bootstrap_venv.py $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check uv==0.13.9

$(VENV)/core.stamp: requirements.txt pyproject.toml | $(VENV)/bin/uv
	@echo "Installing the core (about 3 GB) into $(VENV) ..."
	$(VENV)/bin/uv pip install -q --python $(RUN) -r requirements.txt -e .
	@touch $@

# pip, not uv, brings torch: it takes a CPU build where pip's configuration offers one.
$(VENV)/test.stamp: $(VENV)/core.stamp
	@echo "Installing the test and conversion extras into $(VENV) ..."
	$(RUN) -m pip install -q --disable-pip-version-check torch==2.13.0
	$(VENV)/bin/uv pip install -q --python $(RUN) -r requirements.txt -e '.[convert,chat,test]'
	@touch $@
