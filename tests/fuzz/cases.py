"""Seeded damage to every kind of file and answer that is read: each is refused with a library error, or read and used."""

from __future__ import annotations

import io
import json
import logging
import random
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import torch

import unlock_lens as ul
from tests import sweeps
from unlock_lens import interchange
from unlock_lens.core.inputs import read_texts
from unlock_lens.errors import RemoteError, UnlockLensError
from unlock_lens.evidence import recipes
from unlock_lens.evidence.results import Results
from unlock_lens.evidence.sweep.config import SweepConfig
from unlock_lens.hosts.answers import fault_of_reduction
from unlock_lens.hosts.transport import Job
from unlock_lens.method.reduce import Mean

SLOW, ALLOWED = 2.0, 50 * 2**20
"""Seconds of one case, and bytes that reading may take beside four times the file."""
NASTY = [
    b"null", b"-1", b"1e400", b"NaN", b"Infinity", b"[]", b"{}", b"true", b'""', b"9" * 400, b"\x00", b"\xff\xfe", b"\x1b[2J",
    b"[" * 3000, b"{\"a\":" * 2000,
    b"&a [*a, *a]", b"\\ud800", b"\r\n", b"!!python/name:os.system ''", b"\xff" * 8, b"\x7f" * 8,
]  # fmt: skip


@dataclass
class Outcome:
    """What became of the cases of one kind."""

    counts: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])
    slowest: float = 0.0
    largest: float = 0.0


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


def a_direction() -> ul.CapabilityDirection:
    return ul.CapabilityDirection(torch.arange(1.0, 17).reshape(2, 8), (1, 2))


def _written(write: Callable[[Path], Any], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, name))
        return Path(folder, name).read_bytes()


def _use(direction: ul.CapabilityDirection) -> str:
    """It works, and this is all that it says."""
    direction.unit().cosine(direction)
    direction.at_layers(direction.layers[:1])
    told = {name: value for name, value in vars(direction).items() if name != "vectors"}
    return f"{direction} {told} {direction.vectors.tolist()}"


def _aligner(path: Path) -> str:
    aligner = ul.SubspaceAligner.load(path)
    return f"{aligner} {aligner.layer_map} {_use(aligner.transport(a_direction()))}"


def _fitted(path: Path) -> None:
    acts = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0))
    ul.SubspaceAligner(rank=4).fit_activations(acts, acts + 1).save(path)


@cache
def _sweep_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        sweeps.save(sweeps.sweep(n=4, without=("nulls",)), Path(folder, "s"))
        return {file.name: file.read_bytes() for file in Path(folder, "s").iterdir()}


def _results(path: Path) -> None:
    """The damaged file among good ones; what the report makes of every line is made."""
    name = path.name
    for other, content in _sweep_files().items():
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


def _direction(path: Path) -> str:
    return _use(ul.CapabilityDirection.load(path))


def _to_gguf(path: Path) -> None:
    interchange.to_gguf(a_direction(), path, architecture="llama")


def _to_lm_eval(path: Path) -> None:
    interchange.to_lm_eval(a_direction(), path, blocks="layers")


def _to_steering(path: Path) -> None:
    interchange.to_steering_vectors(a_direction(), path)


def _from_steering(path: Path) -> str:
    return _use(interchange.from_steering_vectors(path))


HASHED = ("direction", "aligner", "gguf")
"""Kinds whose files hold a hash, so that damage which is read as something else can be told from an honest file."""
TEXTS = b'{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?", "answer": "4", "n": [1, {"a": 2.5}]}\n'
Kind = tuple[str, Callable[[], bytes], Callable[[Path], Any]]
KINDS: dict[str, Kind] = {
    "direction": ("d.safetensors", lambda: _written(a_direction().save, "d.safetensors"), _direction),
    "aligner": ("a.safetensors", lambda: _written(_fitted, "a.safetensors"), _aligner),
    "gguf": ("d.gguf", lambda: _written(_to_gguf, "d.gguf"), lambda path: _use(interchange.from_gguf(path))),
    "lm_eval": ("d.pt", lambda: _written(_to_lm_eval, "d.pt"), lambda path: _use(interchange.from_lm_eval(path))),
    "steering_vectors": ("d.pt", lambda: _written(_to_steering, "d.pt"), _from_steering),
    "jsonl": ("t.jsonl", lambda: TEXTS, read_texts),
    "yaml": ("c.yaml", lambda: recipes.path("demo").read_bytes(), lambda p: SweepConfig.load(p).to_yaml()),
    "results.jsonl": ("results.jsonl", lambda: _sweep_files()["results.jsonl"][:40_000], _results),
    "config.yaml": ("config.yaml", lambda: _sweep_files()["config.yaml"], _results),
    "geometry.json": ("geometry.json", lambda: _sweep_files()["geometry.json"], _results),
    "provenance.json": ("provenance.json", lambda: _sweep_files()["provenance.json"], _results),
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
        same = read(path) if kind in HASHED else None
        tracemalloc.start()
        try:
            for i in range(count):
                _one(found, i, mangled(content, random.Random(f"{seed} {kind} {i}")), path, read, same)
        finally:
            tracemalloc.stop()
            logging.disable(logging.NOTSET)
    return found


def _one(found: Outcome, i: int, content: bytes, path: Path, read: Callable[[Path], Any], same: Any) -> None:
    path.write_bytes(content)
    tracemalloc.reset_peak()
    before, started = tracemalloc.get_traced_memory()[0], time.perf_counter()
    try:
        other = read(path)
        found.counts["read" if same is None or other == same else "another"] += 1
    except UnlockLensError as error:
        found.counts["refused"] += 1
        if any(not c.isprintable() and c not in "\n\t" for c in str(error)):
            found.faults.append(f"case {i}: control characters in {str(error)!r:.200}")
    except BaseException as error:
        found.faults.append(f"case {i}: {type(error).__name__}: {str(error)!r:.200}")
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1] - before
    found.slowest, found.largest = max(found.slowest, seconds), max(found.largest, peak)
    if i and (seconds > SLOW or peak > 4 * len(content) + ALLOWED):  # the first loads what is imported late
        found.faults.append(f"case {i}: {seconds:.1f} s, {peak / 2**20:.0f} MB")
