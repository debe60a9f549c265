import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.errors import InputError
from captioning.vocabulary import (
    END,
    MAX_WORDS,
    PAD,
    SPECIALS,
    START,
    TOKENIZERS,
    UNKNOWN,
    Vocabulary,
    find_tokenizer,
    normalize,
    tokenize,
)

CAPTIONS = ["A dog runs .", "A dog jumps over a log .", "a cat sleeps"]
APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"


def vocabulary(**changes):
    return Vocabulary.from_captions(map(tokenize, CAPTIONS), **{"min_count": 1, **changes})


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog's T-shirt !", ["a", "dog's", "t-shirt"]),
        ("'Quoted' rock 'n' roll -- end-", ["quoted", "rock", "n", "roll", "end"]),
        (f"the dog{APOSTROPHE}s ball", ["the", "dog's", "ball"]),
        ("Ein Mädchen läuft über Straßen.", ["ein", "mädchen", "läuft", "über", "straßen"]),
        ("CAFE\N{COMBINING ACUTE ACCENT}", ["café"]),
        ("एक हिन्दी कुत्ता", ["एक", "हिन्दी", "कुत्ता"]),
        ("2 dogs, snake_case", ["2", "dogs", "snake", "case"]),
        ("\ufeffa sun\u00adset\u200b", ["a", "sunset"]),
        ("خانه\N{ZERO WIDTH NON-JOINER}ها", ["خانهها"]),
        (" .,!? ", []),
    ],
)
def test_words_keep_letters_and_inner_marks_and_drop_punctuation(caption, tokens):
    assert tokenize(caption) == tokens


def test_characters_are_split_singly_and_joined_without_spaces():
    assert find_tokenizer("characters")("两只狗, A1!") == ["两", "只", "狗", "a", "1"]
    built = Vocabulary.from_captions([["两", "只", "狗"]], min_count=1, tokenizer="characters")
    assert built.decode(built.encode(["两", "狗"])) == "两狗"


@settings(deadline=None)
@given(st.text(), st.text(), st.text("\u00ad\u061c\u200b\u200c\u200d\ufeff"), st.data())
def test_composition_and_format_characters_change_nothing(start, end, invisible, data):
    text = start + end
    form = data.draw(st.sampled_from(["NFC", "NFD"]))
    other = unicodedata.normalize(form, start) + invisible + unicodedata.normalize(form, end)
    assert normalize(other) == normalize(text) == normalize(normalize(text))
    for split in TOKENIZERS.values():
        assert split(other) == split(text)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(caption=st.text())
def test_the_tokens_of_any_text_are_words_of_a_vocabulary_and_found_again(name, caption):
    tokens = TOKENIZERS[name](caption)
    assert TOKENIZERS[name](" ".join(tokens)) == tokens
    if tokens:
        built = Vocabulary.from_captions([tokens], min_count=1, tokenizer=name)
        again = Vocabulary.from_json(json.loads(json.dumps(built.to_json())))
        assert [again.words[index] for index in again.encode(tokens)[1:-1]] == tokens


def test_words_are_ordered_by_count_and_then_spelling():
    built = vocabulary()
    assert built.words == [*SPECIALS, "a", "dog", "cat", "jumps", "log", "over", "runs", "sleeps"]
    assert built.counts == [0, 3, 3, 0, 4, 2, 1, 1, 1, 1, 1, 1]


def test_rare_words_and_words_beyond_the_size_are_unknown():
    assert vocabulary(min_count=2).words == [*SPECIALS, "a", "dog"]
    small = vocabulary(max_size=1)
    assert small.words == [*SPECIALS, "a"]
    assert small.counts[UNKNOWN] == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vocabulary(min_count=5), "no word occurs 5 times in the 3 training captions"),
        (lambda: find_tokenizer("syllables"), "choose one of words, characters"),
    ],
)
def test_settings_that_give_no_vocabulary_are_rejected(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_encode_frames_the_caption_and_decode_stops_at_its_end():
    built = vocabulary(min_count=2)
    assert built.encode(["a", "zebra", "dog"]) == [START, 4, UNKNOWN, 5, END]
    assert built.decode([START, 4, PAD, 5, END, 5]) == "a dog"


def test_a_token_that_reads_like_a_special_is_an_unknown_word():
    built = Vocabulary.from_captions([["a", "<end>"]], min_count=1)
    assert built.words == [*SPECIALS, "a"]
    assert [word in built for word in ("a", "<end>")] == [True, False]
    assert built.encode(["<end>"]) == [START, UNKNOWN, END]


def test_json_gives_the_same_vocabulary_back():
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary().to_json())))
    assert again == vocabulary()
    assert again.fingerprint == "13baefb09ad8e852"  # written into files: it must not change
    reordered = Vocabulary([*again.words[:-2], *again.words[:-3:-1]], again.counts)
    recut = Vocabulary(again.words, again.counts, "characters")
    assert len({again.fingerprint, reordered.fingerprint, recut.fingerprint}) == 3
    assert reordered != again != recut


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": "bytes"},
        {"tokenizer": ["words"]},
        {"words": "abc"},
        {"words": ["a", "b"], "counts": [1, 1]},
        *(
            {"words": [*SPECIALS, "a", word], "counts": [0] * 6}
            for word in [5, "", "two words", "\x1b[2J", "\ud800", "a", ["a"]]
        ),
        {"counts": [1]},
        {"counts": None},
        {"words": list(SPECIALS), "counts": [0, 0, 0, True]},
        {"words": list(SPECIALS), "counts": [0, 0, 0, -1]},
        {"words": [*SPECIALS, *map(str, range(MAX_WORDS))], "counts": [0] * (MAX_WORDS + 4)},
    ],
)
def test_json_that_is_not_a_vocabulary_is_rejected(change):
    with pytest.raises(InputError, match=r"(not a valid vocabulary|not JSON)"):
        Vocabulary.from_json({**vocabulary().to_json(), **change})


def test_a_file_that_is_not_a_vocabulary_is_named():
    for content in ({"words": []}, [], "text"):
        with pytest.raises(InputError, match=r"vocabulary\.json: not a valid vocabulary"):
            Vocabulary.from_json(content, "vocabulary.json")
