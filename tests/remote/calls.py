"""Three calls that are submitted in one process and collected in another: python -m tests.remote.calls CALL FOLDER OUT"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnsight
import torch

import unlock_lens as ul
from unlock_lens import zoo

Call = tuple[Callable[..., Any], list[Any], dict[str, Any]]
"""As `ul.submit` takes it, without the folder."""
KINDS = ("extract", "fit", "generate")


def call(kind: str, open_remote: Callable[[str], Any], remote: ul.Remote) -> Call:
    """One of `KINDS`, in several requests."""
    model, task = open_remote("small-base"), zoo.running_sum(n=16)
    if kind == "extract":
        pair = [ul.Variant(model, prompts, remote=remote) for prompts in (task.direct, task.think)]
        return ul.CapabilityDirection.extract, pair, {"progress": False}
    if kind == "fit":
        texts = zoo.text(n=16)
        pair = [ul.Variant(of, texts, remote=remote) for of in (model, open_remote("random-gpt2"))]
        return ul.SubspaceAligner(rank=8).fit, pair, {"progress": False}
    return ul.generate, [model, task.think], {"remote": remote, "max_new_tokens": 16, "progress": False}


def content(result: Any) -> list[Any]:
    """What is compared of a result: tensors, or texts."""
    if isinstance(result, ul.CapabilityDirection):
        return [result.vectors]
    if isinstance(result, ul.SubspaceAligner):
        return [result.map(layer) for layer in result.layer_map]
    return result


def main(kind: str, folder: str, out: Path) -> None:
    remote = ul.Remote(batches=1)
    function, args, kwargs = call(kind, lambda name: nnsight.TransformersModel(f"local/{name}", task="text-generation"), remote)
    result = content(function(*args, resume=folder, **kwargs))
    torch.save(result, out / f"{kind}.pt")
    (out / f"{kind}.json").write_text(json.dumps({"requests": remote.traffic.requests, "up": remote.traffic.up}))


if __name__ == "__main__":
    for one in sys.argv[1].split(","):
        main(one, f"{sys.argv[2]}/{one}", Path(sys.argv[3]))
