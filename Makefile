# `make quickstart`, `make test`: both set up their environment in .venv first.
PYTHON ?= python3
# The shell gets these two as they are, whatever their letters.
export PHOTOS ?=
export QUERY ?=
# Further flags of quickstart and gpu-check, such as --max_steps=100.
FLAGS ?=
# Stages that `make bench` measures again, such as records,search; empty: all.
ONLY ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEARCH := $(VENV)/.installed-search
TESTS := $(VENV)/.installed-tests

.DEFAULT_GOAL := help
.PHONY: help install search quickstart pictures test test-slow bench gpu-check lint clean

help:
	@echo "make search PHOTOS=folder       your own photos: where else is this place? QUERY=photo answers here"
	@echo "make quickstart                 train, export, search and score on procedural landmarks"
	@echo "make test                       the tests; make test-slow: those that take minutes"
	@echo "make bench                      each stage beside its floor: benchmarks/README.md"
	@echo "make gpu-check                  what a GPU computes, and how fast, in under eight minutes"
	@echo "make pictures                   redraw the pictures in README and docs from the quickstart's run"
	@echo "make install                    the environment alone, in $(VENV)"
	@echo "make lint                       ruff and the import rules"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dolg_tf needs Python 3.11 or newer; give make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[report]'
	@touch $@

# Apart, because TFDS and Beam, which only the tests need, take long to install.
$(TESTS): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The page, ready weights and HEIC.
$(SEARCH): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[search,photos]'
	@touch $@

install: $(STAMP)

# QUERY=photo.jpg answers on the terminal; without it, a page opens.
search: $(if $(PHOTOS),$(SEARCH))
	@test -n "$$PHOTOS" || { echo "which photos? make search PHOTOS=folder"; exit 1; }
	$(BIN)/dolg search "$$PHOTOS" $(if $(QUERY),--query="$$QUERY") $(FLAGS)

quickstart: $(if $(PHOTOS),search,$(STAMP))
	$(if $(PHOTOS),,$(BIN)/dolg quickstart $(FLAGS))

# The pictures of README and docs, from the procedural set.
pictures: quickstart $(SEARCH) $(TESTS)
	$(BIN)/dolg report --run=runs/quickstart --output=runs/quickstart/report_page
	$(call as_jpeg,ranked_unseen,ranked_list)
	$(BIN)/python tests/support/match_picture.py
	$(call as_jpeg,report_page/saw_unseen_landmarks_1,maps)
	$(BIN)/python tests/support/search_picture.py

as_jpeg = $(BIN)/python -c "from PIL import Image; \
	  picture = Image.open('runs/quickstart/$(1).png').convert('RGB'); \
	  picture.thumbnail((1200, 1200)); picture.save('docs/$(2).jpg', quality=88)"

lint: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test-slow: $(TESTS)
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses=2 --dist=loadfile --no-loadscope-reorder

bench: $(TESTS)
	$(BIN)/python benchmarks/speed/stages.py $(if $(ONLY),--only=$(ONLY))

gpu-check: $(STAMP)
	$(BIN)/python benchmarks/speed/gpu_check.py $(FLAGS)

clean:
	rm -rf $(VENV) build *.egg-info
