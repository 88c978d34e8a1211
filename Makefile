# make demo | test | docs | readme: each first creates .venv and installs into it, when that is missing or settings.ini changed.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help install demo test docs readme

help:
	@echo "make demo    pretrain, fine-tune and compare on handwritten digits (ARGS='--seed 1' to change that)"
	@echo "make test    run every notebook and every test"
	@echo "make docs    build the docs site into _docs"
	@echo "make readme  write README.md from nbs/index.ipynb"

install: $(STAMP)

$(STAMP): settings.ini setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "gmml_nb needs Python 3.10 or newer; give its path: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/gmml_demo $(ARGS)

test: $(STAMP)
	@$(BIN)/python tools/test.py $(ARGS)

docs: $(STAMP)
	@$(BIN)/python tools/docs.py $(ARGS)

readme: $(STAMP)
	@$(BIN)/python tools/readme.py
