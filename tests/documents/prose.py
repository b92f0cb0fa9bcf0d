"""Rules for the prose of the documents: words to avoid, length of sentences and of pages.

`python -m tests.documents.prose` prints what breaks one, and exits with status 1. Spelling is left
to codespell. Code, generated tables and CHANGELOG.md, which is a record, are not checked.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from infra.local import ROOT
from tests.documents import documents, name
from tests.documents.tables import REGION

#: Pattern of a word that a reader has to guess at → the standard term.
WORDS = {
    "nurser(y|ies)": "fork server",
    "front doors?": "HTTP front end",
    "breakages?": "fault injector, fault",
    "goodbyes?": "close",
    "takes? leave": "shut down",
    "come again": "retry",
    "may run twice": "idempotent",
    "leaves? with \\d": "exits with status 1",
    "laborator(y|ies)": "lab",
    "mend(s|ed|ing)?": "fix",
    "remed(y|ies)": "hint, or what to do",
    "trifles?": "a plain word",
    "at a stroke": "a plain word",
    "whoso|whosoever|hitherto|thereof|therein|wherein|whence|thence": "a plain word",
    "utili[sz]e[sd]?": "use",
    "in order to": "to",
    "simply|obviously|of course": "nothing: it tells the reader that the difficulty is theirs",
}
AVOID = [(re.compile(rf"\b({word})\b", re.I), term) for word, term in WORDS.items()]
MAX_WORDS_OF_A_SENTENCE = 45
MAX_LINES = 250
README_LINES, README_WORDS = 150, 1200


def blanked(pattern: str, text: str, flags: int = re.S) -> str:
    """`text` without what matches, with its lines counted as before."""
    return re.sub(pattern, lambda found: "\n" * found[0].count("\n"), text, flags=flags)


def prose(text: str) -> str:
    text = blanked(REGION.pattern, text)
    text = blanked(r"^ *```.*?^ *```$", text, re.S | re.M)
    text = blanked(r"<!--.*?-->", text)
    text = re.sub(r"`[^`\n]+`", "CODE", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Line number and sentence, of running text and of lists. A table's cells are no sentences."""
    text = blanked(r"^(\||#).*$", text, re.M)
    for paragraph in re.finditer(r"(?:^.*\S.*$\n?)+", text, re.M):
        for part in re.split(r"(?m)^ *(?:[-*]|\d+\.) ", paragraph[0]):
            for sentence in re.split(r"(?<=[.:;!?])\s+", part):
                if words := sentence.split():
                    line = text.count("\n", 0, paragraph.start()) + 1
                    yield line, " ".join(words)


def faults(path: Path) -> Iterator[str]:
    text = path.read_text()
    if path.name == "CHANGELOG.md":
        return
    if (lines := len(text.splitlines())) > MAX_LINES:
        yield f"{lines} lines; {MAX_LINES} at most"
    if path == ROOT / "README.md":
        if (lines := len(text.splitlines())) > README_LINES:
            yield f"{lines} lines; {README_LINES} at most"
        if (count := len(text.split())) > README_WORDS:
            yield f"{count} words; {README_WORDS} at most"
    plain = prose(text)
    for number, line in enumerate(plain.splitlines(), 1):
        for pattern, term in AVOID:
            for found in pattern.finditer(line):
                yield f"line {number}: {found[0]!r}; use: {term}"
        if line.startswith("|") and not line.endswith("|"):
            yield f"line {number}: a table row that continues on the next line"
    for number, sentence in sentences(plain):
        if (count := len(sentence.split())) > MAX_WORDS_OF_A_SENTENCE:
            yield f"line {number}: a sentence of {count} words: {sentence[:60]} …"


def main() -> int:
    found = [f"{name(path)}: {fault}" for path in documents() for fault in faults(path)]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
