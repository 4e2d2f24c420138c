# make quickstart    the whole pipeline on a small assistant world: data, SFT, reward, DPO, PPO, merge, report
# make install       .venv alone; `source .venv/bin/activate` puts `align` on the PATH
# make next          what to do after it: chat, report, your own data
# make notebook      JupyterLab with the notebooks: the tour, your data on a real base, a reward of your own
# make test          lint, types, tests
# make check         lint, types and the tests that take a minute and a half: before every commit
# make format        the code as `make check` wants it
#
# All make .venv by themselves and install again only when pyproject.toml or constraints.txt changed.
# PYTHON=python3.12  the interpreter .venv is made from (3.11 or newer)
# TORCH_INDEX=URL    install torch alone from this package index, such as the one that PyTorch keeps for its CPU builds

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# pip, which has nothing to say in a pipe while it fetches and unpacks, told every five seconds.
define told
	@echo "$(1)"; \
	( seconds=0; while sleep 5; do seconds=$$((seconds + 5)); echo "  still installing, $$seconds s"; done ) & ticks=$$!; \
	trap 'kill $$ticks 2> /dev/null' EXIT; trap 'exit 130' INT TERM; \
	$(1)
endef

# torch comes first and without its dependencies, because its index holds nothing else at our versions.
define install
	@echo "Installing Align and what it needs into $(VENV), a few minutes the first time:"
	$(if $(TORCH_INDEX),$(call told,$(PIP) --index-url $(TORCH_INDEX) --no-deps torch))
	$(call told,$(PIP) --editable $(1))
endef

# The house itself, the store, recipes, the core of data, sums and judges: about 80 s of CPU.
QUICK := tests/test_structure.py tests/ground tests/judges tests/losses tests/measures tests/recipe
QUICK += tests/stage/test_catalogue.py tests/data/test_formats.py tests/data/shapes/test_keys.py
QUICK += tests/store/test_store.py tests/store/test_artifact.py

.PHONY: quickstart install next notebook test check format lint

quickstart: $(VENV)/.installed
	$(VENV)/bin/python data/world.py --seed 0 --out data/quickstart
	$(VENV)/bin/align run recipes/quickstart.yaml
	@$(MAKE) --no-print-directory next

install: $(VENV)/.installed
	@echo "Align is in $(VENV): \`source $(VENV)/bin/activate\` puts align on the PATH,"
	@echo "\`align --help\` says where to start, \`make quickstart\` shows the whole pipeline."

# A browser opens only where somebody sits: output to a terminal, and a screen.
next:
	@rm -rf data/quickstart/report
	@said=$$($(VENV)/bin/align checkout quickstart/report data/quickstart/report 2>&1) || \
		{ echo "$$said" >&2; echo "It is made by \`make quickstart\`."; exit 2; }
	@echo
	@echo "Talk to what came out (it knows single questions, such as What is 3 plus 4?;"
	@echo "/reset before the next one):"
	@echo "  $(VENV)/bin/align chat quickstart/ppo"
	@echo "Read the report in a browser:"
	@echo "  $(VENV)/bin/python -m webbrowser data/quickstart/report/report.html"
	@echo "Train on your own data: rows as \`head -n 1 data/quickstart/demos.jsonl\` shows,"
	@echo "your file and your base in place of these:"
	@printf '%s\n' "  $(VENV)/bin/align sft --base data/tiny-base \\" "    --data data/quickstart/demos.jsonl --name my-sft"
	@if [ -t 1 ] && { [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || [ "$$(uname)" = Darwin ]; }; then $(VENV)/bin/python -m webbrowser data/quickstart/report/report.html; fi

notebook: $(VENV)/.installed-notebook
	$(VENV)/bin/jupyter lab notebooks

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

check: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q --numprocesses 2 $(QUICK)

test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q --numprocesses auto --maxprocesses 8

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Align needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}. Try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(call install,.)
	@touch $@

$(VENV)/.installed-notebook: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(call install,'.[notebook]')
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(call install,'.[dev]')
	@touch $(VENV)/.installed $@
