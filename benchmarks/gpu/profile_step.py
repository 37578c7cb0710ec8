"""Where the time of a training step goes on one GPU: kernels, between which the card waits, and what the host does.

    python3 benchmarks/gpu/profile_step.py CASE.yaml DIR [--steps 2] [--top 25]

CASE.yaml: arguments, such as make_inputs.py writes. Profiles whole steps after the warm-up and prints milliseconds
a step. On several cards under torch.distributed.run: each rank writes to DIR/profile.RANK.
"""

import argparse
import collections
import re
import sys
from pathlib import Path

import yaml

from megatron_trainer.environment import become, for_rank, read
from megatron_trainjob.args.parse import Refused, parse

WARM_UP_STEPS = 7


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("case", type=Path)
    options.add_argument("folder", type=Path)
    options.add_argument("--steps", type=int, default=2)
    options.add_argument("--top", type=int, default=25)
    options.add_argument("--host", action="store_true", help="also what the host does; slows it down")
    given = options.parse_args()
    profile = profiled(given)
    if read().world_size > 1:
        sys.stdout = (given.folder / f"profile.{read().rank}").open("w")
    print_kernels(kernels_of(profile), given.steps, given.top)
    if given.host:
        print_host(profile, given.steps, given.top)


def profiled(given: argparse.Namespace):
    """The profile of a run, which starts as a rank does. A step waits for the card at its end."""
    env = read()
    become(for_rank(env, env.local_rank, env.world_size))  # torch reads these variables when it is imported
    import torch

    from megatron_trainer import backend as backends

    backends.select().install()
    from megatron_trainer.termination import Termination
    from megatron_trainer.train import loop, setup

    settings = {"save": str(given.folder), "train_iters": WARM_UP_STEPS + given.steps + 2, "save_interval": 1000}
    parsed = parse({**yaml.safe_load(given.case.read_text()), **settings}, task="sft")
    if isinstance(parsed, Refused):
        sys.exit("\n".join(map(str, parsed.violations)))
    backend = setup.start_process(read(), parsed.args)
    run, state = setup.build(parsed, "sft", read(), backend, Termination())
    activities = [torch.profiler.ProfilerActivity.CUDA]
    activities += [torch.profiler.ProfilerActivity.CPU] * given.host
    schedule = torch.profiler.schedule(wait=WARM_UP_STEPS - 1, warmup=1, active=given.steps, repeat=1)
    step = loop.train_step
    with torch.profiler.profile(activities=activities, schedule=schedule) as profile:

        def marked_step(*args, **named):
            result = step(*args, **named)
            profile.step()
            return result

        loop.train_step = marked_step
        loop.fit(run, state)
    return profile


def kernels_of(profile) -> list:
    """What ran on the card, by its start."""
    found = [event for event in profile.events() if str(event.device_type) == "DeviceType.CUDA"]
    if not found:
        sys.exit("no kernels were recorded")
    return sorted(found, key=lambda event: event.time_range.start)


def short(name: str) -> str:
    return re.sub(r"\s+", " ", name)[:150]


def print_kernels(kernels: list, steps: int, top: int) -> None:
    waits = collections.defaultdict(list)
    busy, last = 0.0, kernels[0]
    for event in kernels:
        start, end, until = event.time_range.start, event.time_range.end, last.time_range.end
        busy += max(0.0, end - (start if event is last else max(start, until)))
        if start > until:
            waits[short(last.name)[:60], short(event.name)[:60]].append(start - until)
        last = max(last, event, key=lambda one: one.time_range.end)
    whole = last.time_range.end - kernels[0].time_range.start
    print(f"step {whole / steps / 1e3:.1f} ms, busy {busy / steps / 1e3:.1f}, kernels {len(kernels) / steps:.0f}")
    total, count = collections.Counter(), collections.Counter()
    for event in kernels:
        total[short(event.name)] += event.time_range.end - event.time_range.start
        count[short(event.name)] += 1
    for name, microseconds in total.most_common(top):
        print(f"{microseconds / steps / 1e3:9.2f} ms {count[name] / steps:7.0f} x  {name}")
    print("the card waits")
    for (before, after), found in sorted(waits.items(), key=lambda one: -sum(one[1]))[:top]:
        longest = f"longest {max(found) / 1e3:.2f}"
        print(f"{sum(found) / steps / 1e3:9.2f} ms {len(found) / steps:7.0f} x  {longest}  {before} -> {after}")


def print_host(profile, steps: int, top: int) -> None:
    print("host, self time")
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    for event in events[:top]:
        print(f"{event.self_cpu_time_total / steps / 1e3:9.2f} ms {event.count / steps:7.0f} x  {event.key[:120]}")


main()
