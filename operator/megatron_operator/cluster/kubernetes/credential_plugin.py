"""Credentials from a program that a kubeconfig names (`user.exec`), as kubeconfigs of cloud providers do.

The program is named in the user's own file and runs as the user, as under kubectl. Its answer stays in this process.
"""

from __future__ import annotations

import base64
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from megatron_operator import clock
from megatron_operator.timestamp import to_seconds
from megatron_trainjob.violation import Violation

Object = Mapping[str, Any]
TIMEOUT_S = 60.0
RENEW_BEFORE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A token, or a certificate and its key (PEM), and until when they hold, in seconds since the epoch."""

    token: str | None = None
    certificate: str | None = None
    key: str | None = None
    expires_at: float = math.inf

    def as_user(self) -> Object:
        """The fields that a user of a kubeconfig has for the same."""
        pem = {"client-certificate-data": self.certificate, "client-key-data": self.key}
        inline = {name: base64.b64encode(text.encode()).decode() for name, text in pem.items() if text}
        return {**({"token": self.token} if self.token else {}), **inline}


def asker(plugin: Object, cluster: Object, config: Path) -> Callable[[], Credential]:
    """A function that asks the program, and again a minute before the answer expires. Raises ValueError, see `ask`.

    The same one for the same program: commands that poll read the kubeconfig again and again.
    """
    return _asker(json.dumps([plugin, cluster], default=str), config)


@cache
def _asker(described: str, config: Path) -> Callable[[], Credential]:
    plugin, cluster = json.loads(described)
    known: Credential | None = None

    def credential() -> Credential:
        nonlocal known
        if known is None or clock.now() > known.expires_at - RENEW_BEFORE_S:
            known = ask(plugin, cluster, config)
        return known

    return credential


def ask(plugin: Object, cluster: Object, config: Path) -> Credential:
    """The program's answer. Raises ValueError if it cannot be run, fails, or answers something else."""
    command = [_program(str(plugin["command"]), config), *map(str, plugin.get("args") or ())]
    given = {entry["name"]: str(entry["value"]) for entry in plugin.get("env") or ()}
    inherited = os.environ  # noqa: TID251 (the program reads the cloud's own variables, as under kubectl)
    environment = {**inherited, **given, "KUBERNETES_EXEC_INFO": json.dumps(_question(plugin, cluster, config))}
    stdin = None if _is_interactive(plugin) else subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, env=environment, stdin=stdin, stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=True, text=True
        )
        return _read(json.loads(done.stdout))
    except FileNotFoundError:
        hint = " ".join(str(plugin.get("installHint") or "").split())
        raise _problem(config, plugin, f"is not on this machine; install it. {hint}".strip()) from None
    except (OSError, subprocess.SubprocessError) as error:
        raise _problem(config, plugin, f"gave no credentials: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _problem(config, plugin, f"answered no ExecCredential: {error!r}") from error


def _program(name: str, config: Path) -> str:
    """As kubectl finds it: a name by PATH, a relative path from the kubeconfig's directory."""
    return str(config.resolve().parent / name) if os.sep in name else name


def _is_interactive(plugin: Object) -> bool:
    return plugin.get("interactiveMode") != "Never" and sys.stdin.isatty()


def _question(plugin: Object, cluster: Object, config: Path) -> Object:
    spec: dict[str, Any] = {"interactive": _is_interactive(plugin)}
    if plugin.get("provideClusterInfo"):
        names = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
        spec["cluster"] = {name: cluster[name] for name in names if name in cluster}
        if file := cluster.get("certificate-authority"):
            authority = (config.parent / file).read_bytes()
            spec["cluster"]["certificate-authority-data"] = base64.b64encode(authority).decode()
    return {"apiVersion": plugin.get("apiVersion"), "kind": "ExecCredential", "spec": spec}


def _read(answer: Object) -> Credential:
    status = answer["status"]
    expires_at = to_seconds(status.get("expirationTimestamp"))
    found = Credential(
        token=status.get("token"),
        certificate=status.get("clientCertificateData"),
        key=status.get("clientKeyData"),
        expires_at=math.inf if expires_at is None else expires_at,
    )
    if not found.token and not (found.certificate and found.key):
        raise ValueError("status has neither token nor clientCertificateData and clientKeyData")
    return found


def _problem(config: Path, plugin: Object, message: str) -> ValueError:
    return ValueError(str(Violation(path=f"{config} user.exec.command", value=plugin.get("command"), message=message)))
