"""The chart on a real API server: what it installs is enough for the operator, and not more than it uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster import control_plane, helm_chart
from local_cluster.control_plane import ControlPlane, Refused
from local_cluster.helm_chart import NAMESPACE
from tests.support.kueue import kueue_stand_in as kueue
from tests.support.operator import fake_kubelet, operator_process, progress_client
from tests.support.operator import pod_group_stand_in as gangs
from tests.support.operator.fake_kubelet import FakeKubelet, Life
from tests.support.operator.job_client import JobClient, manifest, wait_until
from tests.support.operator.operator_rights import USER, granted, of_operator, refused, used

pytestmark = pytest.mark.cluster
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/megatrontrainjobs.megatrontrain.dev"
ROLE = f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{helm_chart.FULL_NAME}"


def life_of(pod: dict) -> Life:
    """Pods of the job "stuck" do not go away when they are asked to; those of the job "silent" never start."""
    name = pod["metadata"]["name"]
    return Life(runs=not name.startswith("silent-"), stop_s=6.0 if name.startswith("stuck-") else 0.0)


@pytest.fixture(scope="module")
def chart_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane into which nothing but the chart was installed."""
    running = control_plane.start(tmp_path_factory.mktemp("chart-plane"))
    with fake_kubelet.playing(FakeKubelet(kubeconfig=running.kubeconfig, life=life_of)):
        chart = str(helm_chart.CHART)
        flags = helm_chart.values_flags(OFF)
        helm_chart.on_cluster(running, "install", helm_chart.RELEASE, chart, "--create-namespace", *flags)
        yield running
    running.stop()


@pytest.fixture(scope="module")
def jobs(chart_plane: ControlPlane) -> JobClient:
    """The jobs of a namespace of a user."""
    chart_plane.create("/api/v1/namespaces", {"metadata": {"name": "user"}})
    with contextlib.suppress(Refused):
        chart_plane.create("/api/v1/namespaces/user/serviceaccounts", {"metadata": {"name": "default"}})
    return JobClient(plane=chart_plane, namespace="user")


def run_chart_operator(plane: ControlPlane, folder: Path, **more: str):
    """The operator as the Deployment would run it: its account, its variables, no more."""
    variables = helm_chart.environment(plane)
    own_port = {name: value for name, value in variables.items() if name != "MTJ_HTTP_PORT"}
    return operator_process.running(helm_chart.account_kubeconfig(plane), folder, **{**own_port, **more})


FAST = {"failurePolicy": {"backoffSeconds": {"initial": 0, "max": 1}}}
TIME_TO_LIVE = {"runPolicy": {"ttlSecondsAfterFinished": 2}}
# On by default; its certificate lies where only a pod has it.
OFF = {"progressPush.enabled": False}
SWITCHES = {
    "kueue.mode": "External",
    "gang.volcano": True,
    "gang.coscheduling": True,
    "gang.native": True,
    "progressPush.enabled": True,
}
# Asked for by an admission plugin of some clusters (OwnerReferencesPermissionEnforcement), never by a request.
UNASKED = {("megatrontrainjobs/finalizers.megatrontrain.dev", "update")}


def live_and_go(jobs: JobClient) -> None:
    """Creation with a claim, a restart, the end, and the job's own deletion."""
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    run_policy = {"ttlSecondsAfterFinished": 3, "ttlPolicy": "DeleteJob"}
    checkpoint = {"pvc": {"template": {"spec": claim}}}
    jobs.submit(manifest(checkpoint=checkpoint, runPolicy=run_policy, **FAST))
    jobs.await_phase("Running")
    jobs.end_pod("job-a0-worker-0", 137)
    jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    jobs.await_phase("Running")
    end_all(jobs, "job")
    wait_until(jobs.job, lambda job: job is None, "the job to be deleted")


def meet_strangers(jobs: JobClient) -> None:
    """Every name that the job wants is taken at first: each object is read. Later its own are cleaned up."""
    pod = {"metadata": {"name": "taken-a0-master-0"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    service = {"metadata": {"name": "taken"}, "spec": {"ports": [{"port": 80}]}}
    strangers = {"services": service, "configmaps": {"metadata": {"name": "taken-a0-args"}}, "pods": pod}
    for plural, body in strangers.items():
        jobs.plane.create(jobs.path(plural), body)
    jobs.submit(manifest("taken", **TIME_TO_LIVE))
    for plural, body in strangers.items():
        wait_until(lambda plural=plural: (plural, "get") in used(jobs.plane), bool, f"a look at {plural}")
        jobs.plane.delete(jobs.path(plural, body["metadata"]["name"]))
    jobs.await_phase("Running", "taken")
    end_all(jobs, "taken")
    wait_until(lambda: jobs.names_of("configmaps", "taken"), lambda left: not left, "clean-up")


def get_stuck(jobs: JobClient) -> None:
    """A pod outlives its grace period, so its node is asked about."""
    template = {"spec": {"terminationGracePeriodSeconds": 1}}
    jobs.submit(manifest("stuck", podTemplate=template, **FAST))
    jobs.await_phase("Running", "stuck")
    jobs.patch("stuck", suspend=True)
    jobs.await_phase("Suspended", "stuck")
    jobs.patch("stuck", suspend=False)
    jobs.await_phase("Running", "stuck")


def stall_twice(jobs: JobClient) -> None:
    """The same trouble a second time is the same event, counted up."""
    jobs.plane.create(jobs.path("services"), {"metadata": {"name": "again"}, "spec": {"ports": [{"port": 80}]}})
    jobs.submit(manifest("again"))
    for _ in range(2):
        wait_until(lambda: jobs.condition("Stalled", "again"), bool, "condition Stalled")
        jobs.patch("again", suspend=True)
        jobs.await_phase("Suspended", "again")
        jobs.patch("again", suspend=False)
    wait_until(lambda: jobs.events("again")["JobStalled"]["count"], lambda count: count > 1, "the event's count")
    jobs.delete("again")


def lose_labels(jobs: JobClient) -> None:
    """Somebody takes the label off a pod and off the arguments."""
    jobs.submit(manifest("unlabeled"))
    jobs.await_phase("Running", "unlabeled")
    for plural, name in (("pods", "unlabeled-a0-worker-0"), ("configmaps", "unlabeled-a0-args")):
        jobs.plane.merge(jobs.path(plural, name), {"metadata": {"labels": {"megatrontrain.dev/job-name": None}}})
        wait_until(lambda plural=plural: (plural, "patch") in used(jobs.plane), bool, f"a patch of {plural}")
    jobs.delete("unlabeled")


def stay_silent(jobs: JobClient) -> None:
    """Pods that do not start have their events asked for."""
    jobs.submit(manifest("silent"))
    wait_until(lambda: ("events", "list") in used(jobs.plane), bool, "a look at the events of pods")
    jobs.delete("silent")


def queue_by_pods(jobs: JobClient) -> None:
    """A job queues as a plain pod group, Kueue's webhook not being there; its pods are preempted once."""
    jobs.submit(queued("grouped", **FAST))
    jobs.await_phase("Running", "grouped")
    for pod in jobs.pods("grouped"):
        with contextlib.suppress(Refused):  # the operator deletes the rest of the gang, and may be faster
            jobs.plane.delete(jobs.path("pods", pod))
    jobs.await_pods("grouped-a1-master-0", "grouped-a1-worker-0", job="grouped")
    jobs.await_phase("Running", "grouped")
    end_all(jobs, "grouped")
    jobs.await_phase("Succeeded", "grouped")


def queue_by_workload(jobs: JobClient) -> None:
    """A job's Workload: it is admitted, told of the pods, and taken back; when it is wanted again its name is taken."""
    body = queued("external")
    body["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] = "urgent"
    uid = jobs.submit(body)["metadata"]["uid"]
    workload = kueue.the_workload(jobs)
    kueue.admit(jobs, "spot")
    jobs.await_phase("Running", "external")
    wait_until(lambda: kueue.condition(kueue.the_workload(jobs), "PodsReady"), bool, "PodsReady")
    jobs.patch("external", suspend=True)
    wait_until(lambda: kueue.workloads(jobs), lambda found: not found, "the Workload to be deleted")
    assert (workload["metadata"]["labels"]["kueue.x-k8s.io/job-uid"], workload["spec"]["priority"]) == (uid, 1000)
    stranger = {**kueue.typed("Workload"), "metadata": {"name": workload["metadata"]["name"]}, "spec": workload["spec"]}
    jobs.plane.create(f"{kueue.API}/namespaces/{jobs.namespace}/workloads", stranger)
    jobs.patch("external", suspend=False)
    wait_until(lambda: jobs.condition("Stalled", "external").get("reason"), "NameTaken".__eq__, "NameTaken")
    jobs.submit(queued("unimportant", scheduling={"priorityClassName": "nowhere"}))
    wait_until(lambda: jobs.condition("Stalled", "unimportant"), bool, "the missing priority class to be told")


def wait_for_a_gang(jobs: JobClient) -> None:
    """A group for each scheduler: its name is taken, it holds the pods, goes with its attempt, or its time is over."""
    for scheduler in gangs.APIS:
        name = scheduler.lower()
        stranger = gangs.stranger(jobs, scheduler, f"{name}-a0")
        scheduling = {"gang": scheduler, **({"schedulerName": "gangs"} if scheduler == "Coscheduling" else {})}
        jobs.submit(manifest(name, scheduling=scheduling, **TIME_TO_LIVE, **FAST))
        right = (f"podgroups.{gangs.group(scheduler)}", "get")
        wait_until(lambda right=right: right in used(jobs.plane), bool, f"a look at {stranger}")
        jobs.plane.delete(stranger)
    wait_until(lambda: gangs.take_in(jobs, "volcano-a0"), bool, "the group in Volcano's queue")
    jobs.await_phase("Running", "coscheduling")
    jobs.end_pod("coscheduling-a0-worker-0", 137)
    first = gangs.path(jobs, "Coscheduling", "coscheduling-a0")
    wait_until(lambda: jobs.plane.get(first), lambda found: found is None, "the first attempt's group to be deleted")
    for scheduler in gangs.APIS:
        jobs.await_phase("Running", scheduler.lower())
        end_all(jobs, scheduler.lower())
    for scheduler in gangs.APIS:
        path = gangs.path(jobs, scheduler)
        wait_until(lambda path=path: jobs.plane.get(path)["items"], lambda left: not left, f"no group at {path}")


def push_progress(jobs: JobClient) -> None:
    """The master of a job says how far it is."""
    jobs.submit(manifest("telling"))
    jobs.await_phase("Running", "telling")
    master = "telling-a0-master-0"
    url = progress_client.variables(jobs, master)["KUBEFLOW_TRAINER_SERVER_URL"]
    token = progress_client.pod_token(jobs, master)
    assert progress_client.push(jobs, url, token, {"progress": progress_client.TRAINING}) == 200
    wait_until(lambda: jobs.status("telling").get("progress"), bool, "status.progress")


@contextlib.contextmanager
def switched_on(plane: ControlPlane) -> Iterator[None]:
    """The release with SWITCHES for as long as the block lasts."""
    chart = ("upgrade", helm_chart.RELEASE, str(helm_chart.CHART))
    helm_chart.on_cluster(plane, *chart, *helm_chart.values_flags(SWITCHES))
    try:
        yield
    finally:
        helm_chart.on_cluster(plane, *chart, "--reset-values", *helm_chart.values_flags(OFF))


def queued(name: str, **spec: object) -> dict:
    """A job with a queue."""
    body = manifest(name, **spec)
    body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    return body


def end_all(jobs: JobClient, name: str) -> None:
    """Every pod of the job succeeds."""
    for pod in jobs.pods(name):
        jobs.end_pod(pod, 0)


def test_the_operator_needs_all_that_its_role_grants_and_nothing_else(
    chart_plane: ControlPlane, jobs: JobClient, tmp_path: Path
):
    """Lives that take every path of the operator, held against the server's audit log."""
    with run_chart_operator(chart_plane, tmp_path) as operator:
        for live in (live_and_go, meet_strangers, get_stuck, stall_twice, lose_labels, stay_silent, queue_by_pods):
            live(jobs)
        assert operator.stop() == 0
    assert refused(chart_plane) == []
    assert granted(chart_plane) - used(chart_plane) == UNASKED
    assert used(chart_plane) <= granted(chart_plane)


@pytest.mark.slow
def test_each_switch_grants_what_it_needs_and_nothing_else(chart_plane: ControlPlane, jobs: JobClient, tmp_path: Path):
    """The same with Kueue's Workloads, every gang scheduler and the progress endpoint switched on."""
    before = granted(chart_plane)
    kueue.install(chart_plane)
    kueue.add_places(chart_plane)
    gangs.install(chart_plane)
    settings = progress_client.push_settings(chart_plane, jobs, tmp_path, MTJ_WATCH_NAMESPACES="")
    with switched_on(chart_plane):
        with run_chart_operator(chart_plane, tmp_path, **settings) as operator:
            for live in (queue_by_workload, wait_for_a_gang, push_progress):
                live(jobs)
            assert operator.stop() == 0
        allowed = granted(chart_plane)
    assert refused(chart_plane) == []
    assert allowed - before - used(chart_plane) == set()  # what is granted without a switch: the test above
    assert used(chart_plane) <= allowed
    new = {resource for resource, _ in allowed - before}
    assert new == {
        "workloads.kueue.x-k8s.io",
        "workloads/status.kueue.x-k8s.io",
        "resourceflavors.kueue.x-k8s.io",
        "workloadpriorityclasses.kueue.x-k8s.io",
        "priorityclasses.scheduling.k8s.io",
        "podgroups.scheduling.volcano.sh",
        "podgroups.scheduling.x-k8s.io",
        "podgroups.scheduling.k8s.io",
        "tokenreviews.authentication.k8s.io",
    }


@pytest.fixture(scope="module")
def namespaced_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the chart in namespace scope: Roles in two namespaces of users, none anywhere else."""
    running = control_plane.start(tmp_path_factory.mktemp("namespaced-plane"))
    for name in ("team-a", "team-b", "outside"):
        running.create("/api/v1/namespaces", {"metadata": {"name": name}})
        with contextlib.suppress(Refused):
            running.create(f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})
    values = {"rbac.scope": "namespace", "watchNamespaces": ["team-a", "team-b"]}
    with fake_kubelet.playing(FakeKubelet(kubeconfig=running.kubeconfig)):
        flags = helm_chart.values_flags(values)
        chart = str(helm_chart.CHART)
        helm_chart.on_cluster(running, "install", helm_chart.RELEASE, chart, "--create-namespace", *flags)
        yield running
    running.stop()


def test_in_namespace_scope_the_operator_runs_jobs_there_and_touches_nothing_else(
    namespaced_plane: ControlPlane, tmp_path: Path
):
    """Installed and run with the account and the variables that the chart gives it: no cluster-wide right at all."""
    teams = {name: JobClient(plane=namespaced_plane, namespace=name) for name in ("team-a", "team-b", "outside")}
    with run_chart_operator(namespaced_plane, tmp_path) as operator:
        for jobs in teams.values():
            jobs.submit(manifest(failurePolicy={"backoffSeconds": {"initial": 0, "max": 1}}))
        for name in ("team-a", "team-b"):
            teams[name].await_phase("Running")
        teams["team-b"].end_pod("job-a0-worker-0", 137)
        teams["team-b"].await_pods("job-a1-master-0", "job-a1-worker-0")
        for pod in teams["team-a"].pods():
            teams["team-a"].end_pod(pod, 0)
        teams["team-a"].await_phase("Succeeded")
        assert operator.stop() == 0
    assert teams["outside"].status() == {}
    assert refused(namespaced_plane) == []
    asked = [event for event in of_operator(namespaced_plane) if "objectRef" in event]
    namespaces = {event["objectRef"].get("namespace") for event in asked}
    assert namespaces == {"team-a", "team-b", NAMESPACE}
    assert namespaced_plane.get(ROLE) is None


def test_a_fresh_installation_takes_progress_in_under_a_certificate_that_upgrades_keep(chart_plane: ControlPlane):
    chart = ("upgrade", helm_chart.RELEASE, str(helm_chart.CHART), "--reset-values")
    path = f"/api/v1/namespaces/{NAMESPACE}/secrets/{helm_chart.FULL_NAME}-webhook"
    kept = []
    for flags in ((), ("--set", "logLevel=DEBUG")):
        helm_chart.on_cluster(chart_plane, *chart, *flags)
        assert helm_chart.environment(chart_plane)["MTJ_PROGRESS_PORT"] == "10443"
        kept.append(chart_plane.get(path)["data"])
    assert kept[0] == kept[1]
    assert set(kept[0]) == {"ca.crt", "tls.crt", "tls.key"}
    helm_chart.on_cluster(chart_plane, *chart, *helm_chart.values_flags(OFF))


def test_secrets_and_exec_are_out_of_reach(chart_plane: ControlPlane):
    for resource, subresource in (("secrets", ""), ("pods", "exec"), ("pods", "attach"), ("serviceaccounts", "token")):
        attributes = {"resource": resource, "subresource": subresource, "verb": "get", "namespace": "user"}
        review = {"spec": {"user": USER, "resourceAttributes": attributes}}
        answer = chart_plane.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        assert answer["status"]["allowed"] is False


def test_an_upgrade_disturbs_no_job_and_an_uninstall_leaves_jobs_and_crd(
    chart_plane: ControlPlane, jobs: JobClient, tmp_path: Path
):
    with run_chart_operator(chart_plane, tmp_path):
        jobs.submit(manifest("lasting"))
        jobs.await_phase("Running", "lasting")
        before = {name: pod["metadata"]["uid"] for name, pod in jobs.pods("lasting").items()}
        flags = ("--set", "logLevel=DEBUG", "--set", "gang.native=true", *helm_chart.values_flags(OFF))
        helm_chart.on_cluster(chart_plane, "upgrade", helm_chart.RELEASE, str(helm_chart.CHART), *flags)
    with run_chart_operator(chart_plane, tmp_path):
        helm_chart.on_cluster(chart_plane, "uninstall", helm_chart.RELEASE)
    assert {name: pod["metadata"]["uid"] for name, pod in jobs.pods("lasting").items()} == before
    assert jobs.status("lasting")["phase"] == "Running"
    assert chart_plane.get(CRD) is not None
    assert chart_plane.get(ROLE) is None
