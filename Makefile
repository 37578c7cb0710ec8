# Everything a developer runs. `make help` lists the targets; each one sets up what it needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OPERATOR_INSTALLED := $(VENV)/.installed-operator
# What a target that needs no torch builds on: the complete .venv, unless only the operator's was asked for.
READY := $(if $(wildcard $(INSTALLED)),$(INSTALLED),$(or $(wildcard $(OPERATOR_INSTALLED)),$(INSTALLED)))
TRAINER := $(filter $(INSTALLED),$(READY))
NO_TRAINER := echo "the trainer was left out: .venv has no torch (make install adds it)"
DEMO ?= .cache/quickstart
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 2
export OMP_NUM_THREADS ?= 1
# Kept bytecode: where the environment forbids it, every process of the trainer compiles torch and more for 9 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: template-table help install install-operator check demo cluster demo-cluster test test-cluster test-kueue test-node test-gpu test-slow lint type generate kustomize-base images verify control-plane clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

install: $(INSTALLED)  ## create .venv with everything in it (a second run does nothing)

install-operator: $(OPERATOR_INSTALLED)  ## create .venv without torch, for work on the operator and the contract

$(BIN)/uv:
	@python=$$(.ci/python) && { [ -x $(BIN)/python ] || $$python -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'

$(OPERATOR_INSTALLED): pyproject.toml | $(BIN)/uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[operator,dev]'
	@touch $@

$(INSTALLED): pyproject.toml tests/support/data/chat_templates.txt | $(BIN)/uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[operator,trainer,dev,dev-trainer]'
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r tests/support/data/chat_templates.txt
	@touch $@

demo: install  ## fine-tune SmolLM2-135M-Instruct from examples/quickstart/trainjob.yaml on this machine
	@$(BIN)/python examples/quickstart/make_model.py --output $(DEMO)/model
	@$(BIN)/python examples/quickstart/make_data.py --output $(DEMO)
	@$(BIN)/mtj run examples/quickstart/trainjob.yaml --volume quickstart-data=$(DEMO)
	@$(BIN)/python examples/quickstart/show_result.py --data $(DEMO)

check: lint type  ## what to run before every commit: lint, types, and the tests that start no ranks (of the trainer too, where torch is)
	$(BIN)/pytest -q -m "not gpu and not slow and not cluster and not node and not dist" tests/test_english.py tests/test_docs.py tests/test_imports.py \
	  tests/megatron_trainjob tests/megatron_operator tests/charts $(if $(TRAINER),tests/megatron_trainer/data tests/megatron_trainer/losses \
	  tests/megatron_trainer/report tests/megatron_trainer/megatron)
	@$(if $(TRAINER),,$(NO_TRAINER))

test: install  ## run the tests that need neither a GPU, nor a cluster, nor many minutes
	$(BIN)/pytest $(PARALLEL) -m "not gpu and not slow and not cluster and not node"

test-cluster: control-plane  ## run the operator against a real Kubernetes control plane (built once, if need be)
	$(BIN)/pytest -m "cluster and not slow" tests/charts tests/cluster

test-kueue: control-plane  ## both Kueue modes under the real Kueue controller (built from its Go module once, four minutes)
	$(BIN)/python -m local_cluster.kueue_binaries
	$(BIN)/pytest -m slow tests/cluster/test_real_kueue_*.py

test-node: control-plane  ## operator and trainer in containers on a one-node cluster (Linux, root; else skipped: docs/one-node-cluster.md)
	@PYTHONPATH=operator:trainer:. $(BIN)/python -m local_cluster.images
	$(BIN)/pytest -m node tests/cluster

cluster: control-plane  ## start a one-node cluster with the operator installed; Ctrl-C ends it (Linux, root)
	@$(BIN)/python -m local_cluster.demo

demo-cluster: control-plane  ## the quickstart in two pods on a one-node cluster, from helm install to Succeeded
	@$(BIN)/python examples/quickstart/make_model.py --output $(DEMO)/model
	@$(BIN)/python examples/quickstart/make_data.py --output $(DEMO)
	@$(BIN)/python -m local_cluster.demo --data $(DEMO)

test-gpu:  ## run what needs a GPU, with the machine's own Python (megatron-core, TransformerEngine and pytest importable)
	PYTHONPATH=trainer:operator:.:$$PYTHONPATH python3 -m pytest -m gpu tests/gpu

test-slow: install  ## run the long tests as well, those of the control plane one after the other
	$(BIN)/pytest $(PARALLEL) -m "not gpu and not node and not cluster"
	$(BIN)/pytest -m "cluster and not gpu and not node"

lint: $(READY)  ## ruff, the import contracts, and hadolint over the Dockerfiles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=operator:trainer $(BIN)/lint-imports --no-cache
	$(BIN)/hadolint --config docker/.hadolint.yaml docker/*.Dockerfile

type: $(READY)  ## mypy --strict on the three packages (without torch: on the contract and the operator)
	$(BIN)/mypy -p megatron_trainjob -p megatron_operator $(if $(TRAINER),-p megatron_trainer)

generate: $(READY)  ## write the CRD, its policy, the reference pages of docs/ and the chart's copies from their definitions
	$(BIN)/python -m megatron_trainjob.generate
	$(BIN)/python -m megatron_operator.generate
	$(BIN)/python charts/generate.py
	$(if $(TRAINER),$(BIN)/python -m megatron_trainer.megatron --write,@$(NO_TRAINER))

kustomize-base: generate  ## write charts/kustomize/operator.yaml from the chart (Helm: the machine's, or built once)
	$(BIN)/python charts/generate.py --helm "$$($(BIN)/python -m local_cluster.control_plane_binaries --helm)"

images:  ## build both images with docker, podman or buildah
	@docker/build

template-table: install  ## write the table of chat templates and kinds of rows into docs/data.md
	@PYTHONPATH=operator:trainer:. $(BIN)/python -m tests.support.data.template_matrix --write

verify: generate  ## fail when a generated file is not up to date; prints how many arguments work
	@git diff --exit-code -- README.md docs/arguments.md docs/families.md docs/fields.md docs/settings.md docs/moving-megatron-core.md crds charts || { echo "generated files are not up to date: commit what make generate wrote"; exit 1; }

control-plane: $(READY)  ## find or build etcd and the Kubernetes control plane that the cluster tests run on
	$(BIN)/python -m local_cluster.control_plane_binaries

clean:  ## remove what was built here (not the caches in ~/.cache)
	rm -rf $(VENV) .cache .mtj build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
