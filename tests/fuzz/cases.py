"""Seeded damage to every kind of file and answer that is read: each is refused with a library error, or read and used."""

from __future__ import annotations

import io
import json
import logging
import random
import resource
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

import unlock_lens as ul
from tests import sweeps
from unlock_lens import interchange
from unlock_lens.core import files
from unlock_lens.core.inputs import read_pairs, read_texts
from unlock_lens.errors import InvalidInput, RemoteError, UnlockLensError
from unlock_lens.evidence import recipes
from unlock_lens.evidence.diagnosis import Diagnosis, LayerDiagnosis
from unlock_lens.evidence.probe import Probe
from unlock_lens.evidence.results import Results, read_description
from unlock_lens.evidence.sweep.config import SweepConfig
from unlock_lens.evidence.tasks.specs import JsonlSpec
from unlock_lens.hosts.answers import fault_of_reduction
from unlock_lens.hosts.transport import Job
from unlock_lens.method.reduce import Mean

SLOW, ALLOWED = 2.0, 50 * 2**20
"""Seconds of one case on a processor, and bytes that reading may take beside four times the file."""
NASTY = [
    b"null", b"-1", b"1e400", b"NaN", b"Infinity", b"[]", b"{}", b"true", b'""', b"9" * 400, b"\x00", b"\xff\xfe", b"\x1b[2J",
    b"[" * 3000, b"{\"a\":" * 2000,
    b"&a [*a, *a]", b"\\ud800", b"\r\n", b"!!python/name:os.system ''", b"\xff" * 8, b"\x7f" * 8,
]  # fmt: skip

VALUES: list[Any] = [
    None, True, False, 0, -1, 2, 7, 0.5, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "x", "8", "a" * 5000, "\x1b[2J",
    "\ud800", "raw", "all", [], {}, [[]], [1, "a"], [[0, 0], [0, 1]], {"a": 1}, [0.0] * 50,
]  # fmt: skip


@dataclass
class Outcome:
    """What became of the cases of one kind."""

    counts: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])
    slowest: float = 0.0
    largest: float = 0.0
    grown: float = 0.0
    """Bytes by which the process grew, torch's own memory included."""


def mangled(content: bytes, rng: random.Random) -> bytes:
    """One to three changes: bits, bytes, slices that are cut, doubled or moved, and values that no writer gives."""
    held = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, end = sorted((rng.randrange(len(held) + 1), rng.randrange(len(held) + 1)))
        end = min(end, at + 200)
        how = rng.randrange(6)
        if how == 0 and held:
            held[min(at, len(held) - 1)] ^= 1 << rng.randrange(8)
        elif how == 1 and held:
            held[min(at, len(held) - 1)] = rng.randrange(256)
        elif how == 2:
            del held[at : end if rng.random() < 0.7 else len(held)]
        elif how == 3:
            held[at:at] = held[at:end]
        elif how == 4:
            held[at:end] = rng.choice(NASTY)
        else:
            held[at:at] = rng.choice(NASTY)
    return bytes(held)


def edited(content: bytes, rng: random.Random) -> bytes:
    """One to three values of a line of JSON replaced, doubled or left out: it stays JSON, and says something else."""
    lines = content.split(b"\n")
    which = rng.choice([i for i, line in enumerate(lines) if line.strip()])
    told = [json.loads(lines[which])]
    for _ in range(rng.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        level: list[Any] = [told]
        while level:
            held = level.pop()
            keys = list(held) if isinstance(held, dict) else range(len(held))
            places += [(held, key) for key in keys]
            level += [held[key] for key in keys if isinstance(held[key], dict | list)]
        if not places:
            break
        held, key = rng.choice(places)
        if held is told or (how := rng.randrange(6)) > 1:
            held[key] = deepcopy(rng.choice(VALUES))
        elif how == 0:
            del held[key]
        elif isinstance(held, dict):
            held[f"{key}x"] = deepcopy(held[key])
        else:
            held.insert(key, deepcopy(held[key]))
    lines[which] = json.dumps(told[0]).encode()
    return b"\n".join(lines)


def a_direction() -> ul.CapabilityDirection:
    return ul.CapabilityDirection(torch.arange(1.0, 17).reshape(2, 8), (1, 2))


def _written(write: Callable[[Path], Any], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, name))
        return Path(folder, name).read_bytes()


def use(direction: ul.CapabilityDirection) -> str:
    """It works, and this is all that it says."""
    direction.unit().cosine(direction)
    direction.at_layers(direction.layers[:1])
    told = {name: value for name, value in vars(direction).items() if name != "vectors"}
    return f"{direction} {told} {direction.vectors.tolist()}"


def use_aligner(path: Path) -> str:
    aligner = ul.SubspaceAligner.load(path)
    return f"{aligner} {aligner.layer_map} {use(aligner.transport(a_direction()))}"


def _a_key(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its model is unknown
        ul.SteeringHook(a_direction(), alpha=0.3).save(path)


def _fitted(path: Path) -> None:
    acts = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0))
    ul.SubspaceAligner(rank=4).fit_activations(acts, acts + 1).save(path)


def _key(path: Path) -> str:
    steer = ul.SteeringHook.load(path)
    return f"{steer} {steer.description} {use(steer.direction)}"


def _unpacked(content: bytes) -> bytes:
    """An artifact as JSON: what it says, and what its tensors are."""
    told = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["unlock_lens"])
    tensors = {name: [list(tensor.shape), str(tensor.dtype)[6:]] for name, tensor in from_bytes(content).items()}
    return json.dumps({"told": told, "tensors": tensors}).encode()


def _packed(path: Path) -> Path:
    """An artifact as somebody who knows the format would forge it: whatever it says, its hash is right."""
    try:
        whole = json.loads(path.read_bytes())
        told, shapes = whole["told"], whole["tensors"]
        if max(prod(shape) for shape, _ in shapes.values()) > 10**6:
            raise ValueError(shapes)
        tensors = {name: torch.ones(shape, dtype=getattr(torch, dtype)) for name, (shape, dtype) in shapes.items()}
        told["content_hash"] = files.content_hash(tensors, told)
        forged = path.with_name("forged.safetensors")
        forged.write_bytes(to_bytes(tensors, metadata={"unlock_lens": json.dumps(told)}))
    except Exception as error:  # nothing that could be written as an artifact
        raise InvalidInput("no artifact") from error
    return forged


def use_card(path: Path) -> None:
    """What is saved beside a damaged card, and once more beside what came of that."""
    for _ in range(2):
        a_direction().save_pretrained(path.parent)


def _problems(path: Path) -> None:
    task = JsonlSpec(path=path, check="number").pools(1, 0)[0]
    task.correct(["The answer is 2."] * len(task))
    str(task.hash)


def _a_diagnosis() -> bytes:
    probe = Probe(0.5, 0.3, ((0.1, 0.25), (0.3, 0.5)), 16, 8, minus=0.1, nulls=(0.0, 0.25))
    layers = tuple(LayerDiagnosis(b, b, 0.9, agreement=0.7, error=0.2, r2=0.8) for b in range(3))
    return json.dumps(Diagnosis(0.4, "It may work", ("because",), layers, 0.6, 16, 0.7, probe).to_json()).encode()


def _diagnosis(path: Path) -> None:
    try:
        given = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInput("not JSON") from error  # json's own, before anything of this library is asked
    str(Diagnosis.from_json(given))


@cache
def sweep_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        made = sweeps.save(sweeps.sweep(n=4, without=("nulls",)), Path(folder, "s"))
        price = {"task": "t", "metric": "acc", "n": 4, "unsteered": 0.5, "steered": 0.25, "difference": -0.25}
        prices = [{**price, "interval": [-0.5, 0.1], "gained": 0, "lost": 1}]
        (made / "benchmarks.json").write_text(json.dumps(prices))
        lines = (made / "results.jsonl").read_text().splitlines(keepends=True)
        (made / "results.jsonl").write_text("".join(lines[::5]))  # enough for every figure, and soon read
        return {file.name: file.read_bytes() for file in made.iterdir()}


INPUTS = {
    "models": {"source": "large (4 layers)", "target": "small (3 layers)"},
    "problems": {"extract": "a1", "train": "b2", "test": "c3"},
    "calibration": "d4",
    "unrelated": None,
}


def _results(path: Path) -> None:
    """The damaged file among good ones; what the report makes of every line is made."""
    name = path.name
    for other, content in sweep_files().items():
        if other != name:
            (path.parent / other).write_bytes(content)
    found = Results.load(path.parent)
    found.frame()
    for each in (found.arms, found.nulls, found.chosen, found.tested):
        each()


class _Model:
    repo_id = "org/model"

    def to_model_key(self) -> str:
        return "a.Class:org/model"

    def _remoteable_get_env(self) -> dict[str, Any]:
        return {}


def _answers(*contents: bytes) -> Any:
    """What a server's answers, one after the other, are read as."""
    job, left = Job(_Model(), ul.Remote("http://127.0.0.1:9"), "one"), list(contents)

    def answer(method: str, url: Any, *how: Any, **more: Any) -> httpx.Response:
        return httpx.Response(200, content=left.pop(0) if left else b"", request=httpx.Request(method, "http://127.0.0.1:9"))

    job._answer = answer  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    return job.result(wait=False)


COMPLETED = json.dumps({"id": "one", "status": "COMPLETED", "data": "http://127.0.0.1:9/blob"}).encode()


def _status(path: Path) -> None:
    _answers(path.read_bytes(), _mean())


def _blob(path: Path) -> None:
    found = _answers(COMPLETED, path.read_bytes())
    if fault := fault_of_reduction(found, Mean(3), [], 2, 8):
        raise RemoteError(fault)


def _mean() -> bytes:
    content = io.BytesIO()
    torch.save({"found": {"mean": torch.arange(1, 17, dtype=torch.float64).reshape(2, 8)}}, content)
    return content.getvalue()


def use_direction(path: Path) -> str:
    return use(ul.CapabilityDirection.load(path))


def _to_gguf(path: Path) -> None:
    interchange.to_gguf(a_direction(), path, architecture="llama")


def _to_lm_eval(path: Path) -> None:
    interchange.to_lm_eval(a_direction(), path, blocks="layers")


def _to_steering(path: Path) -> None:
    interchange.to_steering_vectors(a_direction(), path)


def _from_steering(path: Path) -> str:
    return use(interchange.from_steering_vectors(path))


FOLDERS = (
    "results.jsonl",
    "config.yaml",
    "geometry.json",
    "provenance.json",
    "problems.json",
    "diagnosis.json",
    "benchmarks.json",
)
"""Kinds of which a whole folder is read."""
HASHED = ("direction", "aligner", "key", "gguf")
"""Kinds whose files hold a hash, so that damage which is read as something else can be told from an honest file."""
TEXTS = b'{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?", "answer": "4", "n": [1, {"a": 2.5}]}\n'
PAIRS = b'{"locked": "1 + 1?", "unlocked": "Think. 1 + 1?"}\n{"locked": "2?", "unlocked": "Think. 2?", "n": [1]}\n'
CARD = b"---\nlicense: mit\ntags: [a, b]\nbase_model: org/model\nlibrary_name: other\n---\n\n# Mine\n\nText.\n"
DESCRIBING = (
    "results.jsonl",
    "geometry.json",
    "provenance.json",
    "problems.json",
    "diagnosis.json",
    "benchmarks.json",
    "inputs.json",
)
"""Damaged descriptions count as missing, and damaged lines of results are set aside."""
Kind = tuple[str, Callable[[], bytes], Callable[[Path], Any]]
KINDS: dict[str, Kind] = {
    "direction": ("d.safetensors", lambda: _written(a_direction().save, "d.safetensors"), use_direction),
    "aligner": ("a.safetensors", lambda: _written(_fitted, "a.safetensors"), use_aligner),
    "key": ("k.safetensors", lambda: _written(_a_key, "k.safetensors"), _key),
    "direction, forged": ("d.json", lambda: _unpacked(_written(a_direction().save, "d")), lambda p: use_direction(_packed(p))),
    "aligner, forged": ("a.json", lambda: _unpacked(_written(_fitted, "a")), lambda p: use_aligner(_packed(p))),
    "key, forged": ("k.json", lambda: _unpacked(_written(_a_key, "k")), lambda p: _key(_packed(p))),
    "gguf": ("d.gguf", lambda: _written(_to_gguf, "d.gguf"), lambda path: use(interchange.from_gguf(path))),
    "lm_eval": ("d.pt", lambda: _written(_to_lm_eval, "d.pt"), lambda path: use(interchange.from_lm_eval(path))),
    "steering_vectors": ("d.pt", lambda: _written(_to_steering, "d.pt"), _from_steering),
    "jsonl": ("t.jsonl", lambda: TEXTS, read_texts),
    "pairs": ("p.jsonl", lambda: PAIRS, read_pairs),
    "problems": ("t.jsonl", lambda: TEXTS, _problems),
    "card": ("README.md", lambda: CARD, use_card),
    "yaml": ("c.yaml", lambda: recipes.path("demo").read_bytes(), lambda p: SweepConfig.load(p).to_yaml()),
    "results.jsonl": ("results.jsonl", lambda: sweep_files()["results.jsonl"], _results),
    "config.yaml": ("config.yaml", lambda: sweep_files()["config.yaml"], _results),
    "geometry.json": ("geometry.json", lambda: sweep_files()["geometry.json"], _results),
    "provenance.json": ("provenance.json", lambda: sweep_files()["provenance.json"], _results),
    "problems.json": ("problems.json", lambda: sweep_files()["problems.json"], _results),
    "diagnosis.json": ("diagnosis.json", lambda: sweep_files()["diagnosis.json"], _results),
    "benchmarks.json": ("benchmarks.json", lambda: sweep_files()["benchmarks.json"], _results),
    "inputs.json": ("inputs.json", lambda: json.dumps(INPUTS).encode(), read_description),
    "diagnosis": ("diagnosis.json", _a_diagnosis, _diagnosis),
    "server_status": ("s.json", lambda: COMPLETED, _status),
    "server_result": ("r.pt", _mean, _blob),
}  # fmt: skip


def run(kind: str, count: int, seed: int = 0) -> Outcome:
    """So many cases of one kind, and what became of them; a fault has its number, by which it comes again."""
    name, make, read = KINDS[kind]
    content, found = make(), Outcome()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        path = Path(folder, name)
        path.write_bytes(content)
        honest = read(path)
        same, before = honest if kind in HASHED else None, _most_memory()
        tracemalloc.start()
        try:
            for i in range(count):
                rng = random.Random(f"{seed} {kind} {i}")
                damage = edited if kind.endswith("forged") or (content.startswith(b"{") and i % 2) else mangled
                _one(found, i, damage(content, rng), path, read, same)
        finally:
            tracemalloc.stop()
            found.grown = _most_memory() - before
            logging.disable(logging.NOTSET)
    return found


def _most_memory() -> float:
    """The most that this process ever held, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _one(found: Outcome, i: int, content: bytes, path: Path, read: Callable[[Path], Any], same: Any) -> None:
    path.write_bytes(content)
    tracemalloc.reset_peak()
    before, started = tracemalloc.get_traced_memory()[0], time.process_time()
    try:
        other = read(path)
        found.counts["read" if same is None or other == same else "another"] += 1
    except UnlockLensError as error:
        found.counts["refused"] += 1
        if any(not c.isprintable() and c not in "\n\t" for c in str(error)):
            found.faults.append(f"case {i}: control characters in {str(error)!r:.200}")
    except BaseException as error:
        found.faults.append(f"case {i}: {type(error).__name__}: {str(error)!r:.200}")
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1] - before
    found.slowest, found.largest = max(found.slowest, seconds), max(found.largest, peak)
    if seconds > SLOW or peak > 4 * len(content) + ALLOWED:
        found.faults.append(f"case {i}: {seconds:.1f} s, {peak / 2**20:.0f} MB")
