# The operator's image: Python, kopf and this project's operator; no torch, no shell tools, no root.
#   docker build -f docker/operator.Dockerfile -t megatron-train-operator:0.1.0 .
# BASE is any image with Python >= 3.12 and pip. PIP_FLAGS: --constraint, an index ...
ARG BASE=python:3.13-slim
FROM ${BASE} AS build
ARG PIP_FLAGS=""
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY trainer/megatron_trainjob trainer/megatron_trainjob
# hadolint ignore=DL3013,SC2086
RUN python3 -m pip install --no-cache-dir --no-compile --prefix=/install ${PIP_FLAGS} '.[operator]'

FROM ${BASE}
COPY --from=build /install /usr/local
USER 65532:65532
WORKDIR /tmp
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 8080 9443 10443
ENTRYPOINT ["python3", "-m", "megatron_operator"]
