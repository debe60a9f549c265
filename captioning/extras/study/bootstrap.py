"""How sure a score is: scores of 10,000 resamples of the images. METEOR, not a sum, has none."""

import numpy as np

from captioning import metrics

RESAMPLES, AT_ONCE = 10_000, 100
PERCENTILES = [2.5, 97.5]  # the ends of the 95 % interval
DIVERSITY = (
    "{vocabulary:,} different words, {distinct:.0%} of the captions distinct, {copied:.0%} copied "
    "word for word from training, {length:.1f} words per caption"
)


def bootstrap(statistics: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Score 10,000 resamples of the images, the same for each model: metric -> (resamples,).

    `statistics` (images, 12) are those of `captioning.metrics`.
    """
    rng, images, drawn_sums = np.random.default_rng(seed), len(statistics), []
    for _ in range(RESAMPLES // AT_ONCE):
        drawn = rng.integers(images, size=(AT_ONCE, images)) + images * np.arange(AT_ONCE)[:, None]
        times = np.bincount(drawn.ravel(), minlength=AT_ONCE * images).reshape(AT_ONCE, images)
        drawn_sums.append(times @ statistics)
    return metrics.score_sums(np.concatenate(drawn_sums), images)  # sums: (resamples, 12)


def intervals(statistics: np.ndarray) -> dict[str, list[float]]:
    """The 95 % interval of each score, [low, high], by `statistics` as for `bootstrap`."""
    drawn = bootstrap(statistics)
    return {name: np.percentile(values, PERCENTILES).tolist() for name, values in drawn.items()}


def score_table(result, intervals: dict[str, list], facts: dict[str, str]) -> str:
    """Facts, the scores of an Evaluation beside its baselines, and diversity, as text."""
    lines = [f"{name + ':':<18}{fact}" for name, fact in facts.items()]
    names = list(result.scores)
    lines.append(f"\n{'':<30}" + "".join(f"{name:>9}" for name in names))
    low, high = ({name: pair[i] for name, pair in intervals.items()} for i in (0, 1))
    rows = {"this model": result.scores, "  95 % interval, from": low, "  to": high, **result.rows}
    for row, scores in rows.items():
        cells = (f"{scores[name]:9.1f}" if name in scores else " " * 9 for name in names)
        lines.append(f"{row:<30}" + "".join(cells))
    if "METEOR" not in names:
        lines.append("METEOR is left out: it needs Java, pycocoevalcap and English captions")
    return "\n".join([*lines, "", DIVERSITY.format(**result.diversity)])
