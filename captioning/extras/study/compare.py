"""Two models on one split: the differences of their scores, and whether they may be chance.

The paired bootstrap (Koehn 2004) scores both models on 10,000 draws of the images.
"""

import argparse
import dataclasses

import numpy as np

from captioning import metrics
from captioning.config import BEAM_WIDTH, add_search_options
from captioning.errors import log
from captioning.extras.study import bootstrap
from captioning.files import require_writable

CHANCE = 0.05  # a difference with a smaller p-value is called more than chance
SHOWN = 5  # images that are printed of each side


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models A and B on the images that both were scored on; scores x 100, differences A - B."""

    images: list[str]
    captions: list[tuple[str, str]]  # of A and of B
    scores: tuple[dict[str, float], dict[str, float]]  # of A and of B
    drawn: dict[str, np.ndarray]  # differences in each draw
    gains: np.ndarray  # difference in CIDEr-D of each image

    def in_words(self, name: str) -> str:
        """The difference of a score, its 95 % interval, and what that says."""
        words = f"{self.scores[0][name] - self.scores[1][name]:+.1f}"
        if name not in self.drawn:
            return words
        low, high = np.percentile(self.drawn[name], bootstrap.PERCENTILES)
        return f"{words} (95 %: {low:+.1f} to {high:+.1f}), {in_words(self.p_value(name))}"

    def p_value(self, name: str) -> float:
        """Two-sided: how often the draws are on the other side of no difference."""
        drawn = self.drawn[name]
        rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
        return min(1.0, 2 * float(rarer + 1) / (len(drawn) + 1))


def in_words(p: float) -> str:
    """What a p-value says."""
    often = f"about {100 * p:.2g} times in 100 (p = {p:.2g})"
    verdict = "more than chance" if p < CHANCE else "may be chance"
    return f"{verdict}: between equals, chance makes one as large {often}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m captioning compare`."""
    add = parser.add_argument
    add("models", nargs=2, metavar="CHECKPOINT", help="models A and B")
    add("--report", metavar="OUT.html", help="a page with every image and both captions")
    add_split_options(parser)


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which images are captioned, and how."""
    parser.add_argument("--split", default="dev", help="of --data (default: %(default)s)")
    parser.add_argument("--data", default="prepared", help="prepared folder (default: %(default)s)")
    add_search_options(parser, BEAM_WIDTH)


def main(options: argparse.Namespace) -> None:
    """Print how the models compare, and write the page."""
    if options.report:
        require_writable(options.report)
    captioners, results = evaluate_models(options)
    found = compare(*results)
    names = [name for name in found.scores[0] if name in found.scores[1]]
    if options.report:
        from captioning.extras.study.report import build_report, write_report

        facts = dict(zip(("A, this model", "B, other model"), options.models, strict=True))
        facts |= {f"{name}, A - B": found.in_words(name) for name in names}
        page = build_report(results[0], facts, captioners[0], results[1])
        write_report(options.report, page)
        log(f"wrote {options.report}")
    print("A: {}\nB: {}".format(*options.models))
    print(f"{len(found.images):,} images of the {options.split} split\n")
    print(f"{'':<9}{'A':>8}{'B':>8}  A - B")
    for name in names:
        first, second = (scores[name] for scores in found.scores)
        print(f"{name:<9}{first:8.1f}{second:8.1f}  {found.in_words(name)}")
    order = np.argsort(-found.gains, kind="stable")
    for title, most in (("A", order), ("B", order[::-1])):
        print(f"\nwhere {title} gains most, CIDEr-D")
        for i in most[:SHOWN]:
            print(f"{found.gains[i]:+8.1f}  {found.images[i]}")
            print("          A: {}\n          B: {}".format(*found.captions[i]))


def evaluate_models(options: argparse.Namespace) -> tuple:
    """The Captioner and the Evaluation of each of `options.models`."""
    from captioning import Captioner  # and with it TensorFlow
    from captioning.evaluation import evaluate

    captioners = [Captioner.load(path, names=False) for path in options.models]
    search = (options.beam_width, options.length_penalty, 1, options.consensus)
    how = (options.data, options.split, *search)
    return captioners, [evaluate(captioner, *how) for captioner in captioners]


def compare(first, second) -> Comparison:
    """Compare two Evaluations of a split, on the images that both scored."""
    shared = set(first.images) & set(second.images)
    images = [image for image in first.images if image in shared]
    captions, scores, statistics = [], [], []
    for result in (first, second):
        places = [place for place, image in enumerate(result.images) if image in shared]
        captions.append([result.captions[place] for place in places])
        scores.append(result.scores)
        statistics.append(result.statistics)
        if result.images != images:
            references = [result.references[place] for place in places]
            statistics[-1] = metrics.statistics(references, captions[-1])
            scores[-1] = metrics.score_sums(statistics[-1].sum(axis=0), len(images))
    one, other = map(bootstrap.bootstrap, statistics)  # of the same draws
    gains = 100 * (statistics[0] - statistics[1])[:, -1]
    drawn = {name: one[name] - other[name] for name in one}
    return Comparison(images, list(zip(*captions, strict=True)), tuple(scores), drawn, gains)
