"""METEOR, by the Java program that pycocoevalcap brings (`requirements-dev.txt`)."""

import importlib.util
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from captioning.metrics import tokenized

TIMEOUT_SECONDS = 600  # 1,000 images take about ten
ENGLISH = {"a", "an", "and", "the", "with"}  # 23% of Flickr8k's words


def meteor(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> dict[str, float]:
    """METEOR 1.5 for English (Denkowski and Lavie 2014), x 100, by its name; {} if impossible."""
    references, hypotheses = tokenized(references, hypotheses)
    words = [word for captions in references for caption in captions for word in caption]
    is_english = sum(word in ENGLISH for word in words) >= len(words) / 8
    java, package = shutil.which("java"), importlib.util.find_spec("pycocoevalcap")
    if not is_english or java is None or package is None:
        return {}
    jar = Path(package.submodule_search_locations[0], "meteor", "meteor-1.5.jar")
    # The program takes equally many references for every image and keeps the best match.
    most = max(map(len, references))
    padded = [caption for image in references for caption in [*image, *image[:1] * most][:most]]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, "hypotheses"), Path(folder, "references")]
        for file, captions in zip(files, (hypotheses, padded), strict=True):
            file.write_text("".join(f"{' '.join(words)}\n" for words in captions), "utf-8")
        command = [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", jar, *files]
        command += ["-l", "en", "-norm", "-r", str(most)]
        try:
            how = {"stderr": subprocess.PIPE, "text": True, "timeout": TIMEOUT_SECONDS}
            printed = subprocess.check_output(command, **how)
            return {"METEOR": 100 * float(printed.rpartition("Final score:")[2])}
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            warnings.warn(f"METEOR is left out: {error}", stacklevel=2)
            return {}
