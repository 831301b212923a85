"""Makes the text that the model of `tests/data/stories` learns from: public-domain fairy tales.

    python stories_corpus.py BOOKS_DIR corpus.jsonl [--split FOLDER]

JSON lines, a tale or chapter each. The folder gets them in two files, `train.jsonl` and
`held_out.jsonl`; the second is `tests/data/stories/tales.jsonl`.

BOOKS_DIR holds the plain-text editions of Project Gutenberg, named as Project Gutenberg names them:
the book's number, then `-0` (UTF-8), `-8` (Latin-1) or nothing (ASCII), then `.txt`. `BOOKS` lists
the numbers. Every author and translator named there died before 1940. The texts themselves are not
kept in this repository.

From each book the licence, the front matter, the contents, the notes and the headings are removed,
hard-wrapped lines are joined and typographic quotes become ASCII. What stands between two headings
is one document: a tale, or a chapter of a longer one. A document keeps one paragraph a line.
"""

import argparse
import json
import re
import sys
import unicodedata
from pathlib import Path

# Number at Project Gutenberg -> title.
BOOKS = {
    # Andrew Lang, the coloured Fairy Books; the tales mostly translated by Leonora Lang.
    503: "The Blue Fairy Book",
    540: "The Red Fairy Book",
    7277: "The Green Fairy Book",
    640: "The Yellow Fairy Book",
    5615: "The Pink Fairy Book",
    6746: "The Grey Fairy Book",
    641: "The Violet Fairy Book",
    2435: "The Crimson Fairy Book",
    3282: "The Brown Fairy Book",
    27826: "The Olive Fairy Book",
    3454: "The Lilac Fairy Book",
    128: "The Arabian Nights Entertainments",
    # Jacob and Wilhelm Grimm, translated by Edgar Taylor and Marian Edwardes; by Margaret Hunt.
    2591: "Grimms' Fairy Tales",
    5314: "Household Tales",
    # Hans Christian Andersen, translated by H. P. Paull.
    27200: "Fairy Tales of Hans Christian Andersen",
    # Joseph Jacobs.
    7439: "English Fairy Tales",
    14241: "More English Fairy Tales",
    7885: "Celtic Fairy Tales",
    34453: "More Celtic Fairy Tales",
    7128: "Indian Fairy Tales",
    26019: "Europa's Fairy Book",
    # Yei Theodora Ozaki.
    4018: "Japanese Fairy Tales",
    # L. Frank Baum.
    55: "The Wonderful Wizard of Oz",
    486: "Ozma of Oz",
    420: "Dorothy and the Wizard in Oz",
    485: "The Road to Oz",
    517: "The Emerald City of Oz",
    955: "The Patchwork Girl of Oz",
    956: "Tik-Tok of Oz",
    957: "The Scarecrow of Oz",
    959: "The Lost Princess of Oz",
    419: "The Magic of Oz",
    520: "The Life and Adventures of Santa Claus",
    4357: "American Fairy Tales",
    # Howard Pyle, George MacDonald, Oscar Wilde, Nathaniel Hawthorne, Edith Nesbit.
    1751: "Twilight Land",
    697: "The Light Princess",
    708: "The Princess and the Goblin",
    709: "The Princess and Curdie",
    902: "The Happy Prince and Other Tales",
    873: "A House of Pomegranates",
    976: "Tanglewood Tales",
    23661: "The Book of Dragons",
}

# Documents that are never trained on, one in fifty: drawn once, at random.
HELD_OUT = {
    15, 87, 273, 349, 352, 365, 557, 571, 627, 694, 710, 729, 830, 841, 863, 1033, 1094, 1112,
    1149, 1177, 1206, 1254, 1293, 1352, 1363, 1379, 1419, 1457, 1459, 1474, 1533,
}  # fmt: skip

BODY = re.compile(r"\*\*\* ?START OF TH.*?\*\*\*(.*?)\*\*\* ?END OF TH", re.DOTALL)
APPARATUS = re.compile(
    r"preface|introduct|contents|illustrations|footnote|dedicat|to the reader|to my readers"
    r"|author's note|transcriber|list of",
    re.IGNORECASE,
)
BACK_MATTER = re.compile(r"notes and references|^notes\.?$|oyez-oyez|^the end\.?$", re.IGNORECASE)
NOTE_MARK = re.compile(r"\[(?:\d+|Illustration[^\]]*|Footnote[^\]]*)\]|\(\d+\)")
SOURCE = re.compile(
    r"^From|^Adapted from|^Translated from|^\(|End of The|Story\.|Tale\.|Tales\.|Tradition"
    r"|M[aeu]h?l?i?r?chen|Sagen|Contes|Cuentos|Fees\b|Aulnoy|Caylus|Deulin|Sebillot|Kletke|Fenelon"
    r"|Grimm|Andersen\."
)
SENTENCE_END = re.compile(r"[.!?:\"')-]$")
ASCII = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--", "_": ""}
)
SHORTEST_DOCUMENT = 1000  # characters; less is a title page, an epigraph or an index


def read_book(folder: Path, number: int) -> str:
    """The text of book `number` between Project Gutenberg's start and end marks."""
    for suffix, encoding in (("-0", "utf-8-sig"), ("-8", "latin-1"), ("", "ascii")):
        path = folder / f"{number}{suffix}.txt"
        if path.exists():
            body = BODY.search(path.read_bytes().decode(encoding).replace("\r\n", "\n"))
            if body is None:
                sys.exit(f"{path}: no START and END marks of Project Gutenberg")
            return body.group(1)
    sys.exit(f"{folder}: no text of book {number}, {BOOKS[number]!r}")


def is_heading(paragraph: str, blank_lines_before: int) -> bool:
    """Whether a paragraph titles what follows: a short line, in capitals or well set apart."""
    if "\n" in paragraph.strip() or len(paragraph) > 80 or paragraph.lstrip()[0] in "\"'(*":
        return False
    letters = [c for c in paragraph if c.isalpha()]
    return bool(letters) and (
        all(c.isupper() for c in letters)
        or (blank_lines_before >= 3 and paragraph[0].isalnum() and not paragraph.endswith(","))
        or re.match(r"\s*chapter\b", paragraph, re.IGNORECASE) is not None
    )


def clean(paragraph: str) -> str:
    """One line of plain text; empty where the paragraph is no prose (a note, a rule, a list)."""
    if paragraph.lstrip().startswith(("[", "(1", "(2", "(3")):
        return ""
    text = " ".join(NOTE_MARK.sub("", paragraph).split())
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return text if SENTENCE_END.search(text) else ""


def documents(book: str) -> list[str]:
    """The tales or chapters of one book, in order."""
    found, heading, paragraphs = [], "contents", []
    book = re.sub(r"[ \t]+\n", "\n", book.translate(ASCII)) + "\n\n\n\nTHE END\n"
    for match in re.finditer(r"(\n*)((?:[^\n]+\n?)+)", book):
        blank_lines, paragraph = len(match.group(1)), match.group(2).rstrip()
        if not is_heading(paragraph, blank_lines):
            paragraphs.append(clean(paragraph))
            continue
        tale = document([p for p in paragraphs if p])
        if len(tale) >= SHORTEST_DOCUMENT and not APPARATUS.search(heading):
            found.append(tale)
        heading, paragraphs = paragraph.strip(), []
        if found and BACK_MATTER.search(heading):
            break
    return found


def document(paragraphs: list[str]) -> str:
    """One tale, a paragraph a line, without the line before or after that says whose tale it is."""
    for end in (0, -1):
        while paragraphs and len(paragraphs[end]) < 80 and SOURCE.search(paragraphs[end]):
            del paragraphs[end]
    text = "\n".join(paragraphs)
    return re.sub(r"^\W*[A-Z][A-Z']+\b", lambda word: word.group().capitalize(), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("books", type=Path, help="folder of plain-text books")
    parser.add_argument("corpus", type=Path, help="the JSONL file to write")
    parser.add_argument("--split", type=Path, help="folder for what is trained on and the rest")
    args = parser.parse_args()
    lines = []
    with args.corpus.open("w") as out:
        for number, title in BOOKS.items():
            tales = documents(read_book(args.books, number))
            size = sum(map(len, tales))
            print(f"{number:6} {len(tales):4} documents {size:9,} characters  {title}")
            for text in tales:
                lines.append(json.dumps({"book": number, "text": text}) + "\n")
        out.writelines(lines)
    if args.split is not None:
        args.split.mkdir(parents=True, exist_ok=True)
        for name, is_held_out in (("train.jsonl", False), ("held_out.jsonl", True)):
            chosen = [line for i, line in enumerate(lines) if (i in HELD_OUT) == is_held_out]
            (args.split / name).write_text("".join(chosen))


if __name__ == "__main__":
    main()
