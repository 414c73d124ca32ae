# make demo    install into .venv, run the main job on what is embedded, say where the report is
# make test    install into .venv, pass the tests
# make test-slurm   the tests that need a Slurm: one is started on this machine (deploy/slurm/README.md)
# make test-kubernetes   jobs in pods that the real operator makes, against an API in memory; takes minutes
# make lint    ruff and mypy
# make faults  lose workers, drivers, disks in every way; writes docs/reliability.md; takes half an hour
# make bench   speed and memory against what one would use instead
# make schema  write the JSON schemas for editors again
# make clean   remove what these made

PYTHON ?= python3
# processes that share the tests
TESTERS ?= 2
BIN := .venv/bin

.PHONY: demo test test-slurm test-kubernetes lint faults bench schema clean

demo: .venv/installed
	$(BIN)/dneuro run jobs/demo.yaml
	@echo "open demo-output/demo.zarr.report/index.html in a browser"

test: .venv/installed
	$(BIN)/python -m pytest --ignore=tests/slurm --numprocesses $(TESTERS) --dist worksteal

test-slurm: .venv/installed
	$(BIN)/python -m pytest tests/slurm -rs

test-kubernetes: .venv/installed
	DNEURO_TEST_KUBERNETES=$${DNEURO_TEST_KUBERNETES:-demo} $(BIN)/python -m pytest tests/cluster/kubernetes tests/deploy -rs

lint: .venv/installed
	$(BIN)/ruff check dneuro tests benchmarks
	$(BIN)/mypy

faults: .venv/installed
	$(BIN)/python -m benchmarks.reliability

bench: .venv/installed
	$(BIN)/python -m benchmarks

schema: .venv/installed
	$(BIN)/python -m dneuro.spec.schema

clean:
	rm -rf .venv demo-output build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The file .venv/installed is as new as the last installation; pip runs again only when what it reads has changed.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'dneuro needs Python 3.11 or newer, this is ' + sys.version.split()[0] + '; make PYTHON=python3.12 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,lint]"
	touch $@
