# make run    set up, run the tabular pipeline end to end, show the leaderboard
# make test   the same set-up, then every test
# make help   the other targets

.DEFAULT_GOAL := help
.PHONY: help setup run test coverage check export lock serve clean
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# a shell that forbids bytecode would have every kernel compile every library anew
export PYTHONDONTWRITEBYTECODE =

help:  ## what can be made
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv and install what requirements.lock names, and the project

$(READY): requirements.lock settings.ini setup.py pyproject.toml .ci/setup
	@sh .ci/setup $(VENV)
	@touch $@

run: setup  ## run the tabular pipeline on real data, end to end
	@$(BIN)/mlops-nb run tabular

serve: setup  ## answer predictions with the published model
	@$(BIN)/bentoml serve

test: setup  ## every test
	@$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST)

coverage: setup  ## every test, with branch coverage: two to three times as long
	@$(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term:skip-covered $(PYTEST)

check: setup  ## modules equal their notebooks, notebooks are clean, lint, types
	@$(BIN)/python .ci/check.py

export: setup  ## write the modules from the notebooks, and README.md from nbs/index.ipynb
	@$(BIN)/python .ci/check.py --export

lock: setup  ## resolve requirements.lock anew from settings.ini
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links pyproject.toml --all-extras -o requirements.lock

clean:  ## remove .venv and the workspace
	rm -rf $(VENV) .mlops
