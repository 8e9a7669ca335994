"""Texts as users keep them."""

from __future__ import annotations

from pathlib import Path

import pytest

import unlock_lens as ul
from unlock_lens.cli.app import parse_layers
from unlock_lens.core.inputs import fill, read_texts


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
        ("empty.txt", " \n", "holds no text; give one text a line"),
        ("latin.txt", b"caf\xe9", "is not UTF-8 text"),
        ("a.jsonl", '{"text": "x"}\n{oops\n', "a.jsonl, line 2 is not JSON"),
        ("b.jsonl", '\n["x"]\n', "b.jsonl, line 2 holds a list; expected an object"),
        (
            "c.jsonl",
            '{"body": "x"}\n',
            r"line 1 has no text under question or prompt or text; it has body \(choose with --field\)",
        ),
        ("d.jsonl", '{"text": 5}\n', "line 1 has no text under"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ul.InvalidInput, match=message):
        read_texts(write(tmp_path, name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ul.InvalidInput, match="there is no file .*nothing.txt"):
        read_texts(tmp_path / "nothing.txt")


def test_templates_need_their_slot() -> None:
    assert fill("{question} Answer: {x}", ["{question}?", "b"]) == ["{question}? Answer: {x}", "b Answer: {x}"]
    with pytest.raises(ul.InvalidInput, match="has no {question}; say where the question goes"):
        fill("{prompt}", ["a"])


def test_layers_are_written_as_people_write_them() -> None:
    assert parse_layers(None) is None
    assert parse_layers("4") == [4]
    assert parse_layers("4,6-8, 10") == [4, 6, 7, 8, 10]
    with pytest.raises(ul.InvalidInput, match="write the smaller number first"):
        parse_layers("9-4")
    for wrong in ("", "a", "4-", "-4", "1,,2", "4-b"):
        with pytest.raises(ul.InvalidInput, match="write them as 4,5,6 or 4-12"):
            parse_layers(wrong)
