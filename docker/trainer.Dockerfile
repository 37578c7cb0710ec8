# The trainer's image, what `spec.image` names: Megatron-Core on a PyTorch that knows the GPU.
#   docker build -f docker/trainer.Dockerfile -t megatron-trainer:0.1.0 .
# The default base brings CUDA, NCCL, PyTorch, TransformerEngine and flash-attn, built for each other. On another
# base give TRANSFORMER_ENGINE and FLASH_ATTENTION requirements to have them installed, or leave them empty
# (the CPU backend needs neither). PIP_FLAGS: --constraint, --no-deps, an index ...
ARG BASE=nvcr.io/nvidia/pytorch:26.09-py3
FROM ${BASE}
ARG TRANSFORMER_ENGINE=""
ARG FLASH_ATTENTION=""
ARG PIP_FLAGS=""
WORKDIR /opt/megatron-trainer
COPY pyproject.toml README.md LICENSE ./
COPY trainer trainer
COPY operator operator
# The base's own torch is kept: a wheel from elsewhere would be built for another CUDA.
# hadolint ignore=DL3013,DL3042,SC2086
RUN python3 -c "import importlib.metadata as m; print('torch==' + m.version('torch'))" > /tmp/keep.txt 2>/dev/null || : > /tmp/keep.txt; \
    python3 -m pip install --no-cache-dir --constraint /tmp/keep.txt ${PIP_FLAGS} '.[trainer]' ${TRANSFORMER_ENGINE} ${FLASH_ATTENTION} \
    && rm /tmp/keep.txt
# Any user may run it, as PodSecurity "restricted" wants; caches go to a writable place.
RUN mkdir -p /cache && chmod 1777 /cache
ENV PYTHONUNBUFFERED=1 HF_HOME=/cache/huggingface TRITON_CACHE_DIR=/cache/triton TORCHINDUCTOR_CACHE_DIR=/cache/inductor
USER 1000:1000
WORKDIR /workspace
CMD ["python3", "-m", "megatron_trainer", "--help"]
