# Every target makes the virtual environment it needs: Python 3.11 or newer, git and make suffice.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-by-make

.PHONY: demo test test-all lint format typecheck bench clean

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "firstlight needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing firstlight and what it needs (several GB the first time: torch)..."
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(INSTALLED)  ## train on long-tailed digits, about a minute
	$(BIN)/firstlight demo

# One thread a process: two test processes with two threads each would wait for one another.
test test-all: export OMP_NUM_THREADS = 1

test: $(INSTALLED)  ## what CI runs
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-all: $(INSTALLED)  ## the slow checks too
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A type checker cannot follow the package-dir mapping of an editable install, so it gets a copy.
typecheck: $(INSTALLED)
	rm -rf build # setuptools would keep modules that were moved
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/typecheck .
	MYPYPATH=build/typecheck $(BIN)/mypy -p firstlight

bench: $(INSTALLED)  ## side by side with the peers; writes benchmarks/results
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/per_class.py
	$(BIN)/python benchmarks/input_pipeline.py
	$(BIN)/python benchmarks/trainer_overhead.py
	$(BIN)/python benchmarks/fisher_families.py
	$(BIN)/python benchmarks/fisher_precision.py
	$(BIN)/python benchmarks/fisher_cost.py
	$(BIN)/python benchmarks/monitor_cost.py
	$(BIN)/python benchmarks/fisher_peers.py
	$(BIN)/python benchmarks/sharpness.py
	$(BIN)/python benchmarks/sharpness_eigenvalue.py
	$(BIN)/python benchmarks/block_families.py
	$(BIN)/python benchmarks/unfreezing.py
	$(BIN)/python benchmarks/last_layer_solver.py
	$(BIN)/python benchmarks/class_effects.py
	$(BIN)/python benchmarks/weight_noise.py && $(BIN)/python benchmarks/weight_noise_width.py
	$(BIN)/python benchmarks/batch_augmentation.py
	@echo "With data of your own: benchmarks/{finetune_cifar10,cifar10_lt_methods,last_layer_scale,batchnorm_warmup,crop_scale_study,jpeg_folder,jpeg_decoders}.py"

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
