"""The sentences of tests/data/minilm/expect.json: one word to several hundred tokens.

Written for this file. Three of the paragraphs exceed the model's 256 tokens and are truncated.
"""

PARAGRAPHS = [
    "The ferry left before the fog had lifted, and for the first hour nobody on deck could see the "
    "water, only hear it. A boy counted the seconds between the horn and its echo and announced, "
    "after each one, how far away the cliffs must be. His grandfather, who had crossed this strait "
    "for forty years, nodded at every number as though he were checking it against a chart. When "
    "the sun finally came through, the cliffs were exactly where the boy had put them.",
    "To repot a fern, water it well the day before, then tip the pot on its side and ease the root "
    "ball out with both hands. Trim away anything brown or hollow, loosen the outer roots, and set "
    "the plant in a container no more than three centimetres wider than the old one. Fill the gap "
    "with a mix of two parts leaf mould, one part sand and a little charcoal; press it down "
    "gently, water again, and keep the fern out of direct sun for a fortnight.",
    "A cache is a bet that the near future resembles the recent past. The bet pays off so often "
    "that processors are built around it: three or four levels of ever larger and slower memory, "
    "each one guessing what the level below will be asked for next. When the guess is wrong, the "
    "core waits for a few hundred cycles, which is why the layout of data in memory frequently "
    "matters more than the number of instructions that touch it. A programmer who walks a matrix "
    "by columns when it is stored by rows loses the same bet a million times in a row.",
    "In 1911 the town had two bakeries, a tannery, a school with a single room, and a railway "
    "station that was larger than all four together. The station had been built for a line that "
    "was never finished. Trains came from the south, turned on the great iron table behind the "
    "water tower, and went back the way they had come; of the northern track there was only an "
    "embankment, which the children used as a sledging hill in winter and the goats in summer.",
    "Patients in the first group received the standard dose twice a day for six weeks, those in "
    "the second half of it, and those in the third a placebo. Blood pressure was measured at the "
    "same hour every morning by nurses who did not know to which group a patient belonged. After "
    "six weeks the mean systolic pressure had fallen by 11.4 mmHg in the first group, by 9.8 mmHg "
    "in the second and by 2.1 mmHg in the third, so that most of the effect was already had at "
    "half the dose.",
]

SENTENCES = [
    "Hello",
    "cat",
    "Photosynthesis",
    "internationalisation",
    "42",
    "?",
    "Good morning!",
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A cheetah is running behind its prey.",
    "A monkey is playing drums.",
    "Someone in a gorilla costume is playing a set of drums.",
    "How do I reset my password?",
    "I forgot my login credentials and can't get into my account.",
    "What's the weather like in Reykjavík tomorrow?",
    "The quick brown fox jumps over the lazy dog.",
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG!!!",
    "Interest rates rose by 0.25 percentage points to 4.75 % on 3 May 2023.",
    "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)",
    "SELECT name, COUNT(*) FROM orders WHERE total >= 100 GROUP BY name;",
    "https://example.org/path/to/page?query=1&lang=en#section-2",
    "Crème brûlée, jalapeño and smörgåsbord are on the menu at the naïve café.",
    "Straße, Fußgängerübergang und Äpfel: der Zug fährt um 17:45 Uhr ab.",
    "Le chat dort sur le canapé pendant que la pluie tombe.",
    "今天的天气很好，我们去公园散步吧。",
    "東京は日本の首都です。",
    "Москва — столица России.",
    "مرحبا بالعالم",
    "I love this 😀🎉 so much 👩‍💻!",
    "e\u0301 is the same as é, and ﬁ is a ligature",
    "tabs\tand\nnewlines \u00a0 and   runs of spaces",
    "zero\u200bwidth, soft\u00adhyphen and \ufeffbyte-order marks",
    "Pneumonoultramicroscopicsilicovolcanoconiosis is said to be the longest English word.",
    PARAGRAPHS[0],
    PARAGRAPHS[1],
    PARAGRAPHS[4],
    " ".join(PARAGRAPHS[:3]),
    " ".join(PARAGRAPHS[2:]),
    " ".join(PARAGRAPHS * 2),
]

EMPTY = ""
