"""What the chart renders: scopes, switches, and values that it refuses."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys

import pytest
import yaml

from local_cluster import helm_chart
from local_cluster.control_plane_binaries import helm
from local_cluster.helm_chart import NAMESPACE, of_kind, render
from megatron_trainjob import images

pytestmark = pytest.mark.cluster
ROOT = helm_chart.CHART.parents[1]


def kinds(objects):
    return {each["kind"] for each in objects}


def test_by_default_two_replicas_elect_a_leader_and_watch_everything():
    objects = render()
    (deployment,) = of_kind(objects, "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert deployment["spec"]["replicas"] == 2
    assert variables["MTJ_LEADER_ELECTION"] == "true"
    assert variables["MTJ_WATCH_NAMESPACES"] == ""
    assert {"ClusterRole", "ClusterRoleBinding", "PodDisruptionBudget", "CustomResourceDefinition"} <= kinds(objects)


def test_the_operator_pod_fits_pod_security_restricted():
    (deployment,) = of_kind(render(), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    security = pod["containers"][0]["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_in_namespace_scope_there_are_only_roles_in_the_watched_namespaces():
    objects = render(rbac__scope="namespace", watchNamespaces=["a", "b"], crds__enabled=False)
    assert not {"ClusterRole", "ClusterRoleBinding"} & kinds(objects)
    roles = {(role["metadata"]["namespace"], role["metadata"]["name"]) for role in of_kind(objects, "Role")}
    assert roles == {
        ("a", helm_chart.FULL_NAME),
        ("b", helm_chart.FULL_NAME),
        (NAMESPACE, f"{helm_chart.FULL_NAME}-leader"),
    }
    (deployment,) = of_kind(objects, "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert variables["MTJ_WATCH_NAMESPACES"] == "a,b"
    assert variables["MTJ_NODE_LOSS_DETECTION"] == "false"


def test_queues_of_jobs_bring_the_rights_that_they_need_and_no_more():
    def granted(objects):
        roles = (*of_kind(objects, "ClusterRole"), *of_kind(objects, "Role"))
        rules = [rule for role in roles for rule in role["rules"] if "kueue.x-k8s.io" in rule["apiGroups"]]
        return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}

    assert granted(render()) == set()
    objects = render(kueue__mode="External", rbac__scope="namespace", crds__enabled=False)
    workloads = {("workloads", verb) for verb in ("create", "get", "list", "watch", "delete")}
    classes = {("resourceflavors", "get"), ("workloadpriorityclasses", "get")}
    assert granted(objects) == workloads | classes | {("workloads/status", "patch")}
    (role,) = of_kind(objects, "ClusterRole")
    assert role["metadata"]["name"] == f"{helm_chart.FULL_NAME}-queues"


@pytest.mark.parametrize("scope", ["cluster", "namespace"])
def test_no_role_of_the_operator_reaches_secrets_or_exec(scope):
    objects = render(rbac__scope=scope, rbac__aggregateRoles=False)
    for role in (*of_kind(objects, "ClusterRole"), *of_kind(objects, "Role")):
        for rule in role["rules"]:
            assert not {"secrets", "pods/exec", "*"} & {*rule["resources"], *rule["verbs"], *rule["apiGroups"]}


def granted(role: dict) -> set[tuple[str, str]]:
    """(resource, verb) of each permission."""
    return {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


def test_users_may_do_with_jobs_what_they_may_with_deployments():
    """Those of the cluster's own roles; kubectl scale and autoscalers write a resource of its own."""
    roles = {role["metadata"]["name"].rpartition("-")[2]: granted(role) for role in of_kind(render(), "ClusterRole")}
    reads = {("megatrontrainjobs", verb) for verb in ("get", "list", "watch")}
    looks = {(f"megatrontrainjobs/{part}", "get") for part in ("status", "scale")}
    changes = {"create", "delete", "deletecollection", "patch", "update"}
    writes = {("megatrontrainjobs", verb) for verb in changes}
    scales = {("megatrontrainjobs/scale", verb) for verb in ("patch", "update")}
    assert roles["viewer"] == reads | looks
    assert roles["editor"] == roles["admin"] == writes | looks | scales


def test_the_crd_is_kept_on_uninstall_unless_set_otherwise():
    (kept,) = of_kind(render(), "CustomResourceDefinition")
    (dropped,) = of_kind(render(crds__keep=False), "CustomResourceDefinition")
    assert kept["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "helm.sh/resource-policy" not in dropped["metadata"].get("annotations", {})


def test_the_notes_and_the_page_name_all_that_an_uninstall_leaves():
    kept = [each for each in render() if "helm.sh/resource-policy" in each["metadata"].get("annotations", {})]
    assert len(kept) == 5
    notes = (helm_chart.CHART / "templates" / "NOTES.txt").read_text()
    page = (ROOT / "docs" / "operator.md").read_text()
    for each in kept:
        assert f"[{each['kind']}] {each['metadata']['name']}\n" in page
        assert each["kind"].lower() in notes.replace("delete crd", "customresourcedefinition")
        assert re.search(rf"\s{each['metadata']['name']}\s", notes)


def test_the_charts_crd_and_the_kustomize_base_are_the_generated_ones():
    script = helm_chart.CHART.parent / "generate.py"
    command = [sys.executable, str(script), "--check", "--helm", str(helm())]
    assert subprocess.run(command, check=False).returncode == 0


def test_the_webhook_comes_with_a_certificate_of_its_own_for_the_service_name():
    objects = render(webhook__enabled=True)
    (configuration,) = of_kind(objects, "ValidatingWebhookConfiguration")
    (secret,) = of_kind(objects, "Secret")
    (webhook,) = configuration["webhooks"]
    assert webhook["clientConfig"]["caBundle"] == secret["data"]["ca.crt"]
    assert webhook["failurePolicy"] == "Ignore"
    excluded = webhook["namespaceSelector"]["matchExpressions"][0]["values"]
    assert excluded == [NAMESPACE]


def test_with_cert_manager_renewals_come_from_one_authority_that_pods_go_on_trusting():
    objects = render(webhook__enabled=True, webhook__certManager__enabled=True)
    assert "Secret" not in kinds(objects)
    issuers = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "Issuer")}
    certificates = {each["spec"]["secretName"]: each["spec"] for each in of_kind(objects, "Certificate")}
    served = certificates[f"{helm_chart.FULL_NAME}-webhook"]
    authority = certificates[issuers[served["issuerRef"]["name"]]["ca"]["secretName"]]
    assert authority["isCA"] is True
    assert authority["privateKey"]["rotationPolicy"] == "Never"
    assert int(authority["duration"].removesuffix("h")) >= 10 * 365 * 24
    assert issuers[authority["issuerRef"]["name"]] == {"selfSigned": {}}
    (configuration,) = of_kind(objects, "ValidatingWebhookConfiguration")
    injected = configuration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"]
    assert injected == f"{NAMESPACE}/{helm_chart.FULL_NAME}-webhook"


def test_an_issuer_of_the_clusters_is_used_as_it_is():
    issuer = {"kind": "ClusterIssuer", "name": "company"}
    objects = render(webhook__enabled=True, webhook__certManager__enabled=True, webhook__certManager__issuerRef=issuer)
    (certificate,) = of_kind(objects, "Certificate")
    assert certificate["spec"]["issuerRef"] == issuer
    assert "Issuer" not in kinds(objects)


def test_monitoring_and_network_policy_come_when_asked_for():
    asked = {"metrics__serviceMonitor__enabled": True, "metrics__prometheusRule__enabled": True}
    objects = render(networkPolicy__enabled=True, **asked)
    assert {"ServiceMonitor", "PrometheusRule", "NetworkPolicy"} <= kinds(objects)
    assert not {"ServiceMonitor", "PrometheusRule", "NetworkPolicy"} & kinds(render())


def test_alerts_link_to_their_sections_of_the_runbook():
    on = {"metrics__prometheusRule__enabled": True}
    url = "https://git.example.com/docs/runbook.md"
    (linked,) = of_kind(render(metrics__prometheusRule__runbookUrl=url, **on), "PrometheusRule")
    (bare,) = of_kind(render(**on), "PrometheusRule")
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), flags=re.MULTILINE)
    rules = linked["spec"]["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == headings
    assert [rule["annotations"]["runbook_url"] for rule in rules] == [f"{url}#{each.lower()}" for each in headings]
    assert all(set(rule["annotations"]) == {"summary"} for rule in bare["spec"]["groups"][0]["rules"])


# Every switch of the chart, away from its default.
SWITCHES = {
    "fullnameOverride": "trainer-operator",
    "nameOverride": "mtj",
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "image__registry": "registry.example.com/team",
    "trainerImage": "registry.example.com/other/trainer:1",
    "imagePullSecrets": [{"name": "registry"}],
    "perJobMetrics": True,
    "priorityClassName": "system-cluster-critical",
    "podAnnotations": {"a": "b"},
    "podLabels": {"a": "b"},
    "nodeSelector": {"a": "b"},
    "tolerations": [{"operator": "Exists"}],
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    "crds__enabled": False,
    "crds__keep": False,
    "serviceAccount__create": False,
    "rbac__create": False,
    "rbac__scope": "namespace",
    "rbac__aggregateRoles": False,
    "watchNamespaces": ["a", "b"],
    "nodeLossDetection": False,
    "gang__volcano": True,
    "gang__coscheduling": True,
    "gang__native": True,
    "kueue__mode": "External",
    "progressPush__enabled": False,
    "webhook__enabled": True,
    "webhook__certManager__enabled": True,
    "webhook__existingSecret": "certificate",
    "metrics__serviceMonitor__enabled": True,
    "metrics__prometheusRule__enabled": True,
    "metrics__prometheusRule__runbookUrl": "https://git.example.com/docs/runbook.md",
    "metrics__dashboard__enabled": True,
    "networkPolicy__enabled": True,
    "podDisruptionBudget__enabled": False,
    "podPolicy__enabled": True,
    "leaderElection__enabled": False,
}
# What a switch cannot be without.
NEEDED = {"leaderElection__enabled": {"replicas": 1}}


def check_objects(objects):
    """Every object is one that an API server could take: kind, name, labels as text, a selector that its pods meet."""
    for each in objects:
        assert all((each["apiVersion"], each["kind"], each["metadata"]["name"]))
        assert all(isinstance(value, str) for value in (each["metadata"].get("labels") or {}).values())
    (deployment,) = of_kind(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    selectors += [each["spec"]["selector"] for each in of_kind(objects, "Service")]
    for policy in of_kind(objects, "NetworkPolicy"):
        selectors.append(policy["spec"]["podSelector"]["matchLabels"])
        peers = [peer for rule in policy["spec"]["egress"] for peer in rule.get("to", ())]
        selectors += [peer["podSelector"]["matchLabels"] for peer in peers if "podSelector" in peer]
    assert all(selector.items() <= labels.items() for selector in selectors)


def rows_of_pairs():
    """Few sets of switches in which each pair of them is both on, both off, and either one on alone.

    Each switch is on in another half of the rows, and all of them in the first (Kleitman and Spencer, 1973).
    """
    count = next(n for n in itertools.count(4, 2) if math.comb(n - 1, n // 2 - 1) >= len(SWITCHES))
    halves = itertools.combinations(range(1, count), count // 2 - 1)
    rows = [{} for _ in range(count)]
    for (name, value), half in zip(SWITCHES.items(), halves, strict=False):
        for row in (0, *half):
            rows[row][name] = value
    return rows


def switches_of(values, path=()):
    """Names of the values that are true or false, but for the security of the operator's own pod."""
    for name, value in values.items():
        if isinstance(value, dict) and not name.endswith("ecurityContext"):
            yield from switches_of(value, (*path, name))
        elif isinstance(value, bool):
            yield "__".join((*path, name))


def test_no_switch_of_the_chart_is_left_out():
    values = yaml.safe_load((helm_chart.CHART / "values.yaml").read_text())
    assert set(switches_of(values)) <= set(SWITCHES)


def test_the_rows_hold_every_pair_of_switches():
    rows = rows_of_pairs()
    for first, second in itertools.combinations(SWITCHES, 2):
        assert {(first in row, second in row) for row in rows} == set(itertools.product((True, False), repeat=2))


@pytest.mark.parametrize("row", rows_of_pairs(), ids=lambda row: f"{len(row)}-switches")
def test_every_pair_of_switches_renders(row):
    needed = {name: value for switch in row for name, value in NEEDED.get(switch, {}).items()}
    check_objects(render(**row, **needed))


def test_one_registry_holds_for_both_images_and_names_can_be_replaced():
    objects = render(image__registry="registry.example.com/team/", fullnameOverride="trainer-operator")
    (deployment,) = of_kind(objects, "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert deployment["metadata"]["name"] == "trainer-operator"
    assert container["image"] == f"registry.example.com/team/{images.OPERATOR}"
    assert variables["MTJ_TRAINER_IMAGE"] == f"registry.example.com/team/{images.TRAINER}"
    (deployment,) = of_kind(render(nameOverride="mega", extraEnv=[{"name": "A", "value": "b"}]), "Deployment")
    assert deployment["metadata"]["name"] == "mtj-mega"
    assert deployment["metadata"]["labels"]["app.kubernetes.io/name"] == "mega"
    assert {"name": "A", "value": "b"} in deployment["spec"]["template"]["spec"]["containers"][0]["env"]


def test_only_pods_of_jobs_and_replicas_reach_the_progress_port():
    (policy,) = of_kind(
        render(
            networkPolicy__enabled=True,
            networkPolicy__apiServerCIDRs=["10.0.0.0/28"],
            networkPolicy__metricsFrom=[{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            progressPush__enabled=True,
            webhook__enabled=True,
        ),
        "NetworkPolicy",
    )
    callers = {rule["ports"][0]["port"]: rule["from"] for rule in policy["spec"]["ingress"]}
    job_pods, replicas = callers["progress"]
    assert job_pods["podSelector"]["matchExpressions"][0]["key"] == "megatrontrain.dev/job-name"
    assert job_pods["namespaceSelector"] == {}
    assert replicas == {"podSelector": policy["spec"]["podSelector"]}
    assert callers["webhook"] == [{"ipBlock": {"cidr": "10.0.0.0/28"}}]
    assert callers["metrics"][0]["namespaceSelector"]["matchLabels"] == {"name": "monitoring"}


CERTIFICATE = {"webhook__existingSecret": "own", "webhook__caBundle": "Y2E="}
# Whether progress is on, and whether the chart generates a certificate. The renderer of these tests cannot look into a
# cluster, as Argo CD's cannot; tests/cluster/test_chart.py installs with one that can.
PUSHES = {
    "a new certificate each time": ({}, False, False),
    "a certificate that stays": (CERTIFICATE, True, False),
    "one namespace": ({"rbac__scope": "namespace", **CERTIFICATE}, False, False),
    "one namespace, asked for": ({"rbac__scope": "namespace", "progressPush__enabled": True}, True, True),
    "turned off": ({"progressPush__enabled": False, **CERTIFICATE}, False, False),
}


@pytest.mark.parametrize(("values", "pushes", "generates"), PUSHES.values(), ids=PUSHES)
def test_progress_is_on_where_tokens_can_be_checked_and_the_certificate_stays(values, pushes, generates):
    objects = render(**values)
    (deployment,) = of_kind(objects, "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert ("MTJ_PROGRESS_PORT" in {each["name"] for each in container["env"]}) is pushes
    assert ("progress" in {port["name"] for port in container["ports"]}) is pushes
    assert any(each["metadata"]["name"].endswith("-tokens") for each in of_kind(objects, "ClusterRole")) is pushes
    secrets = of_kind(objects, "Secret")
    assert [sorted(each["data"]) for each in secrets] == [["ca.crt", "tls.crt", "tls.key"]] * generates
    (service,) = of_kind(objects, "Service")
    assert ("progress" in {port["name"] for port in service["spec"]["ports"]}) is pushes


def test_the_pod_policy_comes_when_asked_for():
    policies = {each["metadata"]["name"] for each in of_kind(render(), "ValidatingAdmissionPolicy")}
    asked = {each["metadata"]["name"] for each in of_kind(render(podPolicy__enabled=True), "ValidatingAdmissionPolicy")}
    assert asked - policies == {f"{helm_chart.FULL_NAME}-pods"}


@pytest.mark.parametrize(
    "values",
    [
        {"podPolicy__serviceAccounts": []},
        {"networkPolicy__apiServerCIDRs": ["10.0.0.1"]},
        {"replica": 2},
        {"replicas": -1},
        {"rbac__scope": "galaxy"},
        {"webhook__failurePolicy": "Maybe"},
        {"leaderElection__enabled": False, "replicas": 2},
    ],
    ids=[
        "no service account",
        "no network",
        "unknown name",
        "negative",
        "scope",
        "policy",
        "two replicas without election",
    ],
)
def test_values_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match="don't meet the specifications"):
        render(**values)
