"""Read batches of files in a process with limited time and memory, and classify the outcomes."""

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

from tests.fuzzing.targets import Target, mutate, try_readers

MEMORY = 2**31
"""Bytes by which a file may enlarge its reader's address space."""
SECONDS = 10
BATCH = 250

Outcome = dict


@dataclass
class Tally:
    """The outcomes of the files of one kind."""

    inputs: int = 0
    accepted: int = 0
    rejected: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    memory: int = 0
    corpus: int = 0
    faults: list[str] = field(default_factory=list)


def normalize_message(message: str) -> str:
    """Return a message without the parts that differ from file to file."""
    message = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|FILE:?", "", message)
    return re.sub(r"[^a-zA-Z ]+", "#", message).strip("# ")[:90]


def read_files(target: Target, files: list[tuple[str, bytes]], folder: Path) -> list[Outcome]:
    """Return an outcome for each file; a process that dies is replaced after the file at fault."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(files):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _read_within_limits(target, files[len(outcomes) :], folder, writing)
        os.close(writing)
        with os.fdopen(reading) as lines:
            outcomes += [json.loads(line) for line in lines if line.endswith("\n")]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
            fault = f"a hang of {SECONDS} s" if status == -signal.SIGALRM else f"died of {name}"
            outcomes.append({"results": [["fault", fault]], "seconds": 0.0, "memory": 0})
    return outcomes


def _read_within_limits(
    target: Target, files: list[tuple[str, bytes]], folder: Path, writing: int
) -> None:
    """Read files until all are read or this process dies, and write the outcomes to a pipe."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    initial = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with os.fdopen(writing, "w") as lines:
        for ending, content in files:
            path = folder / f"input{ending}"
            path.write_bytes(content)
            signal.alarm(SECONDS)
            started = perf_counter()
            results = try_readers(target, path)
            seconds = perf_counter() - started
            signal.alarm(0)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            row = {"results": results, "seconds": seconds, "memory": 1024 * (peak - initial)}
            print(json.dumps(row), file=lines, flush=True)
    os._exit(0)


def fuzz(name: str, target: Target, count: int, seed: int, folder: Path) -> Tally:
    """Read `count` mutated files; one with a new outcome joins the corpus that is mutated."""
    rng = random.Random(f"{seed} {name}")
    corpus, seen, tally = target.corpus(), set[str](), Tally()
    originals = len(corpus)
    for ending, outcome in zip(corpus, read_files(target, corpus, folder), strict=True):
        if all(kind == "rejected" for kind, _ in outcome["results"]):
            raise SystemExit(f"{name}: an original file is rejected: {ending[0]} {outcome}")
    while tally.inputs < count:
        batch = min(BATCH, count - tally.inputs)
        files = [mutate(target, originals, corpus, rng) for _ in range(batch)]
        for file, outcome in zip(files, read_files(target, files, folder), strict=True):
            kinds = [kind for kind, _ in outcome["results"]]
            signature = "; ".join(
                f"{kind} {normalize_message(message)}" for kind, message in outcome["results"]
            )
            tally.inputs += 1
            tally.accepted += "accepted" in kinds
            tally.seconds = max(tally.seconds, outcome["seconds"])
            tally.memory = max(tally.memory, outcome["memory"])
            tally.rejected.update(
                normalize_message(m) for kind, m in outcome["results"] if kind == "rejected"
            )
            faults = [message for kind, message in outcome["results"] if kind == "fault"]
            if faults:
                saved = folder / f"fault-{name}-{tally.inputs}{file[0]}"
                saved.write_bytes(file[1])
                tally.faults.append(f"{saved.name}: {faults[0]:.300}")
            elif signature not in seen:
                seen.add(signature)
                corpus.append(file)
    tally.corpus = len(corpus)
    return tally
