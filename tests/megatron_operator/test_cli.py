"""The commands of mtj that start nothing: what they print and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_operator.cli import logs, main, trainer
from megatron_operator.cluster.local.state import State
from tests.support.operator.job_values import TINY, raw, write_model_header, write_tokenizer, write_weights

STATUS = {
    "phase": "Running",
    "reason": "AllPodsRunning",
    "conditions": [],
    "restarts": {"total": 2, "counted": 1, "attempt": 2},
    "progress": {
        "iteration": 5,
        "totalIterations": 10,
        "percentage": 50,
        "metrics": [{"name": "loss", "value": "1.5"}],
    },
    "checkpoint": {"latestIteration": 5, "path": "/c/iter_5"},
    "lastFailure": {"pod": "tune-a0-master-0", "exitCode": 137, "reason": "OOMKilled", "iteration": 3},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(TINY))
    write_model_header(tmp_path / "model", TINY)
    write_tokenizer(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text("")
    arguments = {"model": "./model", "dataset": ["./train.jsonl"], "train_iters": 10}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw({"args": arguments})))
    return tmp_path


def said(capsys, *words, code=0):
    assert main(list(words)) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_a_valid_manifest_is_called_so(here, capsys):
    assert "tune is valid: sft, 2 x 1 processes, 3 arguments given" in said(capsys, "validate", "job.yaml")


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_tensors_that_the_model_lacks_are_named_before_anything_starts(here, capsys, command):
    write_weights(here / "model", lm_head__weight=TINY.get("vocab_size", 32000), extra=1)
    text = said(capsys, command, "job.yaml", code=2)
    assert "tensors that the model needs are missing: model.embed_tokens.weight" in text
    assert "1 tensors belong to no part of the model; is config.json of another model?: extra" in text


@pytest.mark.parametrize(
    ("model", "file", "said"),
    [
        ("./other", "adapter_config.json", "holds an adapter: pass it as adapter_load"),
        ("./other", "args.json", "holds a run's checkpoints: pass it as load"),
        ("./other/model.safetensors", "model.safetensors", "is a file; pass the folder that holds it: other"),
    ],
)
def test_a_model_that_is_something_else_is_named_as_what_it_is(here, capsys, model, file, said):
    (here / "other").mkdir()
    (here / "other" / file).write_text("{}")
    job = yaml.safe_load((here / "job.yaml").read_text())
    job["spec"]["args"]["model"] = model
    (here / "job.yaml").write_text(yaml.safe_dump(job))
    assert main(["validate", "job.yaml"]) == 2
    assert said in " ".join("".join(capsys.readouterr()).split())


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_an_unsupported_quantization_is_refused_with_the_remedy(here, capsys, command):
    config = {**TINY, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (here / "model" / "config.json").write_text(json.dumps(config))
    text = said(capsys, command, "job.yaml", code=2)
    assert "config.json:quantization_config: weights quantized by 'gptq' are not supported" in text


def test_problems_are_printed_with_path_value_and_remedy(here, capsys):
    (here / "job.yaml").write_text(yaml.safe_dump(raw({"numNodes": 0, "args": {"modell": "x"}})))
    text = said(capsys, "validate", "job.yaml", code=2)
    assert "spec.numNodes: must be at least 1 (got 0)" in text
    assert "spec.args.modell: unknown argument; did you mean model? (got 'x')" in text


def test_a_warning_does_not_make_a_manifest_invalid(here, capsys):
    manifest = yaml.safe_load((here / "job.yaml").read_text())
    manifest["spec"]["args"]["output_dir"] = "/tmp/elsewhere"
    (here / "job.yaml").write_text(yaml.safe_dump(manifest))
    text = said(capsys, "validate", "job.yaml")
    assert "spec.args.output_dir: is another name of save" in text
    assert "spec.args.save: is not below a mounted volume" in text
    strict = said(capsys, "validate", "job.yaml", "--strict", code=2)
    assert "spec.args.save: is not below a mounted volume" in strict
    manifest["spec"]["strict"] = True
    (here / "job.yaml").write_text(yaml.safe_dump(manifest))
    assert "2 problems" in said(capsys, "validate", "job.yaml", code=2)


def test_plan_shows_layout_batches_and_memory(here, capsys):
    text = said(capsys, "plan", "job.yaml", "--gpu-memory", "80Gi")
    assert "2 x 1 = 2 ranks = tp 1 x cp 1 x dp 2 x pp 1" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "1", "0", "0", "0", "1", "0", "0-3", "2", "of", "2"] in rows
    assert "micro-batches a step  8" in text
    assert "checkpoints           every 500 steps to /checkpoints/tune" in text
    assert "fits: 2." in text


def test_plan_counts_pairs_and_the_second_model_of_preference_training(here, capsys):
    manifest = yaml.safe_load((here / "job.yaml").read_text())
    manifest["spec"]["task"] = "rlhf"
    manifest["spec"]["args"] |= {"max_length": 64}
    (here / "job.yaml").write_text(yaml.safe_dump(manifest))
    text = said(capsys, "plan", "job.yaml")
    assert "micro-batch           1 pairs a rank" in text
    assert "tokens a step         at most 2048" in text, "16 pairs of two sequences of 64 tokens"
    assert "128 tokens per micro-batch and rank" in text
    assert "reference" in text
    manifest["spec"]["args"] |= {"train_type": "lora"}
    (here / "job.yaml").write_text(yaml.safe_dump(manifest))
    assert "reference" not in said(capsys, "plan", "job.yaml")


def test_plan_says_when_a_model_does_not_fit(here, capsys):
    assert "does not fit" in said(capsys, "plan", "job.yaml", "--gpu-memory", "1Gi")


@pytest.mark.parametrize(("size", "verdict"), [("64Gi", "fits"), ("4Mi", "raise checkpoint.memory.sizeLimit")])
def test_plan_counts_the_memory_of_checkpoints_in_memory(here, capsys, size, verdict):
    manifest = yaml.safe_load((here / "job.yaml").read_text())
    manifest["spec"]["checkpoint"] = {**manifest["spec"].get("checkpoint", {}), "memory": {"sizeLimit": size}}
    (here / "job.yaml").write_text(yaml.safe_dump(manifest))
    line = next(line for line in said(capsys, "plan", "job.yaml").split("checkpoints in memory:")[1:])
    assert verdict in " ".join(line.split())


def test_plan_without_a_readable_model_leaves_memory_out(here, capsys):
    manifest = yaml.safe_load((here / "job.yaml").read_text())
    manifest["spec"]["args"]["model"] = "owner/name"
    (here / "job.yaml").write_text(yaml.safe_dump(manifest))
    assert "memory: unknown" in said(capsys, "plan", "job.yaml")


def test_a_large_job_is_not_listed_rank_by_rank_unless_asked_for(here, capsys):
    manifest = yaml.safe_load((here / "job.yaml").read_text())
    manifest["spec"] |= {"numNodes": 16, "nprocPerNode": 8}
    manifest["spec"]["args"]["global_batch_size"] = 128
    (here / "job.yaml").write_text(yaml.safe_dump(manifest))
    assert "... 64 more; --all-ranks lists them" in said(capsys, "plan", "job.yaml")
    assert "more" not in said(capsys, "plan", "job.yaml", "--all-ranks")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("lr_decay_style", ["spec.args.lr_decay_style", "one of: ", "cosine", "status: "]),
        ("spec.args.lr", ["spec.args.lr", "default: "]),
        ("--micro-batch-size", ["spec.args.micro_batch_size"]),
        ("output_dir", ["spec.args.save ", "spec.args.output_dir "]),
        ("ckpt_format", ["status: works", "zarr: refused: Megatron-Core no longer reads", "torch: is read where load"]),
        ("norm_epsilon", ["default: config.json"]),
        ("calculate_per_token_loss", ["default: true (rlhf: false)"]),
        ("model", ["default: unset"]),
        ("spec.network.rdma", ["resource", "ipcLock", "PodSecurity"]),
        ("failurePolicy.rules", ["onExitCodes", "RestartIgnoreLimit", "at any time"]),
        ("spec.checkpoint.subPath", ["only while suspended"]),
        ("spec.task", ["never; create a new job"]),
        ("spec", ["numNodes", "checkpoint", "podTemplate"]),
        ("args", ["tensor_model_parallel_size", "spec.args"]),
    ],
)
def test_explain_says_what_a_field_or_an_argument_does(name, parts, capsys):
    text = said(capsys, "explain", "--", name) if name.startswith("--") else said(capsys, "explain", name)
    assert all(part in text for part in parts)


@pytest.mark.parametrize(
    ("name", "near"), [("num_node", "numNodes"), ("lr_decay_stile", "lr_decay_style"), ("network.rmda", "network.rdma")]
)
def test_explain_knows_what_was_meant(name, near, capsys):
    assert f"did you mean {near}?" in said(capsys, "explain", name, code=2)


def test_explain_says_why_there_is_no_such_argument(capsys):
    assert "moves activations to host memory" in said(capsys, "explain", "cpu_offloading", code=2)
    assert "mtj explain spec and mtj explain args list all" in said(capsys, "explain", "xyzzy", code=2)


def stored(here, **status):
    state = State(directory=here / ".mtj" / "tune")
    state.write_status({**STATUS, **status})
    state.log("tune-a0-master-0").parent.mkdir()
    for pod, text in (("tune-a0-worker-0", "I work\n"), ("tune-a0-master-0", "old\n"), ("tune-a1-master-0", "new\n")):
        state.log(pod).write_text(text)
    return state


def test_status_shows_what_a_run_has_written_down(here, capsys):
    stored(here)
    text = said(capsys, "status", "tune")
    for part in (
        "tune Running",
        "5 of 10 (50 %)",
        "loss=1.5",
        "2 (1 counted)",
        "/c/iter_5 (iteration 5)",
        "OOMKilled, exit code 137 at iteration 3 in tune-a0-master-0",
    ):
        assert part in text
    assert yaml.safe_load(said(capsys, "status", "tune", "--output", "yaml")) == STATUS


def test_status_lists_all_jobs_or_says_that_there_are_no_jobs(here, capsys):
    assert "no jobs in .mtj" in said(capsys, "status")
    stored(here)
    assert "tune" in said(capsys, "status")
    assert "no job other" in said(capsys, "status", "other", code=1)


def test_logs_print_the_newest_master_or_the_pod_that_is_asked_for(here, capsys):
    stored(here)
    assert said(capsys, "logs", "tune") == "new\n"
    assert said(capsys, "logs", "tune", "--pod", "worker") == "I work\n"
    assert "no log of job other" in said(capsys, "logs", "other", code=1)


def test_following_a_log_ends_with_the_job(here, capsys):
    stored(here, phase="Succeeded")
    assert said(capsys, "logs", "tune", "-f") == "new\n"


def test_following_a_log_goes_on_with_the_next_attempt(here, capsys, monkeypatch):
    """While the reader waits the job restarts once, then succeeds."""
    state = stored(here)

    def restart_then_end(seconds):
        if state.log("tune-a2-master-0").exists():
            state.write_status({**STATUS, "phase": "Succeeded"})
        else:
            state.log("tune-a1-master-0").write_text("new\nits end\n")
            state.log("tune-a2-master-0").write_text("next\n")

    monkeypatch.setattr(logs.time, "sleep", restart_then_end)
    assert said(capsys, "logs", "tune", "-f") == "new\nits end\nnext\n"


@pytest.mark.parametrize(
    ("phase", "words", "code"),
    [
        ("Succeeded", [], 0),
        ("Failed", [], 1),
        ("Succeeded", ["--for", "Complete"], 0),
        ("Running", ["--for", "Running"], 0),
        ("Succeeded", ["--for", "Running"], 1),
        ("Running", ["--timeout", "0"], 1),
    ],
)
def test_wait_ends_with_the_job_at_a_phase_or_in_time(here, capsys, phase, words, code):
    stored(here, phase=phase)
    assert phase in said(capsys, "wait", "tune", *words, code=code)
    assert "no job other" in said(capsys, "wait", "other", code=1)


def test_a_cluster_that_cannot_be_asked_is_said(here, capsys):
    assert "--kubeconfig names another" in said(capsys, "status", "--kubeconfig", "absent", code=1)
    (here / "config").write_text("{}")
    assert "under contexts" in said(capsys, "wait", "tune", "--kubeconfig", "config", code=1)


def test_a_wrong_manifest_reaches_no_trainer(here, capsys):
    (here / "job.yaml").write_text("kind: MegatronTrainJob\nspec: {}\n")
    assert "spec.task" in said(capsys, "data", "job.yaml", code=2)


def test_words_of_the_trainers_commands_are_passed_on_as_they_are(here, monkeypatch):
    (here / "megatron_trainer.py").write_text("import sys\nsys.exit(sys.argv[1:] != ['export', '--to_hf', 'true'])\n")
    monkeypatch.setenv("PYTHONPATH", str(here))
    assert trainer.run("export", ["--to_hf", "true"]) == 0


def test_data_of_a_manifest_reach_the_trainer_as_a_file(here, monkeypatch):
    """The stand-in trainer leaves what it was given: the task, and the arguments with paths of this machine."""
    script = "import json, sys, yaml\nargs = yaml.safe_load(open(sys.argv[5]))\n"
    script += "json.dump([sys.argv[1:5], args['dataset'], sys.argv[6:]], open('seen.json', 'w'))\n"
    (here / "megatron_trainer.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(here))
    assert main(["data", "job.yaml", "--rows", "3"]) == 0
    assert json.loads((here / "seen.json").read_text()) == [
        ["data", "--task", "sft", "--config"],
        ["./train.jsonl"],
        ["--rows", "3"],
    ]


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for command in ("run", "validate", "render", "plan", "explain", "status", "logs", "wait", "export", "data"):
        assert f"    {command} " in text


@pytest.mark.parametrize(
    "module", ["megatron_operator.cli", "megatron_operator.core.reconcile", "megatron_operator.api.crd"]
)
def test_neither_core_nor_command_line_needs_tensors_or_a_cluster_client(module):
    forbidden = ("torch", "numpy", "transformers", "megatron", "kubernetes", "kopf", "aiohttp")
    code = f"import sys, {module}\nprint(*(set({forbidden}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_paths(), check=True)
    assert done.stdout == "\n"


def _paths():
    root = Path(__file__).parent.parent.parent
    return {"PYTHONPATH": f"{root / 'operator'}:{root / 'trainer'}", "PATH": "/usr/bin:/bin"}


def test_plan_fit_prints_settings_that_then_fit(here, capsys):
    def planned(memory, *, code=0):
        return said(capsys, "plan", "job.yaml", "--fit", "--gpu-memory", memory, code=code)

    manifest = yaml.safe_load((here / "job.yaml").read_text())
    manifest["spec"]["args"] |= {"max_length": 256, "packing": True, "micro_batch_size": 64, "global_batch_size": 128}
    (here / "job.yaml").write_text(yaml.safe_dump(manifest))
    text = planned("2340Mi")
    assert "does not fit" in text
    lines = text.split("in spec.args:\n")[1]
    manifest["spec"]["args"] |= yaml.safe_load(lines.split("warning")[0].split("Moments")[0])
    (here / "job.yaml").write_text(yaml.safe_dump(manifest))
    text = planned("2340Mi")
    assert "\nfits: " in text
    assert "the manifest is the fastest that fits" in text
    assert "nothing fits: the least is 2." in planned("1Gi", code=1)


def test_plan_fit_prints_lists_with_their_brackets(here, capsys):
    """For rich, [layernorm, mlp] looks like markup."""
    manifest = yaml.safe_load((here / "job.yaml").read_text())
    recomputed = {"recompute_granularity": "selective", "recompute_modules": ["layernorm", "mlp"]}
    manifest["spec"]["args"] |= {"max_length": 256, "packing": True, **recomputed}
    (here / "job.yaml").write_text(yaml.safe_dump(manifest))
    text = said(capsys, "plan", "job.yaml", "--fit", "--gpu-memory", "80Gi")
    assert "\n  recompute_modules: [core_attn]\n" in text


def test_plan_fit_says_what_it_needs_to_know(here, capsys):
    assert "add --gpu-memory" in said(capsys, "plan", "job.yaml", "--fit", code=2)
    (here / "model" / "config.json").rename(here / "elsewhere.json")
    manifest = yaml.safe_load((here / "job.yaml").read_text())
    manifest["spec"]["args"]["model"] = "Qwen/Qwen2.5-7B"
    (here / "job.yaml").write_text(yaml.safe_dump(manifest))
    assert "config.json cannot be read here" in said(
        capsys, "plan", "job.yaml", "--fit", "--gpu-memory", "80Gi", code=2
    )
