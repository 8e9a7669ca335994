"""Count signs of translated-sounding English in what people read: documents, and strings, comments and test names of code.

    python scripts/english.py             # one line for each file that has any, and the totals
    python scripts/english.py --show told # each place where one sign was found

Signs are hints, not errors: "what is told" may be the right word. Run it before and after a change of wording.
"""

from __future__ import annotations

import argparse
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "AGENTS.md", "CHANGELOG.md", "CONTRIBUTING.md")
FOLDERS = ("docs", "unlock_lens", "tests", "tutorials", "scripts", "benchmarks")
UNIT = "layer|token|prompt|line|row|problem|file|section|sequence|batch|second|pair|text|request|completion|setting|weight"
SIGNS = {
    "is no": r"\b(?:is|are|was|were) no\b(?! (?:longer|more|less|better|worse))",
    "a layer": rf"\b(?:nats|bits|bytes|[kKMG]i?B|numbers|tokens|times|characters|one|vector|strength|axis|object|decomposition|"
    rf"question|text|completion|function|file|number|pass|row|weights?) an? (?:{UNIT})\b",
    "as it is": r"\bas (?:it is|they are|it was|it stands|they stand)\b",
    "goes on": r"\b(?:goes|go|going|gone|went) on\b",
    "at hand": r"\bat hand\b",
    "of its own": r"\bof (?:its|one's|their|your|his) own\b",
    "held against": r"\bheld against\b",
    "brings": r"\b(?:brings?|brought|bringing)\b",
    "told": r"\btold\b",
    "moreover": r"\bmoreover\b",
    "all the same": r"\ball the same\b",
    "but for": r"\bbut for\b",
    "beside": r"\bbeside\b",
    "foretell": r"\bforet(?:ell|ells|old)\b",
    "say so": r"\bsays? so\b",
    "is what": r"\b(?:is|are) what\b",
    "what is": r"(?:^|[.,;:(] )[Ww]hat (?:is|was|are|has|does|comes|came|goes)\b",
    "Of ...,": r"(?:^|[.:] )Of (?!course)[^.,;]{3,60},",
    "three clauses": r"[^.;]{8,};[^.;]{8,};[^.;]{8,}",
}
CODE_BLOCK = re.compile(r"```.*?```|^ {4}[^\n]*$|`[^`\n]*`|<!--.*?-->", re.DOTALL | re.MULTILINE)


def of_document(text: str) -> Iterator[tuple[int, str]]:
    """Lines of prose, with their numbers; code is left out."""
    without = CODE_BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    yield from enumerate(without.splitlines(), 1)


def of_code(text: str) -> Iterator[tuple[int, str]]:
    """Strings, comments, and names of tests as words."""
    previous = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("STRING", "COMMENT", "FSTRING_MIDDLE"):
            yield from enumerate(token.string.splitlines(), token.start[0])
        elif previous == "def" and token.string.startswith("test_"):
            yield token.start[0], token.string.replace("_", " ")
        previous = token.string


def files() -> Iterator[Path]:
    """All that is read."""
    yield from (ROOT / name for name in DOCUMENTS if (ROOT / name).exists())
    for folder in FOLDERS:
        yield from sorted(
            path for path in (ROOT / folder).rglob("*") if path.suffix in (".md", ".py") and path != Path(__file__)
        )


def main() -> None:
    """Count, or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", choices=SIGNS, help="print each place where this sign was found")
    asked = parser.parse_args()
    total: Counter[str] = Counter()
    for path in files():
        found: Counter[str] = Counter()
        for number, line in (of_document if path.suffix == ".md" else of_code)(path.read_text()):
            for sign, pattern in SIGNS.items():
                count = len(re.findall(pattern, line))
                found[sign] += count
                if count and sign == asked.show:
                    print(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
        if not asked.show and +found:
            print(path.relative_to(ROOT), *(f"{sign}: {count}" for sign, count in (+found).items()), sep="  ")
        total += found
    if not asked.show:
        print("total", f"{sum(total.values())}", *(f"{sign}: {total[sign]}" for sign in SIGNS), sep="  ")


if __name__ == "__main__":
    main()
