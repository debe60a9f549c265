"""Caption a split and score it, beside baselines that show what the figures are worth."""

import dataclasses

import numpy as np

from captioning import baselines, metrics
from captioning.captioner import LENGTH_PENALTY, Captioner, read_features
from captioning.encoders import require_same_encoder
from captioning.features import MADE_BY, FeatureCache
from captioning.files import InputError
from captioning.prepared import Prepared
from captioning.report import CaptionedImage, Report

PROTOCOL = (
    "raw references, lower-cased, punctuation removed, no start, end or unknown tokens; "
    "corpus BLEU with the closest reference length; CIDEr-D with document frequencies of the "
    "split's references; all x 100"
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A captioned and scored split.

    Attributes:
        split: its name.
        images: file names of its readable images.
        captions: the model's, one an image.
        references: raw captions of each image.
        scores: metric -> score x 100.
        cider_d: float (images,), x 100.
        rows: name -> scores, of the baselines that the split has captions enough for.
        floor: the one caption for all.
        diversity: see `captioning.metrics.diversity`.
    """

    split: str
    images: list[str]
    captions: list[str]
    references: list[list[str]]
    scores: dict[str, float]
    cider_d: np.ndarray
    rows: dict[str, dict[str, float]]
    floor: str
    diversity: dict[str, float]


def evaluate(
    captioner: Captioner,
    prepared: Prepared,
    split: str,
    cache: FeatureCache,
    beam_width: int = 1,
    length_penalty: float = LENGTH_PENALTY,
) -> Evaluation:
    """Caption `split` and score the captions, with METEOR where Java is there.

    Raises:
        InputError: the split or its features are missing, or of another encoder.
    """
    require_same_encoder(cache.folder, cache.encoder, captioner.checkpoint.encoder)
    readable = {name for name in cache.images if name not in cache.failed}
    listed = zip(prepared.images(split), prepared.references(split), strict=True)
    known = [(name, captions) for name, captions in listed if name in readable]
    if not known:
        raise InputError(
            f"{cache.folder}: has no image of the {split} split; run {MADE_BY} again for this data"
        )
    names, references = map(list, zip(*known, strict=True))
    captions = captioner.caption_cached(cache, names, beam_width, length_penalty)
    training = prepared.references("train") if "train" in prepared.splits else []
    rows, floor = {}, ""
    if training:
        floor = baselines.typical_caption(training)
        rows["one caption for all"] = metrics.score(references, [floor] * len(references))
    if len(captions) > 1:
        rows["images shuffled"] = metrics.score(references, baselines.shuffled(captions, seed=0))
    if training and split != "train":
        train_rows = cache.rows(prepared.images("train"))
        nearest = baselines.nearest_training_captions(
            cache.pooled[train_rows[train_rows >= 0]],
            [training[place] for place in np.flatnonzero(train_rows >= 0)],
            cache.pooled[cache.rows(names)],
        )
        rows["nearest training image"] = metrics.score(references, nearest)
    if min(map(len, references)) > 1:
        rows["one person against the others"] = baselines.one_against_the_others(references)
    return Evaluation(
        split,
        names,
        captions,
        references,
        metrics.score(references, captions, with_meteor=True),
        metrics.cider_d_per_image(references, captions),
        rows,
        floor,
        metrics.diversity(captions, [caption for image in training for caption in image]),
    )


def build_report(
    result: Evaluation,
    facts: dict[str, str],
    captioner: Captioner,
    prepared: Prepared,
    cache: FeatureCache,
) -> Report:
    """What `captioning.report.write_report` shows of an evaluated split.

    Args:
        result: the evaluation.
        facts: how the scores came about, in words.
        captioner: its checkpoint gives the training curves; where it has attention, the page
            shows where the model looked.
        prepared: tells where the images lie.
        cache: the features that were captioned.
    """
    shape = captioner.model.config.feature_shape
    images = []
    for place, name in enumerate(result.images):
        caption, attention = result.captions[place], None
        if captioner.has_attention and caption:
            features = read_features(cache, cache.rows([name]), shape)
            attention = captioner.attention(features, [caption])[0]
        images.append(
            CaptionedImage(
                name,
                prepared.image_folder / name,
                caption,
                result.references[place],
                float(result.cider_d[place]),
                caption.split() if attention is not None else (),
                attention,
            )
        )
    return Report(
        f"Captions of the {result.split} split",
        facts,
        [("this model", result.scores), *result.rows.items()],
        result.diversity,
        [{**row, "minutes": None} for row in captioner.checkpoint.facts.get("history", [])],
        images,
    )
