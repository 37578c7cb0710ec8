"""Kubeconfigs whose credentials a program makes, as those of cloud providers: real programs of a few lines."""

import json
import time
from pathlib import Path

import pytest
import yaml

from local_cluster import control_plane
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from megatron_operator.timestamp import to_text

API = "client.authentication.k8s.io/v1"


def kubeconfig(folder: Path, script: str, **fields: object) -> Path:
    """A kubeconfig whose user is whom this shell script answers."""
    program = folder / "give-token"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "cloud"}}],
        "clusters": [{"name": "here", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "cloud", "user": {"exec": {"apiVersion": API, "command": "./give-token", **fields}}}],
    }
    (folder / "config").write_text(yaml.safe_dump(config))
    return folder / "config"


def credential(**status: object) -> str:
    return json.dumps({"apiVersion": API, "kind": "ExecCredential", "status": status})


def test_the_token_is_what_the_program_says_with_its_arguments_and_variables(tmp_path: Path):
    script = f"""echo '{credential(token="REPLACED")}' | sed "s/REPLACED/$1-$CLUSTER/" """
    path = kubeconfig(tmp_path, script, args=["get"], env=[{"name": "CLUSTER", "value": "blue"}])
    assert from_kubeconfig(path).headers() == {"Authorization": "Bearer get-blue"}


def test_the_program_is_asked_again_only_when_its_answer_is_about_to_expire(tmp_path: Path):
    for after_s, number in ((3600, 1), (30, 3)):
        folder = tmp_path / str(after_s)
        folder.mkdir()
        answer = credential(token="token", expirationTimestamp=to_text(time.time() + after_s))
        connection = from_kubeconfig(kubeconfig(folder, f"echo asked >> {folder}/log\necho '{answer}'"))
        assert [connection.token(), connection.token()] == ["token", "token"]
        assert (folder / "log").read_text().count("asked") == number


def test_a_certificate_may_be_the_answer(tmp_path: Path):
    control_plane.make_certificates(tmp_path, "127.0.0.1")
    certificate, key = ((tmp_path / f"admin.{end}").read_text() for end in ("crt", "key"))
    (tmp_path / "answer").write_text(credential(clientCertificateData=certificate, clientKeyData=key))
    connection = from_kubeconfig(kubeconfig(tmp_path, f"cat {tmp_path}/answer"))
    assert connection.headers() == {}
    assert connection.identity.key_file is not None
    assert connection.identity.key_file.read_text() == key


def test_the_program_hears_of_the_cluster_if_it_asks_to(tmp_path: Path):
    answer = credential(token="token")
    script = f"""echo "$KUBERNETES_EXEC_INFO" > {tmp_path}/question\necho '{answer}'"""
    from_kubeconfig(kubeconfig(tmp_path, script, provideClusterInfo=True))
    asked = json.loads((tmp_path / "question").read_text())
    assert (asked["kind"], asked["apiVersion"]) == ("ExecCredential", API)
    assert asked["spec"] == {"interactive": False, "cluster": {"server": "http://127.0.0.1:1"}}


@pytest.mark.parametrize(
    ("script", "fields", "words"),
    [
        ("exit 3", {}, "gave no credentials: .* exit status 3"),
        ("echo no json", {}, "answered no ExecCredential"),
        ("echo '{}'", {}, "answered no ExecCredential"),
        (f"echo '{credential()}'", {}, "neither token nor"),
        ("", {"command": "no-such-helper", "installHint": "See\nthe cloud."}, "not on this machine.* See the cloud"),
    ],
    ids=["fails", "no JSON", "no status", "nothing in it", "missing"],
)
def test_what_is_wrong_with_a_program_is_said_with_its_name(tmp_path: Path, script: str, fields: dict, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        from_kubeconfig(kubeconfig(tmp_path, script, **fields))
    assert str(fields.get("command", "./give-token")) in str(caught.value)
