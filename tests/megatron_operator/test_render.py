"""mtj render: golden files, and objects that are strictly valid Kubernetes types.

After a wanted change: mtj render NAME.job.yaml > NAME.yaml in golden/, then read the difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_operator.cli import main
from megatron_operator.core.desired import build
from tests.support.operator.job_values import job

client = pytest.importorskip("kubernetes.client", reason="needs the development extra")
ValidationError = pytest.importorskip("pydantic").ValidationError

GOLDEN = Path(__file__).parent / "golden"
# The client's models refuse unknown fields, so a misspelt one fails here as on a strict API server.
MODELS = {
    "Pod": client.V1Pod,
    "Service": client.V1Service,
    "ConfigMap": client.V1ConfigMap,
    "PersistentVolumeClaim": client.V1PersistentVolumeClaim,
}
NATIVE = {"scheduling": {"gang": "Native", "topology": {"key": "rack"}, "priorityClassName": "high"}}
HOST_NETWORK = {"network": {"hostNetwork": True, "rdma": {"resource": "rdma/ib"}}}


@pytest.mark.parametrize("name", ["one-node", "four-nodes"])
def test_rendered_objects_are_the_golden_ones(name, capsys):
    assert main(["render", str(GOLDEN / f"{name}.job.yaml")]) == 0
    assert capsys.readouterr().out == (GOLDEN / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", ["one-node", "four-nodes"])
def test_golden_objects_are_strictly_kubernetes_types(name):
    for document in yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()):
        MODELS[document["kind"]].model_validate(document)


@pytest.mark.parametrize("spec", [{}, NATIVE, HOST_NETWORK], ids=["plain", "native gang", "host network"])
def test_every_kind_of_pod_is_a_kubernetes_pod(spec):
    for built in build.everything(job(spec), 3):
        model = {**MODELS, "PodGroup": client.V1beta1PodGroup}[built["kind"]]
        model.model_validate(yaml.safe_load(yaml.safe_dump(built)))


def test_the_strict_models_would_notice_a_misspelt_field():
    with pytest.raises(ValidationError):
        client.V1Pod.model_validate({"kind": "Pod", "spec": {"containers": [{"name": "a", "imagePolicy": "b"}]}})


def test_rendering_is_deterministic_and_leaves_the_job_as_it_is():
    value = job(NATIVE)
    assert build.everything(value, 0) == build.everything(value, 0)
    assert value == job(NATIVE)


def test_a_wrong_manifest_is_not_rendered(tmp_path, capsys):
    file = tmp_path / "job.yaml"
    file.write_text("kind: MegatronTrainJob\nspec: {task: sft}\n")
    assert main(["render", str(file)]) == 2
    assert capsys.readouterr().out == ""
