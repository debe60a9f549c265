"""A checkpoint as one LiteRT file: CNN, search and vocabulary, for captions without TensorFlow.

    python -m captioning export weights/best.safetensors captioner.tflite

Half a minute. The searches need no more of the model than its steps: they are in
searches.py, in NumPy.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

from captioning.errors import InputError, log
from captioning.extras.serve.light import write_light
from captioning.files import require_writable
from captioning.startup import import_tensorflow, quiet_stderr


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m captioning export`."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a checkpoint of train.py")
    add("output", metavar="OUT.tflite", help="the file to write")
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
    information = {"precision": options.precision, "config": asdict(checkpoint.model.config)}
    information |= {"encoder": checkpoint.encoder, "facts": checkpoint.facts}
    information["vocabulary"] = checkpoint.vocabulary.to_json()
    model = convert(captioner, options.precision)
    write_light(options.output, model, information)
    log(f"wrote {options.output}, {Path(options.output).stat().st_size / 1e6:.1f} MB")


def convert(captioner, precision: str) -> bytes:
    """A LiteRT model with the signatures of `captioning.extras.serve.light`, weights included."""
    import tensorflow as tf

    module, functions = tf.Module(), signatures(captioner)
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


def signatures(captioner) -> dict:
    """The functions of the file, compiled for one image: name -> tf.function."""
    import tensorflow as tf

    model, size, max_words = captioner.model, captioner.image_size, captioner.model.config.max_words
    features = tf.TensorSpec((1, *model.feature_shape), tf.float32)
    model.rnn.unroll = True  # each step is one word; Keras' loop could not be converted

    def encode(pixels):
        grid = captioner.encoder.model(tf.cast(pixels, tf.float32), training=False)
        grid = tf.reshape(grid, (1, -1, model.feature_shape[-1]))  # (1, P, C)
        return {"features": grid if model.has_attention else tf.reduce_mean(grid, axis=1)}

    def start(features):
        parts = {"image": model.encode_image(features), "state": model.initial_state(1)}
        return {f"{name}{i}": part for name in parts for i, part in enumerate(parts[name])}

    def step(words, **parts):
        image, state = (
            [parts[name] for name in sorted(parts) if name.startswith(kind)]
            for kind in ("image", "state")
        )
        scores, state = model.step(words, state, image)
        return {"scores": scores, **{f"state{i}": part for i, part in enumerate(state)}}

    def attention(features, words):
        outputs, state = [], model.initial_state(1)
        for t in range(max_words + 1):
            output, state = model.read_words(words[:, t, None], state)
            outputs.append(output)
        image = model.encode_image(features)
        _, weights = model.merge(tf.concat(outputs, axis=1), image)  # (1, heads, L, P)
        return {"maps": tf.reduce_mean(weights, axis=1)}

    parts = {}
    for name, part in start(tf.zeros(features.shape)).items():
        captions = None if name.startswith("state") else 1
        parts[name] = tf.TensorSpec((captions, *part.shape[1:]), name=name)
    words = tf.TensorSpec((1, None), tf.int32, name="words")
    found = {
        "encode": tf.function(encode, [tf.TensorSpec((1, size, size, 3), tf.uint8)]),
        "start": tf.function(start, [features]),
        "step": tf.function(step).get_concrete_function(words, **parts),
    }
    if model.has_attention:
        words = tf.TensorSpec((1, max_words + 1), tf.int32)
        found["attention"] = tf.function(attention, [features, words])
    return found
