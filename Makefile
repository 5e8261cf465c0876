# `make` lists what there is. Every target sets the environment up by itself, once.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process a core, of one thread each: small networks gain nothing from more, and threads that wait for each other while spinning lose much
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Tests start hundreds of processes, which write no bytecode themselves
COMPILED := $(BIN)/python -m compileall -q maou_nb

.DEFAULT_GOAL := help
.PHONY: help setup demo lab test test-all gpu-check export notebooks docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(READY) ## make the Python environment (the other targets do it where needed)

$(READY): settings.ini setup.py pyproject.toml tools/setup.sh
	@tools/setup.sh $(VENV)
	@touch $@

demo: $(READY) ## run the quickstart notebook and keep it, with its pictures, in runs/quickstart/
	@$(BIN)/python tools/demo.py

lab: $(READY) ## open JupyterLab on copies of the tutorials, in notebooks/
	@$(BIN)/python tools/lab.py $(ARGS)

test: $(READY) ## run the tests, without the long ones
	@tools/packages.sh
	@$(COMPILED)
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(READY) ## run all tests
	@tools/packages.sh
	@$(COMPILED)
	@$(PYTEST) $(ARGS)

gpu-check: $(READY) ## measure and check training on a GPU, in about eight minutes
	@$(BIN)/python benchmarks/gpu.py --budget 450 $(ARGS)

export: $(READY) ## write maou_nb/ and README.md from the notebooks
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(BIN)/python tools/readme_build.py

notebooks: $(READY) ## run all notebooks but the tutorials, and keep their outputs
	@$(BIN)/python tools/nbrun.py

docs: $(READY) ## build the docs site in _docs/, and check it
	@$(BIN)/python tools/docs_build.py

clean: ## remove the environment and what was built; runs/ stays
	rm -rf $(VENV) build _docs *.egg-info .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
