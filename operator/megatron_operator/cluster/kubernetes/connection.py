"""Address and credentials of the API server: a pod's service account, or a kubeconfig file. Sends nothing."""

from __future__ import annotations

import base64
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megatron_operator.cluster.kubernetes import credential_plugin
from megatron_operator.cluster.kubernetes.credential_plugin import Credential
from megatron_trainjob.violation import Violation

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_AGE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Our credentials: a token, the file that holds it (the kubelet renews it), or a certificate and its key.

    ask: gives the current ones where a program of the kubeconfig makes them.
    """

    token: str | None = None
    token_file: Path | None = None
    ask: Callable[[], Credential] | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Connection:
    """One API server: its URL, its certificate authority (None: the system's), our credentials."""

    server: str
    ca_file: Path | None
    identity: Identity
    ssl: ssl.SSLContext | bool
    token: Callable[[], str | None] = field(repr=False)

    def headers(self) -> Mapping[str, str]:
        """The Authorization header, {} with a client certificate."""
        token = self.token()
        return {"Authorization": f"Bearer {token}"} if token else {}


def connect(server: str, *, ca_file: Path | None, identity: Identity, verify: bool = True) -> Connection:
    """The connection with its TLS context. Raises OSError when a file is missing."""
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if identity.certificate_file:
        context.load_cert_chain(identity.certificate_file, identity.key_file)
    return Connection(
        server=server.rstrip("/"),
        ca_file=ca_file,
        identity=identity,
        ssl=context if server.startswith("https") else False,
        token=token_reader(identity),
    )


def token_reader(identity: Identity) -> Callable[[], str | None]:
    """Rereads the token file every minute: the kubelet renews it before it expires."""
    file, ask = identity.token_file, identity.ask
    if ask is not None:
        return lambda: ask().token
    if file is None:
        return lambda: identity.token
    read_at, token = float("-inf"), ""

    def read() -> str:
        nonlocal read_at, token
        if time.monotonic() - read_at > TOKEN_AGE_S:
            try:
                read_at, token = time.monotonic(), file.read_text().strip()
            except OSError:  # just being replaced; the known token is still valid
                if not token:
                    raise
        return token

    return read


def in_cluster(host: str, port: str, folder: Path = SERVICE_ACCOUNT) -> Connection:
    """The connection of a pod with a mounted service account."""
    address = f"[{host}]" if ":" in host else host
    identity = Identity(token_file=folder / "token")
    return connect(f"https://{address}:{port}", ca_file=folder / "ca.crt", identity=identity)


def from_kubeconfig(path: Path) -> Connection:
    """The connection of the file's current context. Raises ValueError that names what the file lacks."""
    config = yaml.safe_load(path.read_text())
    context = _named(config, "contexts", config.get("current-context"), path)["context"]
    cluster = _named(config, "clusters", context["cluster"], path)["cluster"]
    user = _named(config, "users", context["user"], path)["user"]
    if "auth-provider" in user:
        problem = (
            "auth-provider is gone from Kubernetes since 1.26; use exec, a service account's token or a certificate"
        )
        raise ValueError(str(Violation(path=str(path), value=context["user"], message=problem)))
    ask = credential_plugin.asker(user["exec"], cluster, path) if user.get("exec") else None
    if ask is not None:
        user = {**user, **ask().as_user()}
    token_file = user.get("tokenFile")
    identity = Identity(
        token=user.get("token"),
        token_file=Path(token_file) if token_file else None,
        ask=ask,
        certificate_file=_file(user, "client-certificate", path),
        key_file=_file(user, "client-key", path),
    )
    verify = not cluster.get("insecure-skip-tls-verify", False)
    ca_file = _file(cluster, "certificate-authority", path)
    return connect(cluster["server"], ca_file=ca_file, identity=identity, verify=verify)


def namespace_of(path: Path) -> str:
    """The namespace of a kubeconfig's current context. Raises ValueError that names what the file lacks."""
    config = yaml.safe_load(path.read_text())
    context = _named(config, "contexts", config.get("current-context"), path)["context"]
    return str(context.get("namespace") or "default")


def _named(config: Mapping[str, Any], section: str, name: str | None, path: Path) -> Mapping[str, Any]:
    """The entry with this name in a section of a kubeconfig."""
    for entry in config.get(section) or ():
        if entry["name"] == name:
            found: Mapping[str, Any] = entry
            return found
    problem = f"has no entry of this name under {section}; run `kubectl config view` to see it"
    raise ValueError(str(Violation(path=str(path), value=name, message=problem)))


def _file(entry: Mapping[str, Any], name: str, config: Path) -> Path | None:
    """The named file, or a temporary one with the inline data (OpenSSL reads keys from files only)."""
    if data := entry.get(f"{name}-data"):
        with tempfile.NamedTemporaryFile(dir=_inline_files().name, delete=False) as copy:
            copy.write(base64.b64decode(data))
        return Path(copy.name)
    return (config.parent / entry[name]).resolve() if entry.get(name) else None


@cache
def _inline_files() -> tempfile.TemporaryDirectory[str]:
    """The folder of inline certificates and keys; it is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="mtj-")
