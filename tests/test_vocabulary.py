import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.files import InputError
from captioning.vocabulary import (
    END,
    PAD,
    SPECIALS,
    START,
    TOKENIZERS,
    UNKNOWN,
    Vocabulary,
    find_tokenizer,
    tokenize,
    tokenize_characters,
    unknown_rate,
)

CAPTIONS = ["A dog runs .", "A dog jumps over a log .", "a cat sleeps"]


def vocabulary(**changes):
    return Vocabulary.from_captions(map(tokenize, CAPTIONS), **{"min_count": 1, **changes})


@pytest.mark.parametrize("limits", [{"min_count": 0}, {"max_size": 0}, {"max_size": -3}])
def test_limits_are_from_1_up(limits):
    with pytest.raises(InputError, match="from 1 up"):
        vocabulary(**limits)


def test_a_tokeniser_is_found_by_name():
    assert find_tokenizer("characters") is tokenize_characters
    with pytest.raises(InputError, match="words, characters"):
        find_tokenizer("syllables")


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog's T-shirt !", ["a", "dog's", "t-shirt"]),
        ("'Quoted' rock 'n' roll -- end-", ["quoted", "rock", "n", "roll", "end"]),
        ("the dog\N{RIGHT SINGLE QUOTATION MARK}s ball", ["the", "dog's", "ball"]),
        ("Ein Mädchen läuft über Straßen.", ["ein", "mädchen", "läuft", "über", "straßen"]),
        ("CAFE\N{COMBINING ACUTE ACCENT}", ["café"]),
        ("एक हिन्दी कुत्ता", ["एक", "हिन्दी", "कुत्ता"]),
        ("2 dogs, snake_case", ["2", "dogs", "snake", "case"]),
        (" .,!? ", []),
    ],
)
def test_words_keep_letters_and_inner_marks_and_drop_punctuation(caption, tokens):
    assert tokenize(caption) == tokens


@given(caption=st.text(st.characters(max_codepoint=127)))
def test_ascii_is_cut_as_all_text_is(caption):
    *words, last = tokenize(f"{caption} \N{LATIN SMALL LETTER E WITH ACUTE}")
    assert last == "\N{LATIN SMALL LETTER E WITH ACUTE}"
    assert tokenize(caption) == words


def test_characters_are_cut_singly_and_joined_without_spaces():
    assert tokenize_characters("两只狗, A1!") == ["两", "只", "狗", "a", "1"]
    built = Vocabulary.from_captions([["两", "只", "狗"]], min_count=1, tokenizer="characters")
    assert built.decode(built.encode(["两", "狗"])) == "两狗"


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(caption=st.text())
def test_any_text_gives_words_a_vocabulary_accepts_and_finds_again(name, caption):
    tokens = TOKENIZERS[name](caption)
    assert TOKENIZERS[name](" ".join(tokens)) == tokens
    if tokens:
        built = Vocabulary.from_captions([tokens], min_count=1, tokenizer=name)
        assert [built.words[index] for index in built.encode(tokens)[1:-1]] == tokens


def test_words_are_ordered_by_count_and_then_spelling():
    built = vocabulary()
    assert built.words == [*SPECIALS, "a", "dog", "cat", "jumps", "log", "over", "runs", "sleeps"]
    assert built.counts == [0, 3, 3, 0, 4, 2, 1, 1, 1, 1, 1, 1]


def test_rare_words_and_words_beyond_the_size_are_unknown():
    assert vocabulary(min_count=2).words == [*SPECIALS, "a", "dog"]
    small = vocabulary(max_size=1)
    assert small.words == [*SPECIALS, "a"]
    assert small.counts[UNKNOWN] == 8
    assert unknown_rate(map(tokenize, CAPTIONS), small) == pytest.approx(8 / 12)
    assert unknown_rate([], small) == 0


def test_encode_frames_the_caption_and_decode_stops_at_its_end():
    built = vocabulary()
    a, dog = built.words.index("a"), built.words.index("dog")
    assert built.encode(["a", "zebra", "dog"]) == [START, a, UNKNOWN, dog, END]
    assert built.decode([START, a, PAD, dog, END, dog]) == "a dog"


def test_a_token_that_reads_like_a_special_is_an_unknown_word():
    built = Vocabulary.from_captions([["a", "<end>"]], min_count=1)
    assert built.words == [*SPECIALS, "a"]
    assert "<end>" not in built
    assert "a" in built
    assert built.encode(["<end>"]) == [START, UNKNOWN, END]


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(InputError, match="word id 99 is outside"):
        vocabulary().decode([99])
    with pytest.raises(InputError, match="word id -1 is outside"):
        vocabulary().decode([-1])


def test_captions_without_a_frequent_word_are_refused():
    with pytest.raises(InputError, match="no word occurs 5 times in the 3 training captions"):
        vocabulary(min_count=5)


@settings(deadline=None)
@given(st.lists(st.lists(st.from_regex(r"[^\W_]{1,5}", fullmatch=True), min_size=1), min_size=1))
def test_json_gives_the_same_vocabulary_back(token_lists):
    built = Vocabulary.from_captions(token_lists, min_count=1)
    again = Vocabulary.from_json(json.loads(json.dumps(built.to_json())))
    assert again == built
    assert again.fingerprint == built.fingerprint
    assert again.encode(token_lists[0]) == built.encode(token_lists[0])


def test_a_file_gives_the_same_vocabulary_back(tmp_path):
    vocabulary().save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary()


def test_vocabularies_that_differ_are_told_apart():
    reordered = vocabulary().to_json()
    reordered["words"] = [*reordered["words"][:-2], *reordered["words"][:-3:-1]]
    assert Vocabulary.from_json(reordered) != vocabulary()
    assert Vocabulary.from_json(reordered).fingerprint != vocabulary().fingerprint
    recut = {**vocabulary().to_json(), "tokenizer": "characters"}
    assert Vocabulary.from_json(recut).fingerprint != vocabulary().fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "bytes"}, "unknown tokenizer 'bytes'; known: words, characters"),
        ({"tokenizer": ["words"]}, "unknown tokenizer"),
        ({"words": "abc"}, "must be lists"),
        ({"words": ["a", "b"]}, "must begin with <pad>, <start>, <end>, <unk>"),
        ({"words": [*SPECIALS, 5]}, "5 in the vocabulary is not a word"),
        ({"words": [*SPECIALS, ""]}, "'' in the vocabulary is not a word"),
        ({"words": [*SPECIALS, "two words"]}, "is not a word"),
        ({"words": [*SPECIALS, "\x1b[2J"]}, "is not a word"),
        ({"words": [*SPECIALS, "\ud800"]}, "is not a word"),
        ({"words": [*SPECIALS, "a", "a"]}, "'a' stands 2 times"),
        ({"words": [*SPECIALS, "a"], "counts": [1]}, "5 words but 1 counts"),
        ({"words": list(SPECIALS), "counts": [0, 0, 0, True]}, "True in the vocabulary is not"),
        ({"words": list(SPECIALS), "counts": [0, 0, 0, -1]}, "-1 in the vocabulary is not"),
        ({"words": ["a"] * 1_000_001}, "1,000,001 words; at most 1,000,000"),
    ],
)
def test_json_that_is_no_vocabulary_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        Vocabulary.from_json({**vocabulary().to_json(), **change})


def test_a_file_that_is_no_vocabulary_is_named(tmp_path):
    path = tmp_path / "vocabulary.json"
    with pytest.raises(InputError, match=r"vocabulary\.json: no such file"):
        Vocabulary.load(path)
    path.write_text('{"words": []}')
    with pytest.raises(InputError, match=r"vocabulary\.json: not a vocabulary: expected"):
        Vocabulary.load(path)
