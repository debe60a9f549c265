"""Captions to tokens, tokens to ids, and back.

A vocabulary is plain data: it is saved as JSON, travels inside the checkpoint, and names the
tokeniser it was built with, so that a caption is cut in one way from training to scoring.
"""

import functools
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from captioning.files import InputError, read_json, write_json

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")  # index = id; no tokeniser yields "<"
MAX_WORDS = 1_000_000

# Vowel signs and accents that have no composed letter belong to their word (Hindi, Thai, Arabic);
# the scripts' marks lie in this range, and `\w` does not match them.
_MARKS = frozenset(
    character
    for character in map(chr, range(0x300, 0x3100))
    if unicodedata.category(character).startswith("M")
)
_LETTER = rf"(?:[^\W_]|[{''.join(sorted(_MARKS))}])"
_WORD = rf"{_LETTER}+(?:['-]{_LETTER}+)*"
_ASCII_WORD = r"[a-z0-9]+(?:['-][a-z0-9]+)*"  # the same in ASCII, much faster

# What a word read from a file may be: no spaces, nothing that would garble a terminal (control
# characters) or that cannot be written (half a surrogate pair).
_ACCEPTABLE = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def _normalise(caption: str) -> str:
    """Lower-case `caption`, compose its accents (NFC), and use one apostrophe."""
    # Lower-casing first: the lower case of a composed letter may be composed anew.
    return unicodedata.normalize("NFC", caption.lower()).replace(
        "\N{RIGHT SINGLE QUOTATION MARK}", "'"
    )


@functools.cache
def _words_of(pattern: str) -> Callable[[str], list[str]]:
    """A tokeniser that finds what matches `pattern`.

    NLTK is imported when the first caption is cut: it brings SciPy along, which takes most of a
    second, and a photograph is captioned without either.
    """
    from nltk.tokenize import RegexpTokenizer

    return RegexpTokenizer(pattern).tokenize


def tokenize(caption: str) -> list[str]:
    """Cut a caption into lower-case words without punctuation.

    Words keep inner apostrophes and hyphens: "A dog's T-shirt!" gives a, dog's, t-shirt.
    """
    if caption.isascii():  # nearly all English ones, and a large data set has half a million
        return _words_of(_ASCII_WORD)(caption.lower())
    return _words_of(_WORD)(_normalise(caption))


def tokenize_characters(caption: str) -> list[str]:
    """Cut a caption into letters and digits, for languages written without spaces."""
    return [
        character for character in _normalise(caption) if character.isalnum() or character in _MARKS
    ]


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "words": tokenize,
    "characters": tokenize_characters,
}


def find_tokenizer(name: str) -> Callable[[str], list[str]]:
    """The tokeniser called `name`.

    Raises:
        InputError: there is none of that name.
    """
    if name not in TOKENIZERS:
        raise InputError(f"{name}: no tokeniser; choose one of {', '.join(TOKENIZERS)}")
    return TOKENIZERS[name]


_JOINERS = {"words": " ", "characters": ""}


class Vocabulary:
    """The words a captioner knows; a word's id is its place in `words`.

    Attributes:
        words: the four specials, then the words, most frequent first.
        counts: how often each was seen in the captions the vocabulary was built from. START and
            END count captions, UNKNOWN counts the tokens that were too rare for the vocabulary.
        tokenizer: a key of `TOKENIZERS`.
    """

    def __init__(self, words: Sequence[str], counts: Sequence[int], tokenizer: str = "words"):
        """Check and keep the words; `from_captions` and `load` are the usual ways here.

        Raises:
            InputError: the arguments are no vocabulary (they may come from a file).
        """
        _check(words, counts, tokenizer)
        self.words = list(words)
        self.counts = list(counts)
        self.tokenizer = tokenizer
        # The specials are left out: a token that happens to read "<end>" is an unknown word.
        first = len(SPECIALS)
        self._ids = {word: index for index, word in enumerate(self.words[first:], start=first)}

    @classmethod
    def from_captions(
        cls,
        token_lists: Iterable[Sequence[str]],
        min_count: int = 5,
        max_size: int | None = None,
        tokenizer: str = "words",
    ) -> "Vocabulary":
        """Keep the words seen at least `min_count` times, most frequent first, ties by spelling.

        Args:
            token_lists: the tokens of each training caption.
            min_count: rarer words become UNKNOWN.
            max_size: at most so many words besides the specials; None for all.
            tokenizer: the key of `TOKENIZERS` that made the tokens.

        Raises:
            InputError: no word is frequent enough, or a token is no word; a limit below 1.
        """
        if min_count < 1 or (max_size is not None and max_size < 1):
            raise InputError(
                f"minimum count {min_count}, maximum size {max_size}: expected numbers from 1 up"
            )
        seen: Counter[str] = Counter()
        captions = 0
        for tokens in token_lists:
            seen.update(tokens)
            captions += 1
        for special in SPECIALS:
            del seen[special]
        frequent = [(word, count) for word, count in seen.items() if count >= min_count]
        kept = sorted(frequent, key=lambda pair: (-pair[1], pair[0]))[:max_size]
        if not kept:
            raise InputError(
                f"no word occurs {min_count} times in the {captions} training captions; "
                "give more captions, or a smaller minimum_count, such as 1"
            )
        words, counts = zip(*kept, strict=True)
        unknown = seen.total() - sum(counts)
        return cls((*SPECIALS, *words), (0, captions, captions, unknown, *counts), tokenizer)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Give START, the id of each token (UNKNOWN for words not held), END."""
        return [START, *(self._ids.get(token, UNKNOWN) for token in tokens), END]

    def decode(self, ids: Iterable[int]) -> str:
        """Give the text of `ids` up to the first END; PAD and START are silent.

        Raises:
            InputError: an id lies outside the vocabulary.
        """
        words = []
        for index in ids:
            if index == END:
                break
            if not 0 <= index < len(self):
                raise InputError(f"word id {index} is outside the vocabulary of {len(self)} words")
            if index not in (PAD, START):
                words.append(self.words[index])
        return _JOINERS[self.tokenizer].join(words)

    def __len__(self) -> int:
        """The number of ids, specials included."""
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        """Whether `word` has an id of its own; the specials are not words."""
        return word in self._ids

    def __eq__(self, other: object) -> bool:
        """Vocabularies are equal if words, counts and tokeniser are."""
        return isinstance(other, Vocabulary) and self.to_json() == other.to_json()

    __hash__ = None  # mutable lists inside

    @property
    def fingerprint(self) -> str:
        """A short digest of tokeniser, words and their order: what gives ids their meaning."""
        meaning = json.dumps([self.tokenizer, self.words])
        return hashlib.sha256(meaning.encode()).hexdigest()[:16]

    def to_json(self) -> dict:
        """Give the vocabulary as a JSON object, see `from_json`."""
        return {"tokenizer": self.tokenizer, "words": self.words, "counts": self.counts}

    @classmethod
    def from_json(cls, value: object) -> "Vocabulary":
        """Build the vocabulary that `to_json` gave.

        Raises:
            InputError: `value` is not such an object.
        """
        keys = ("words", "counts", "tokenizer")
        if not isinstance(value, dict) or not all(key in value for key in keys):
            raise InputError(f"not a vocabulary: expected an object with {', '.join(keys)}")
        return cls(*(value[key] for key in keys))

    def save(self, path: str | os.PathLike) -> None:
        """Write the vocabulary to the JSON file `path`."""
        write_json(path, self.to_json(), indent=None)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """Read the vocabulary that `save` wrote.

        Raises:
            InputError: the file is missing or holds no vocabulary.
        """
        made_by = "caption_extraction.ipynb"
        try:
            return cls.from_json(read_json(path, made_by))
        except InputError as error:
            if str(error).startswith(str(path)):
                raise
            raise InputError(f"{path}: {error}; write it anew with {made_by}") from None


def _check(words: Sequence[str], counts: Sequence[int], tokenizer: str) -> None:
    """Raise InputError unless the three make a vocabulary."""
    if not isinstance(tokenizer, str) or tokenizer not in TOKENIZERS:
        raise InputError(f"unknown tokenizer {tokenizer!r}; known: {', '.join(TOKENIZERS)}")
    if not isinstance(words, (list, tuple)) or not isinstance(counts, (list, tuple)):
        raise InputError("a vocabulary's words and counts must be lists")
    if len(words) > MAX_WORDS:
        raise InputError(f"a vocabulary of {len(words):,} words; at most {MAX_WORDS:,} are allowed")
    if tuple(words[: len(SPECIALS)]) != SPECIALS:
        raise InputError(f"a vocabulary must begin with {', '.join(SPECIALS)}")
    for word in words:
        if not isinstance(word, str) or not _ACCEPTABLE.fullmatch(word):
            raise InputError(f"{word!r} in the vocabulary is not a word")
    if len(set(words)) != len(words):
        word, count = Counter(words).most_common(1)[0]
        raise InputError(f"the word {word!r} stands {count} times in the vocabulary")
    if len(counts) != len(words):
        raise InputError(f"the vocabulary has {len(words)} words but {len(counts)} counts")
    for count in counts:
        if type(count) is not int or count < 0:
            raise InputError(f"{count!r} in the vocabulary is not a word count")


def unknown_rate(token_lists: Iterable[Sequence[str]], vocabulary: Vocabulary) -> float:
    """The share of tokens, 0 to 1, that `vocabulary` does not hold."""
    total = unknown = 0
    for tokens in token_lists:
        total += len(tokens)
        unknown += sum(token not in vocabulary for token in tokens)
    return unknown / total if total else 0.0
