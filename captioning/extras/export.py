"""A checkpoint as one LiteRT file: CNN, search and vocabulary, for captions without TensorFlow.

    python -m captioning export weights/best.safetensors captioner.tflite
    python -m captioning export weights/best.safetensors small.tflite --precision int8

Half a minute. The file captions greedily and with the beam width that is given here; the search is
that of captioning/decoding.py, converted for one image.
"""

import argparse
import tempfile
from pathlib import Path

from captioning.config import BEAM_WIDTH, MAX_BEAM_WIDTH, number
from captioning.errors import InputError, log, reason
from captioning.files import require_writable

PRECISIONS = ("float16", "float32", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m captioning export`."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a checkpoint of train.py")
    add("output", metavar="OUT.tflite", help="the file to write")
    text = "the width of beam search; greedy decoding is always included (default: %(default)s)"
    add("--beam-width", type=number(int, 1, MAX_BEAM_WIDTH), default=BEAM_WIDTH, help=text)
    text = "of the stored weights; int8: dynamic range, smallest (default: %(default)s)"
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0], help=text)
    add("--encoder", metavar="FILE", help="the model's encoder if it is not where it was")


def main(options: argparse.Namespace) -> None:
    """Export a checkpoint."""
    if Path(options.output).suffix != ".tflite":
        raise InputError(f"{options.output}: expected a name ending in .tflite")
    require_writable(options.output)
    from captioning.startup import import_tensorflow

    import_tensorflow()
    from captioning.captioner import Captioner
    from captioning.checkpoint import Checkpoint
    from captioning.extras.light import write_light

    captioner = Captioner(Checkpoint.load(options.checkpoint, "float32"), options.encoder)
    model = convert(captioner, options.beam_width, options.precision)
    checkpoint = captioner.checkpoint
    information = {
        "beam_width": options.beam_width,
        "precision": options.precision,
        "encoder": checkpoint.encoder,
        "vocabulary": checkpoint.vocabulary.to_json(),
        "facts": checkpoint.facts,
    }
    write_light(options.output, model, information)
    log(f"wrote {options.output}, {Path(options.output).stat().st_size / 1e6:.1f} MB")


def convert(captioner, beam_width: int, precision: str) -> bytes:
    """A LiteRT model with the signatures of `captioning.extras.light`, weights included."""
    import tensorflow as tf

    from captioning.startup import quiet_stderr

    module = tf.Module()
    weights = [*captioner.model.weights, *captioner.encoder.model.weights]
    module.variables_ = [weight.value for weight in weights]  # else they would not be saved
    functions = signatures(captioner, beam_width)
    with tempfile.TemporaryDirectory() as folder, quiet_stderr():
        tf.saved_model.save(module, folder, functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, list(functions))
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # of many types, for operations that LiteRT lacks
            problem = f"LiteRT cannot run this model ({reason(error)})"
            raise InputError(f"{captioner.checkpoint.encoder['name']}: {problem}") from None


def signatures(captioner, beam_width: int) -> dict:
    """The functions of the file, compiled for one image: name -> tf.function."""
    import tensorflow as tf

    from captioning.decoding import beam_search, decode_greedily

    model, size, max_words = captioner.model, captioner.image_size, captioner.model.config.max_words
    features = tf.TensorSpec((1, *model.feature_shape), tf.float32, "features")

    def encode(pixels):
        grid = captioner.encoder.model(tf.cast(pixels, tf.float32), training=False)
        if not model.has_attention and len(grid.shape) == 4:
            grid = tf.reduce_mean(grid, (1, 2))
        return {"features": tf.reshape(grid, features.shape)}

    def greedy(features):
        return decode_greedily(model, features, max_words)._asdict()

    def beam(features, length_penalty):
        return beam_search(model, features, beam_width, length_penalty, max_words)._asdict()

    def attention(features, words):
        def step(t, outputs, state):
            output, state = model.read_words(words[:, t, None], state)
            outputs += tf.one_hot([t], max_words + 1)[:, :, None] * output
            return t + 1, outputs, state

        start = 0, tf.zeros((1, max_words + 1, model.config.units)), model.initial_state(1)
        _, outputs, _ = tf.while_loop(lambda t, *_: t <= max_words, step, start)
        _, weights = model.merge(outputs, model.encode_image(features))  # (1, heads, L, P)
        return {"maps": tf.reduce_mean(weights, axis=1)}

    made = {
        "encode": (encode, tf.TensorSpec((1, size, size, 3), tf.uint8, "pixels")),
        "greedy": (greedy, features),
    }
    if beam_width > 1:
        made["beam"] = (beam, features, tf.TensorSpec((), tf.float32, "length_penalty"))
    if model.has_attention:
        made["attention"] = (attention, features, tf.TensorSpec((1, max_words + 1), tf.int32))
    return {
        name: tf.function(function, input_signature=inputs, autograph=False)
        for name, (function, *inputs) in made.items()
    }
