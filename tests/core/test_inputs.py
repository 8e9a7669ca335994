"""Texts as users keep them."""

from __future__ import annotations

from pathlib import Path

import pytest

import unlock_lens as ul
from unlock_lens.core.inputs import fill, parse_layer_map, parse_layers, read_texts


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_text_files_hold_one_text_a_line(tmp_path: Path) -> None:
    assert read_texts(write(tmp_path, "a.txt", "one\r\n\n two \u2028 still two\nthree")) == [
        "one",
        " two \u2028 still two",
        "three",
    ]


def test_jsonl_files_hold_one_object_a_line(tmp_path: Path) -> None:
    file = write(
        tmp_path, "a.jsonl", '{"id": 1, "question": "one\\ntwo"}\n\n{"prompt": "three"}\n{"text": "four", "other": "x"}\n'
    )
    assert read_texts(file) == ["one\ntwo", "three", "four"]
    own = write(tmp_path, "b.jsonl", '{"problem": "p", "text": "t"}\n')
    assert read_texts(own, field="problem") == ["p"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", " \n", "no text"),
        ("latin.txt", b"caf\xe9", "UTF-8"),
        ("a.jsonl", '{"text": "x"}\n{oops\n', "a.jsonl, line 2.*JSON"),
        ("b.jsonl", '\n["x"]\n', "b.jsonl, line 2.*list"),
        ("c.jsonl", '{"body": "x"}\n', "line 1.*question.*prompt.*text.*body"),
        ("d.jsonl", '{"text": 5}\n', "line 1.*text"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ul.InvalidInput, match=message):
        read_texts(write(tmp_path, name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ul.InvalidInput, match="nothing.txt"):
        read_texts(tmp_path / "nothing.txt")


def test_templates_need_their_slot() -> None:
    assert fill("{question} Answer: {x}", ["{question}?", "b"]) == ["{question}? Answer: {x}", "b Answer: {x}"]
    with pytest.raises(ul.InvalidInput, match="{question}"):
        fill("{prompt}", ["a"])


def test_layers_are_written_as_people_write_them() -> None:
    assert parse_layers(None) is None
    assert parse_layers("4") == [4]
    assert parse_layers("4,6-8, 10") == [4, 6, 7, 8, 10]
    for wrong in ("9-4", "1,9-4", "", "a", "4-", "-4", "1,,2", "4-b"):
        with pytest.raises(ul.InvalidInput, match=f"layers '{wrong}'"):
            parse_layers(wrong)


def test_layer_maps_are_written_as_pairs() -> None:
    assert parse_layer_map("proportional") is None
    assert parse_layer_map("0:0 2:5") == {0: 0, 2: 5}
    for wrong in ("", "0", "0:a", "0:1 0:2"):
        with pytest.raises(ul.InvalidInput, match=f"layer map '{wrong}'"):
            parse_layer_map(wrong)


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    assert read_texts(write(tmp_path, "a.txt", b"\xef\xbb\xbfone\ntwo")) == ["one", "two"]
    assert read_texts(write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "one"}')) == ["one"]


def test_a_line_break_that_a_shell_did_not_make_is_an_error() -> None:
    with pytest.raises(ul.InvalidInput, match="backslash"):
        fill("{question}\\nAnswer:", ["1 + 1?"])
    assert fill("{question}\nAnswer:", ["1 + 1?"]) == ["1 + 1?\nAnswer:"]
