"""Which language a completion is in, by counting common words: a rule that a reader can check by eye."""

from __future__ import annotations

import re

COMMON = {
    "english": (
        "the of and to in is was that it he she they his her for with as had at by were be this from have on not are "
        "but we you i an when who which would there their been has did into them him then could"
    ),
    "french": (
        "le la les des de du un une et est dans pour que qui au aux en sur pas plus par il elle ils nous vous je ce "
        "cette ces son sa ses avec se était être avait sont ne mais ou où leur tout comme fait d l qu n c s y a été"
    ),
    "german": (
        "der die das und ist in den von zu mit sich des auf für nicht ein eine einer einem einen dem er sie es wir "
        "ich auch als an nach wie war aus bei hat dass werden wird haben hatte sind noch oder aber um im am zum zur "
        "sein ihr seine"
    ),
}
"""Words of each language; some are in two."""
CAPITALS = 0.8
_WORDS = {language: frozenset(words.split()) for language, words in COMMON.items()}
_LEAST_WORDS, _LEAST_LETTERS = 2, 10


def language(text: str) -> str | None:
    """The language with most different common words, if it has at least 2 of them and more than every other; else None.

    Example:
        >>> language(" et les enfants sont partis avec leur mère"), language(" 12 34")
        ('french', None)
    """
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    counts = {name: sum(word in common for word in words) for name, common in _WORDS.items()}
    best, second = sorted(counts.values(), reverse=True)[:2]
    return max(counts, key=lambda name: counts[name]) if best >= _LEAST_WORDS and best > second else None


def in_capitals(text: str) -> bool:
    """At least 80% of at least 10 letters are capitals.

    Example:
        >>> in_capitals(" AND THE DOOR WAS OPEN"), in_capitals(" and the door")
        (True, False)
    """
    cased = [letter for letter in text if letter.isupper() or letter.islower()]
    return len(cased) >= _LEAST_LETTERS and sum(letter.isupper() for letter in cased) >= CAPITALS * len(cased)


def shows(capability: str, text: str) -> bool:
    """Whether a completion shows "french", "german" or "capitals"."""
    return in_capitals(text) if capability == "capitals" else language(text) == capability
