"""A kubeconfig's inline credentials are on disk no longer than the process that reads them."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import yaml

from local_cluster import control_plane
from megatron_operator.cluster.kubernetes import connection
from megatron_operator.cluster.kubernetes.connection import Identity

PROGRAM = """
import ssl, sys
from pathlib import Path
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
connection = from_kubeconfig(Path(sys.argv[1]))
assert isinstance(connection.ssl, ssl.SSLContext)
print(connection.identity.key_file.read_text())
"""


def inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_inline_keys_are_gone_with_the_process(tmp_path: Path):
    control_plane.make_certificates(tmp_path, "127.0.0.1")
    authority = {"server": "https://127.0.0.1:6443", "certificate-authority-data": inline(tmp_path / "ca.crt")}
    user = {
        f"client-{name}-data": inline(tmp_path / f"admin.{end}")
        for name, end in (("certificate", "crt"), ("key", "key"))
    }
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin"}}],
        "clusters": [{"name": "here", "cluster": authority}],
        "users": [{"name": "admin", "user": user}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {
        "TMPDIR": str(tmp_path / "temporary"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "config")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == (tmp_path / "admin.key").read_text().strip()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_token_that_is_just_being_replaced_leaves_the_known_one(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("old\n")
    read = connection.token_reader(Identity(token_file=file))
    monkeypatch.setattr(connection, "TOKEN_AGE_S", -1.0)
    assert read() == "old"
    file.unlink()
    assert read() == "old"
    file.write_text("new\n")
    assert read() == "new"
