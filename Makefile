# The README's two commands: make demo, make test. Everything runs in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
MARK := $(VENV)/.installed
export MPLBACKEND := svg
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo install cross test test-slow bench lint format docs clean

demo: install
	$(BIN)/qunlearn demo -o runs/demo

install: $(MARK)

$(MARK): pyproject.toml
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "$(PYTHON) not found: apt-get install python3.11 python3.11-venv, or make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[workstation,gpu,dev]'
	touch $(MARK)

# Arm compiler and emulator for the firmware tests, through apt where that is allowed; else a loud note.
cross:
	@sh tests/install_cross.sh

test: install lint cross
	$(BIN)/python -m pytest -m 'not slow' tests

test-slow: install cross
	$(BIN)/python -m pytest -m slow tests

bench: install
	$(BIN)/python benchmarks/bench_kernels_compile.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_projection.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_subspace.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_step.py
	$(BIN)/python benchmarks/bench_first_order.py
	$(BIN)/python benchmarks/bench_interference.py
	$(BIN)/python benchmarks/bench_methods.py
	$(BIN)/python benchmarks/bench_demo.py
	$(BIN)/python benchmarks/bench_verdicts.py
	$(BIN)/python benchmarks/bench_oeu_matched.py
	$(BIN)/python benchmarks/bench_firmware.py
	$(BIN)/python benchmarks/bench_forms.py
	$(BIN)/python benchmarks/bench_delta.py
	$(BIN)/python benchmarks/bench_device_update.py
	$(BIN)/python benchmarks/bench_ec.py
	$(BIN)/python benchmarks/bench_ec_cnn.py
	$(BIN)/python benchmarks/bench_smi.py
	$(BIN)/python benchmarks/bench_smi.py --world patterns
	$(BIN)/python benchmarks/bench_audits.py
	$(BIN)/python benchmarks/bench_agreement.py
	$(BIN)/python benchmarks/bench_eve.py
	$(BIN)/python benchmarks/bench_quant_after.py
	$(BIN)/python benchmarks/bench_size.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
