# Everything here needs Python 3.11 or newer, make and git; each target makes the virtual environment it needs.
#
#   make demo     trains, measures and shows a Deep Attentive VAE on static binarized MNIST; after Ctrl-C it goes on
#   make test     runs the tests
#   make check    runs the linter, the formatter's check and the type checker
#   make docs     builds the documentation as a site, build/docs/index.html, without a network
#   make format   formats the code
#   make venv     makes the environment for working on DAVI in .venv
#   make clean    removes what the other targets made, except runs/
#
# Another interpreter: make PYTHON=/path/to/python3.13 ...

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install --constraint constraints.txt
DEMO := runs/demo

.PHONY: demo test check docs venv format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	@if test -e $(DEMO)/inspection.html; then rm -rf $(DEMO); fi  # it has ended; one that was interrupted goes on
	$(BIN)/davi train attentive_mnist_demo --run $(DEMO) --resume
	$(BIN)/davi evaluate $(DEMO) --importance-samples 100 --limit 1000
	$(BIN)/davi sample $(DEMO) --temperature 0.8
	$(BIN)/davi reconstruct $(DEMO)
	$(BIN)/davi inspect $(DEMO)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs
	@echo "the site: build/docs/index.html"

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(VENV)/.installed-dev

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A name on the PATH may be an older Python or a launcher without one behind it, so each is asked.
$(VENV)/.created:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "making $(VENV) with $$("$$python" --version)"; \
	        "$$python" -m venv $(VENV) || exit 1; \
	        touch $@; exit 0; \
	    fi; \
	done; \
	echo "DAVI needs Python 3.11 or newer and found none; name one with: make PYTHON=/path/to/python" >&2; exit 1

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing DAVI into $(VENV) (PyTorch is a large download the first time)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing DAVI and its development tools into $(VENV) (PyTorch is a large download the first time)"
	@$(PIP) --editable '.[dev,docs,hub,import,tensorboard]'
	@touch $(VENV)/.installed $@
