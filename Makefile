# `make demo` and `make test` do everything, set-up included, on a Debian or Ubuntu with Python 3.11.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
# Imports of TensorFlow are slow where byte code is not kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint clean

demo: $(VENV)/core.stamp
	$(RUN) -m speechgpt_jax.demo

test: $(VENV)/test.stamp
	$(RUN) -m ruff check .
	$(RUN) -m pytest -n 2 --dist=worksteal

lint: $(VENV)/test.stamp
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean:
	rm -rf $(VENV)

$(VENV)/bin/uv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; install Python 3.11 or call make PYTHON=/path/to/python3.11."; exit 1; }
	@# Debian's python3 comes without ensurepip; pip then comes from the package index.
	$(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) tools/bootstrap_venv.py $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check uv==0.13.9

$(VENV)/core.stamp: requirements.txt | $(VENV)/bin/uv
	@echo "Installing the core (about 3 GB) into $(VENV) ..."
	$(VENV)/bin/uv pip install -q --python $(RUN) -r requirements.txt
	@touch $@

# pip, not uv, brings torch: it takes a CPU build where pip's configuration offers one.
$(VENV)/test.stamp: pyproject.toml $(VENV)/core.stamp
	@echo "Installing the test and conversion extras into $(VENV) ..."
	$(RUN) -m pip install -q --disable-pip-version-check torch==2.13.0
	$(VENV)/bin/uv pip install -q --python $(RUN) -r requirements.txt -e '.[convert,chat,test]'
	@touch $@
