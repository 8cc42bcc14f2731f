# `make talk`, `make demo` and `make test` include the set-up, on Debian or Ubuntu with CPython 3.11, 3.12 or 3.13.
# The oldest of these is used by default; PYTHON=python3.13 VENV=.venv-3.13 chooses another.
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13,$(shell command -v $(python))))
VENV ?= .venv
RUN := $(VENV)/bin/python
# Without cached byte code TensorFlow is slow to import.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: talk demo check test types pytest browser lint lock clean

# The shipped model answers a recorded question that is not in its training data.
talk: $(VENV)/core.stamp
	$(RUN) -m speechgpt_jax.infer --audio=speechgpt_jax/assets/corpus/clips/question-06291-rms.flac --play
	@echo "Talk on: $(RUN) -m speechgpt_jax.chat, or in a browser: $(RUN) -m speechgpt_jax.serve"

demo: $(VENV)/core.stamp
	$(RUN) -m speechgpt_jax.demo

# Run before each commit; the slow tests are left to `make test`.
check: FAST = -m "not slow"
check: test

test: $(VENV)/test.stamp
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	@$(if $(FAST),true,$(BROWSER) || $(MAKE) -s browser || true)
	@$(MAKE) --no-print-directory -j 2 types pytest FAST='$(FAST)'
	@$(if $(FAST),true,$(BROWSER)) || echo "NOT RUN because there is no browser: the tests of the page; apt-get install chromium chromium-driver"

# Together, since mypy uses one core.
types:
	$(RUN) -m mypy

# Slow tests often wait for processes that they start.
pytest:
	$(RUN) -m pytest -n $(if $(FAST),2,3) --dist=worksteal $(or $(FAST),$$($(BROWSER) || echo $(NO_PAGE)))

# The page is tested in a real browser, which only root can install.
BROWSER := { command -v chromium && command -v chromedriver; } >/dev/null
NO_PAGE := --ignore=tests/serving/test_page.py
browser:
	@echo "Installing chromium and chromium-driver with apt-get ..."
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver

lint: $(VENV)/test.stamp
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

# Updates the list of all packages that `make talk` installs; run after changing pyproject.toml.
lock: $(VENV)/bin/uv
	$(VENV)/bin/uv pip compile -q --universal --no-annotate --python-version 3.11 \
	  --custom-compile-command "make lock" --extra train --extra corpus --extra chat --extra serve \
	  -o requirements.txt pyproject.toml

clean:
	rm -rf $(VENV)

$(VENV)/bin/uv:
	@test -n "$(PYTHON)" && command -v "$(PYTHON)" >/dev/null || { \
	  echo "No CPython 3.11, 3.12 or 3.13 found$(if $(PYTHON), as $(PYTHON)); install one or call make PYTHON=/path/to/python3.11."; exit 1; }
	@# Debian's python3 has no ensurepip; then pip is downloaded from the package index.
	$(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) tools/bootstrap_venv.py $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check uv==0.13.9

$(VENV)/core.stamp: requirements.txt pyproject.toml | $(VENV)/bin/uv
	@echo "Installing the core (about 3 GB) into $(VENV) ..."
	$(VENV)/bin/uv pip install -q --python $(RUN) -r requirements.txt -e .
	@touch $@

# pip, not uv, installs torch: it prefers a CPU build if pip's configuration offers one. The CUDA
# build brings triton, which crashes when it is imported after TensorFlow; no CPU needs it.
$(VENV)/test.stamp: $(VENV)/core.stamp
	@echo "Installing the test and conversion extras into $(VENV) ..."
	$(RUN) -m pip install -q --disable-pip-version-check torch==2.13.0
	$(VENV)/bin/uv pip install -q --python $(RUN) -r requirements.txt -e '.[convert,test]'
	! $(RUN) -m pip show -q triton 2>/dev/null || $(RUN) -m pip uninstall -q -y triton
	@touch $@
