"""Checks on completions as models write them."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

import unlock_lens as ul
from unlock_lens.evidence.tasks.problems import Problem
from unlock_lens.evidence.tasks.scoring import CHECKS, CheckName, final_answer, last_boxed


def right(name: CheckName, completion: str, answer: str) -> bool:
    return CHECKS[name](completion, Problem("a question", answer))


@pytest.mark.parametrize("name", ["exact", "number", "choice", "math"])
@pytest.mark.parametrize("completion", ["", " \n", "I do not know", "?!", "Answer:"])
def test_nothing_is_not_right(name: CheckName, completion: str) -> None:
    assert not right(name, completion, "B" if name == "choice" else "7")


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (" New\n york ", "New York", True),
        ("STRASSE", "straße", True),
        ("New York.", "New York", False),
        ("yes no", "yes", False),
    ],
)
def test_exact_leaves_white_space_and_case_aside(completion: str, answer: str, expected: bool) -> None:
    assert right("exact", completion, answer) == expected


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("72", "72"),
        (" Natalia sold 48/2 = 24 clips in May. Altogether 48 + 24 = 72 clips.", "72"),
        ("So she makes 9 * 2 = $18 every day.\n#### 18", "18"),
        ("The total is $1,234,567.50.", "1234567.5"),
        ("That is 20%.", "20"),
        ("20", "20%"),
        ("He lost money: -$5", "-5"),
        ("He lost money: $-5.00", "$-5"),
        ("the temperature is \u22123 degrees", "-3"),
        ("10-3=7", "7"),
        ("between 20-25", "25"),
        ("x = (4)-3", "3"),
        ("The answer is...72", "72"),
        ("it weighs .5 kg", "0.5"),
        ("it weighs 72kg", "72"),
        (r"so it is $\boxed{72}$.", "72"),
        (r"so it costs $\boxed{\$1,200}$.", "1,200"),
        ("72.", "72.0"),
        ("**72**", "072"),
        ("It is 72 in GSM8K and in H2O.", "72"),
        ("0.1", ".10"),
        ("1,2", "2"),
        ("it is 100000000000000000000000000001", "100,000,000,000,000,000,000,000,000,001"),
    ],
)
def test_the_last_number_counts(completion: str, answer: str) -> None:
    assert right("number", completion, answer)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("72 or rather 73", "72"),
        ("-72", "72"),
        ("72", "-72"),
        ("720", "72"),
        ("7.2", "72"),
        ("seventy-two", "72"),
        ("100000000000000000000000000001", "100000000000000000000000000002"),
    ],
)
def test_other_numbers_are_wrong(completion: str, answer: str) -> None:
    assert not right("number", completion, answer)


@pytest.mark.parametrize("answer", ["3/4", "seven", "1 and 2", "$", "x^2", ""])
def test_answers_that_are_not_numbers_are_refused(answer: str) -> None:
    with pytest.raises(ul.InvalidInput, match="number"):
        right("number", "7", answer)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("B", "B"),
        (" B\n", "(B)"),
        ("(B)", "B."),
        ("B. 14 apples", "B"),
        ("B) 14 apples", "B"),
        ("The answer is B because (C) is too large.", "B"),
        ("A. 3\nB. 4\nC. 5\nTherefore, the answer is (B).", "B"),
        ("A train leaves. I add 3 and get 14, which is (B)", "B"),
        ("I think A train is late, thus **B**.", "B"),
        ("Answer: B", "B"),
        ("The correct option is: **B**", "B"),
        (r"The final answer is $\boxed{B}$.", "B"),
        (r"Hence $\boxed{\text{(B)}}$", "B"),
        ("The answer is A. Wait, no: the answer is B.", "B"),
        ("First (A), then (B)", "B"),
        ("We add them up.\nB\n", "B"),
    ],
)
def test_the_chosen_letter_is_found(completion: str, answer: str) -> None:
    assert right("choice", completion, answer)


@pytest.mark.parametrize("completion", ["A", "The answer is (A), not (B)", "Bob has them", "A big apple", "b"])
def test_other_letters_are_wrong(completion: str) -> None:
    assert not right("choice", completion, "B")


def test_answers_that_are_not_letters_are_refused() -> None:
    with pytest.raises(ul.InvalidInput, match="14"):
        right("choice", "B", "14")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"Half of it remains, so the answer is $\boxed{\frac{1}{2}}$.", r"\frac12"),
        ("The answer is 0.5.", r"\frac{1}{2}"),
        ("The answer is 1/2", r"$\frac{1}{2}$"),
        (r"Therefore the domain is $\boxed{[2,5)}$.", "[2,5)"),
        (r"Hence $x \in$ $\boxed{(-\infty,2)\cup(3,\infty)}$", r"(-\infty, 2) \cup (3, \infty)"),
        (r"We get $$\boxed{\sqrt{18}}$$ in the end.", r"3\sqrt2"),
        (r"\[ x^2 + 2x + 1 = \boxed{(x+1)^2} \]", "x^2+2x+1"),
        (r"The point is $\boxed{\left( 3, \frac{\pi}{2} \right)}$.", r"\left(3,\frac{\pi}{2}\right)"),
        (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"The angle is $\boxed{90}$ degrees.", r"90^\circ"),
        (r"There are $\boxed{11111100}$ ways.", r"11,\! 111,\! 100"),
        ("It costs $5.", r"\$5.00"),
        (r"so $x = \boxed{5}$", "5"),
        ("Thus $x = 5$.", "5"),
        (r"\boxed{2, 3}", "3,2"),
        (r"It was $\boxed{\text{Evelyn}}$.", r"\text{Evelyn}"),
        (r"\boxed{6 - 5i}", "6-5i"),
        ("72", r"so it is $\boxed{72}$"),
    ],
)
def test_equal_expressions_are_right(completion: str, answer: str) -> None:
    assert right("math", completion, answer)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"$\boxed{\frac{1}{3}}$", r"\frac12"),
        (r"$\boxed{(2,5)}$", "[2,5)"),
        (r"$\boxed{\text{Carla}}$", r"\text{Evelyn}"),
        (r"\boxed{-3}", "3"),
        (r"\boxed{\frac{1}{", r"\frac12"),
    ],
)
def test_other_expressions_are_wrong(completion: str, answer: str) -> None:
    assert not right("math", completion, answer)


def test_math_is_checked_in_threads_too() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(right("math", r"\boxed{\frac12}", "0.5")))
    thread.start()
    thread.join()
    assert found == [True]


def test_endless_expressions_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlock_lens.evidence.tasks.scoring.MATH_SECONDS", 1)
    assert not right("math", "$9^{9^{9}}$", "5")


def test_math_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ul.InvalidInput, match=r"math-verify.*\[tasks\]"):
        right("math", "1", "1")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>7?</think>\n<answer> 8 </answer>", "8"),
        ("<answer>7</answer> no, <answer>8\n9</answer>", "8\n9"),
        (r"The answer is 7, boxed: $\boxed{8}$", "8"),
        ("The answer is 7. No, the final answer is: **8**.", "8"),
        ("Answer: 8\nQuestion: what is next?", "8"),
        ("Answer:\n8\n", "8"),
        ("the answer is", "the answer is"),
        ("5 + 3 = 8\n#### 8", "8"),
        (" A sentence.\nAnother.\n", "A sentence.\nAnother."),
        ("", ""),
    ],
)
def test_final_answers_are_cut_out(completion: str, expected: str) -> None:
    assert final_answer(completion) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"$\boxed{1}$ and $\boxed{\frac{1}{\sqrt{2}}}$.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed { x }", "x"),
        (r"$\fbox{9}$", "9"),
        (r"so $\boxed 9$.", "9"),
        (r"\boxed{1} \boxed{2", None),
        ("none", None),
    ],
)
def test_the_last_box_is_opened(text: str, expected: Any) -> None:
    assert last_boxed(text) == expected
