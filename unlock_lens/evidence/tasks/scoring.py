"""Checks whether a completion is right, given the answer of its problem, by name."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, get_args

from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.tasks.problems import Check, Problem

CheckName = Literal["exact", "number", "choice", "math"]
MATH_SECONDS = 5
"""Time for one expression in math-verify: completions such as 9^{9^9} would never end."""
LONGEST_EXPRESSION = 80
INSTALL = "pip install 'unlock-lens[tasks]'"

_AMOUNT = r"(?:\\?\$[-\u2212]?)?(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![.\d])\.\d+)"
# A minus after a word, a digit or a closing bracket is a subtraction or a range, and digits within a word are no number.
_NUMBER = re.compile(r"(?:(?<![\w)\]}])[-\u2212]|(?<!\w))" + _AMOUNT)
_PLAIN_NUMBER = re.compile(r"[-\u2212]?" + _AMOUNT + r"\s*\\?%?")

_LETTER = re.compile(r"\W*([A-J])\W*")
_STATED_LETTER = re.compile(r"\b(?i:answer|option|choice)(?i:\s+is)?[\s:*({$]*(?:\\(?:boxed|text)\{\(?)*([A-J])\b(?!')")
_MARKED_LETTER = re.compile(r"\(([A-J])\)|\{\(?([A-J])\)?\}|\*([A-J])\*|\b([A-J])[.):](?!\w)|^\W*([A-J])\W*$", re.MULTILINE)

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_STATED = re.compile(r"\banswer(?: is:?|:)|####", re.IGNORECASE)
_BOX = re.compile(r"\\f?box(?:ed)?\s*(\{|[^\s{$]+)")
_LATEX_MARKS = re.compile(r"(?<!\\)\$|\\boxed|\\\[|\\\(")


def exact(completion: str, problem: Problem) -> bool:
    """The completion equals the answer, ignoring white space and case."""
    said, wanted = (" ".join(text.split()).casefold() for text in (completion, problem.answer))
    return said == wanted


def number(completion: str, problem: Problem) -> bool:
    """The last number of the completion equals the answer; commas between thousands, $ and % do not matter.

    Fractions and LaTeX are for the check "math".

    Raises:
        InvalidInput: the answer is not a number.

    Example:
        >>> number("2 boxes of 610 make $1,220.00.", Problem("How much?", "1220"))
        True
    """
    wanted = _PLAIN_NUMBER.fullmatch(problem.answer.strip())
    if wanted is None:
        raise InvalidInput(f'the answer {problem.answer!r} is not a number; use the check "math" or "exact"')
    found = list(_NUMBER.finditer(completion))
    return bool(found) and _value(found[-1]) == _value(wanted)


def choice(completion: str, problem: Problem) -> bool:
    """The option letter that the completion ends on is the answer: "answer is B" first, else the last (B), B., B) or lone B.

    Raises:
        InvalidInput: the answer is not a capital letter from A to J.

    Example:
        >>> choice("(A) is too small, so the answer is (B).", Problem("Which?", "B"))
        True
    """
    wanted = _LETTER.fullmatch(problem.answer)
    if wanted is None:
        raise InvalidInput(f'the answer {problem.answer!r} is not an option letter from A to J; use the check "exact"')
    found = _STATED_LETTER.findall(completion) or ["".join(groups) for groups in _MARKED_LETTER.findall(completion)]
    return bool(found) and found[-1] == wanted[1]


def math(completion: str, problem: Problem) -> bool:
    """The mathematical expression that the completion ends on equals the answer, by math-verify.

    Raises:
        InvalidInput: math-verify is not installed.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise InvalidInput(f'the check "math" needs math-verify: {INSTALL}') from error
    # The limit is kept by a signal, which only the main thread can receive; elsewhere math-verify demands that there be none.
    seconds: Any = MATH_SECONDS if threading.current_thread() is threading.main_thread() else None
    gold = problem.answer if _LATEX_MARKS.search(problem.answer) else f"${problem.answer}$"
    wanted = parse(gold, parsing_timeout=seconds)
    readings = [completion, f"${completion}$"] if _is_bare(completion) else [completion]
    found = (parse(reading, parsing_timeout=seconds) for reading in readings)
    return any(bool(verify(wanted, each, timeout_seconds=seconds)) for each in found)


def _is_bare(text: str) -> bool:
    """Whether a text may be an expression alone, as it stands between answer tags, which math-verify reads between dollars."""
    return len(text) <= LONGEST_EXPRESSION and "\n" not in text and not _LATEX_MARKS.search(text)


CHECKS: Mapping[CheckName, Check] = dict(zip(get_args(CheckName), (exact, number, choice, math), strict=True))


def final_answer(completion: str) -> str:
    """What a completion gives as its answer: in <answer> tags, boxed, in one line after "answer is" or ####, else all of it."""
    if tagged := _TAGGED.findall(completion):
        return tagged[-1].strip()
    if (boxed := last_boxed(completion)) is not None:
        return boxed
    *before, stated = _STATED.split(completion)
    line = stated.strip().split("\n")[0]
    return line.strip().removesuffix(".").strip("* ") if before and line else completion.strip()


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} (or \fbox{...}), braces matched; None if there is none, or it never closes."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    if boxes[-1][1] != "{":
        return boxes[-1][1]
    start, depth = boxes[-1].end(), 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end].strip()
    return None


def _value(found: re.Match[str]) -> Decimal:
    negative = "-" in found[0] or "\u2212" in found[0]
    size = Decimal(found["digits"].replace(",", ""))
    return -size if negative else size
