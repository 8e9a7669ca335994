"""Files of a few bytes that claim gigabytes, or work without end, are refused before anything is made of them."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens.interchange import from_gguf, from_lm_eval, from_steering_vectors


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def gguf(values: bytes = b"", keys: int = 1, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + values


def array(kind: int, count: int) -> bytes:
    return text(b"a") + struct.pack("<IIQ", 9, kind, count)


@pytest.mark.parametrize(
    ("content", "keyword"),
    [
        (b"", "cannot be used"),
        (b"GGUF", "damaged"),
        (gguf(keys=2**62), "keys"),
        (gguf(keys=0, tensors=2**62), "tensors"),
        (gguf(array(0, 2**31)), "values"),
        (gguf(array(8, 2**62)), "values"),
        (gguf(array(9, 1) + struct.pack("<IQ", 9, 1) * 1000), "arrays of arrays"),
        (gguf(struct.pack("<Q", 2**62)), "bytes"),
        (gguf(text(b"general.alignment") + struct.pack("<II", 4, 0)), "alignment"),
        (gguf(text(b"general.alignment") + struct.pack("<II", 4, 2**31)), "alignment"),
        (gguf(text(b"direction.1") + struct.pack("<IQIQ", 1, 2**40, 0, 0), keys=0, tensors=1), "numbers"),
        (gguf(text(b"direction.1") + struct.pack("<I", 2**31), keys=0, tensors=1), "dimensions"),
    ],
)
def test_what_a_gguf_header_claims_is_bounded_by_its_file(tmp_path: Path, content: bytes, keyword: str) -> None:
    file = tmp_path / "v.gguf"
    file.write_bytes(content)
    with pytest.raises(ul.ArtifactError, match=keyword):
        from_gguf(file)


def entry(vector: Any, **more: Any) -> dict[str, Any]:
    return {"layers.1": {"steering_vector": vector, "steering_coefficient": 1.0, "action": "add", **more}}


def nested(kind: type, depth: int = 40) -> Any:
    held = kind()
    for _ in range(depth):
        held = kind([held] * 9)
    return held


@pytest.mark.parametrize(
    "content",
    [
        entry(torch.ones(1).expand(2_000_000_000)),
        entry(torch.ones(4), action=nested(list)),
        entry(torch.ones(4), head_index=nested(list)),
        entry(torch.ones(4), steering_coefficient=nested(list)),
        entry(torch.ones(4), action=nested(tuple)),
    ],
    ids=["expanded", "action", "head", "coefficient", "tuples"],
)
def test_a_small_pt_file_stays_small(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(ul.ArtifactError) as caught:
        from_lm_eval(tmp_path / "v.pt")
    assert len(str(caught.value)) < 1000


def test_a_layer_type_that_never_ends_is_not_shown(tmp_path: Path) -> None:
    torch.save({"layer_activations": {1: torch.ones(4)}, "layer_type": nested(list)}, tmp_path / "v.pt")
    with pytest.raises(ul.ArtifactError, match="a list of length 9"):
        from_steering_vectors(tmp_path / "v.pt")


def test_compressed_parts_of_a_pt_file_are_refused(tmp_path: Path) -> None:
    held = io.BytesIO()
    torch.save(entry(torch.zeros(1_000_000)), held)
    with zipfile.ZipFile(held) as old, zipfile.ZipFile(tmp_path / "v.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    with pytest.raises(ul.ArtifactError, match="larger than the file"):
        from_lm_eval(tmp_path / "v.pt")


def test_the_older_format_of_pt_files_is_read(tmp_path: Path) -> None:
    torch.save(entry(torch.ones(4)), tmp_path / "v.pt", _use_new_zipfile_serialization=False)
    assert from_lm_eval(tmp_path / "v.pt").layers == (1,)
