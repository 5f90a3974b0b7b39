# Each target is a line or two that a conda user can type instead (leave out $(BIN)/).
PROFILE ?= quick
PYTHON  ?= python3.11
BIN     := .venv/bin

.PHONY: install workbook site test lab readme
install: .venv/installed

.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

workbook: install
	$(BIN)/avbook workbook --profile $(PROFILE)

# what is there already, as pages: nothing is run
site: install
	$(BIN)/avbook site

# two notebooks at a time, each on a core of its own
test: export OMP_NUM_THREADS = 1
test: install
	$(BIN)/ruff check avbook tests
	$(BIN)/nbdev_test --n_workers 2 --do_print
	$(BIN)/pytest

lab: install
	$(BIN)/jupyter lab --notebook-dir nbs

readme: install
	$(BIN)/jupyter nbconvert --to markdown --no-input --stdout nbs/index.ipynb | sed -E 's#\]\((pictures|[0-9]_)#](nbs/\1#g' > README.md
