"""A checkpoint as one LiteRT file: CNN, search and vocabulary, for captions without TensorFlow.

    python -m captioning export weights/best.safetensors captioner.tflite

Half a minute. The search is that of captioning/decoding.py, converted for one image.
"""

import argparse
import tempfile
from pathlib import Path

from captioning.config import BEAM_WIDTH, MAX_BEAM_WIDTH, number
from captioning.errors import InputError, log
from captioning.extras.serve.light import write_light
from captioning.files import require_writable
from captioning.startup import import_tensorflow, quiet_stderr


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m captioning export`."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a checkpoint of train.py")
    add("output", metavar="OUT.tflite", help="the file to write")
    text = "the width of beam search; greedy decoding is always included (default: %(default)s)"
    add("--beam-width", type=number(int, 1, MAX_BEAM_WIDTH), default=BEAM_WIDTH, help=text)
    text = "of the stored weights; int8: dynamic range, smallest (default: %(default)s)"
    add("--precision", choices=("float16", "float32", "int8"), default="float16", help=text)
    add("--encoder", metavar="FILE", help="the model's encoder if it is not where it was")


def main(options: argparse.Namespace) -> None:
    """Write the file."""
    if Path(options.output).suffix != ".tflite":
        raise InputError(f"{options.output}: expected a name ending in .tflite")
    require_writable(options.output)
    import_tensorflow()
    from captioning.captioner import Captioner
    from captioning.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(options.checkpoint, "float32")
    captioner = Captioner(checkpoint, options.encoder)
    information = {"beam_width": options.beam_width, "precision": options.precision}
    information |= {"encoder": checkpoint.encoder, "facts": checkpoint.facts}
    information["vocabulary"] = checkpoint.vocabulary.to_json()
    model = convert(captioner, options.beam_width, options.precision)
    write_light(options.output, model, information)
    log(f"wrote {options.output}, {Path(options.output).stat().st_size / 1e6:.1f} MB")


def convert(captioner, beam_width: int, precision: str) -> bytes:
    """A LiteRT model with the signatures of `captioning.extras.serve.light`, weights included."""
    import tensorflow as tf

    module, functions = tf.Module(), signatures(captioner, beam_width)
    weights = [*captioner.model.weights, *captioner.encoder.model.weights]
    module.weights = [weight.value for weight in weights]  # what is saved with the functions
    with tempfile.TemporaryDirectory() as folder, quiet_stderr():
        tf.saved_model.save(module, folder, functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, list(functions))
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        return converter.convert()


def signatures(captioner, beam_width: int) -> dict:
    """The functions of the file, compiled for one image: name -> tf.function."""
    import tensorflow as tf

    from captioning.decoding import beam_search, decode_greedily

    model, size, max_words = captioner.model, captioner.image_size, captioner.model.config.max_words
    features = tf.TensorSpec((1, *model.feature_shape), tf.float32)

    def encode(pixels):
        grid = captioner.encoder.model(tf.cast(pixels, tf.float32), training=False)
        grid = tf.reshape(grid, (1, -1, model.feature_shape[-1]))  # (1, P, C)
        return {"features": grid if model.has_attention else tf.reduce_mean(grid, axis=1)}

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

    inputs = {
        encode: [tf.TensorSpec((1, size, size, 3), tf.uint8)],
        greedy: [features],
        beam: [features, tf.TensorSpec((), tf.float32)],
        attention: [features, tf.TensorSpec((1, max_words + 1), tf.int32)],
    }
    if beam_width == 1:
        del inputs[beam]
    if not model.has_attention:
        del inputs[attention]
    return {f.__name__: tf.function(f, inputs[f], autograph=False) for f in inputs}
