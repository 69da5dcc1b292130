"""A batch of files in a process of its own, with bounds, and what came of each."""

import json
import os
import random
import re
import resource
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from tests.fuzzing.targets import Target, attempt, descend

MEMORY = 2**31
"""The bytes that a file may add to its reader's address space."""
SECONDS = 10
BATCH = 250

Outcome = dict


@dataclass
class Tally:
    """What came of the files of one kind."""

    inputs: int = 0
    accepted: int = 0
    refused: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    memory: int = 0
    corpus: int = 0
    faults: list[str] = field(default_factory=list)


def kind_of(message: str) -> str:
    """Returns a message without what differs from file to file."""
    message = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|FILE:?", "", message)
    return re.sub(r"[^a-zA-Z ]+", "#", message).strip("# ")[:90]


def judge(target: Target, files: list[tuple[str, bytes]], folder: Path) -> list[Outcome]:
    """Returns an outcome for each file; a process that dies is begun anew after the culprit."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(files):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _live(target, files[len(outcomes) :], folder, writing)
        os.close(writing)
        with os.fdopen(reading) as lines:
            outcomes += [json.loads(line) for line in lines if line.endswith("\n")]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
            what = f"a hang of {SECONDS} s" if status == -signal.SIGALRM else f"died of {name}"
            outcomes.append({"came": [["fault", what]], "seconds": 0.0, "memory": 0})
    return outcomes


def _live(target: Target, files: list[tuple[str, bytes]], folder: Path, writing: int) -> None:
    """Reads files within bounds until all are read or this process ends."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with os.fdopen(writing, "w") as lines:
        for ending, content in files:
            path = folder / f"specimen{ending}"
            path.write_bytes(content)
            signal.alarm(SECONDS)
            began = perf_counter()
            came = attempt(target, path)
            seconds = perf_counter() - began
            signal.alarm(0)
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            row = {"came": came, "seconds": seconds, "memory": 1024 * (most - first)}
            print(json.dumps(row), file=lines, flush=True)
    os._exit(0)


def torment(name: str, target: Target, count: int, seed: int, folder: Path) -> Tally:
    """Returns what came of `count` files; one that meets a new end becomes a parent of others."""
    chance = random.Random(f"{seed} {name}")
    corpus, seen, tally = target.corpus(), set[str](), Tally()
    whole = len(corpus)
    for ending, outcome in zip(corpus, judge(target, corpus, folder), strict=True):
        if all(kind == "refused" for kind, _ in outcome["came"]):
            raise SystemExit(f"{name}: a whole specimen is refused: {ending[0]} {outcome}")
    while tally.inputs < count:
        wanted = min(BATCH, count - tally.inputs)
        files = [descend(target, whole, corpus, chance) for _ in range(wanted)]
        for file, outcome in zip(files, judge(target, files, folder), strict=True):
            kinds = [kind for kind, _ in outcome["came"]]
            end = "; ".join(f"{kind} {kind_of(message)}" for kind, message in outcome["came"])
            tally.inputs += 1
            tally.accepted += "accepted" in kinds
            tally.seconds = max(tally.seconds, outcome["seconds"])
            tally.memory = max(tally.memory, outcome["memory"])
            tally.refused.update(kind_of(m) for kind, m in outcome["came"] if kind == "refused")
            faults = [message for kind, message in outcome["came"] if kind == "fault"]
            if faults:
                kept = folder / f"fault-{name}-{tally.inputs}{file[0]}"
                kept.write_bytes(file[1])
                tally.faults.append(f"{kept.name}: {faults[0]:.300}")
            elif end not in seen:
                seen.add(end)
                corpus.append(file)
    tally.corpus = len(corpus)
    return tally
