"""Captions to tokens, tokens to ids, and back."""

import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from captioning.errors import InputError

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")  # index = id; no tokenizer yields "<"
MAX_WORDS = 1_000_000
MADE_BY = "caption_extraction.ipynb"

# Vowel signs and accents without a composed letter (Hindi, Thai, Arabic); `\w` does not match them.
_MARKS = "".join(c for c in map(chr, range(0x300, 0xAC00)) if unicodedata.category(c)[0] == "M")
_WORD = re.compile(rf"[\w{_MARKS}]+(?:['-][\w{_MARKS}]+)*")
_PRINTABLE = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")  # no escape codes, no spaces


def normalize(text: str) -> str:
    """NFC, one kind of apostrophe, no format characters such as zero-width spaces."""
    visible = "".join(char for char in text if unicodedata.category(char) != "Cf")
    return unicodedata.normalize("NFC", visible).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def tokenize(caption: str) -> list[str]:
    """Split a caption into lower-case words: "A dog's T-shirt!" gives a, dog's, t-shirt."""
    # Lower case comes first: its letters may compose where the capitals do not.
    return _WORD.findall(normalize(caption.lower()).replace("_", " "))


def tokenize_characters(caption: str) -> list[str]:
    """Split a caption into letters and digits, for languages written without spaces."""
    return [char for char in normalize(caption.lower()) if char.isalnum() or char in _MARKS]


TOKENIZERS = {"words": tokenize, "characters": tokenize_characters}


def find_tokenizer(name: str):
    """Return the tokenizer (caption -> tokens) called `name`, or raise InputError."""
    if name not in TOKENIZERS:
        raise InputError(f"{name}: unknown tokenizer; choose one of {', '.join(TOKENIZERS)}")
    return TOKENIZERS[name]


@dataclass(repr=False)
class Vocabulary:
    """The words a captioner knows; a word's id is its index in `words`."""

    words: list[str]  # SPECIALS, then the words, most frequent first
    counts: list[int]  # in the training captions; START and END: captions; UNKNOWN: other tokens
    tokenizer: str = "words"  # a key of TOKENIZERS

    def __post_init__(self):
        self._ids = {word: index for index, word in enumerate(self.words) if word not in SPECIALS}

    @classmethod
    def from_captions(cls, token_lists, min_count=5, max_size=None, tokenizer="words"):
        """Keep words that occur at least `min_count` times, at most `max_size` of them (None: all).

        The tokens are those of each caption; of equally frequent words, the first by spelling stay.
        InputError if no word is that frequent.
        """
        token_lists = list(token_lists)
        seen = Counter(itertools.chain.from_iterable(token_lists))
        frequent = [word for word in seen if seen[word] >= min_count and word not in SPECIALS]
        kept = sorted(frequent, key=lambda word: (-seen[word], word))[:max_size]
        captions = len(token_lists)
        if not kept:
            problem = f"no word occurs {min_count} times in the {captions} training captions"
            raise InputError(f"{problem}; give more of them, or a smaller minimum_count, e.g. 1")
        counts = [seen[word] for word in kept]
        unknown = seen.total() - sum(counts)
        return cls([*SPECIALS, *kept], [0, captions, captions, unknown, *counts], tokenizer)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Return START, the id of each token (UNKNOWN if it has none), END."""
        return [START, *(self._ids.get(token, UNKNOWN) for token in tokens), END]

    def words_of(self, ids: Iterable[int]) -> list[str]:
        """Return the words of `ids` up to the first END, without PAD and START."""
        caption = itertools.takewhile(lambda index: index != END, ids)
        return [self.words[index] for index in caption if index not in (PAD, START)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the caption of `ids` up to the first END."""
        return (" " if self.tokenizer == "words" else "").join(self.words_of(ids))

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    @property
    def fingerprint(self) -> str:
        """A hash of the tokenizer and the ordered words: what gives ids their meaning."""
        return hashlib.sha256(json.dumps([self.tokenizer, self.words]).encode()).hexdigest()[:16]

    def to_json(self) -> dict:
        """Return the vocabulary as a JSON object."""
        return {"tokenizer": self.tokenizer, "words": self.words, "counts": self.counts}

    @classmethod
    def from_json(cls, value: object, source="vocabulary") -> "Vocabulary":
        """Build the vocabulary from untrusted JSON; InputError names `source` if it is not one."""
        try:
            words, counts, tokenizer = value["words"], value["counts"], value["tokenizer"]
            valid = tokenizer in TOKENIZERS and tuple(words[: len(SPECIALS)]) == SPECIALS
            valid &= len(set(words)) == len(words) == len(counts) <= MAX_WORDS
            valid &= all(map(_PRINTABLE.fullmatch, words))
            valid &= all(type(count) is int and count >= 0 for count in counts)
        except (KeyError, TypeError):
            valid = False
        if not valid:
            raise InputError(f"{source}: not a valid vocabulary; write it again with {MADE_BY}")
        return cls(words, counts, tokenizer)
