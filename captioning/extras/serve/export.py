"""A checkpoint as one LiteRT file, with CNN and vocabulary, for captions without TensorFlow.

The searches need no more of the model than its steps: they are in searches.py, in NumPy.
"""

import argparse
import copy
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from captioning.errors import InputError, log
from captioning.extras.serve.light import write_light
from captioning.files import require_writable
from captioning.startup import import_tensorflow, quiet_stderr

LARGE = 600_000  # bytes of float32 weights


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
    write_light(options.output, convert(captioner, options.precision), information)
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
        if precision == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        model = converter.convert()
    return halve(model) if precision == "float16" else model


def halve(model: bytes) -> bytes:
    """Store the large weights of a float32 LiteRT model in float16.

    The converter would round the small ones too: a seventh of the weights, most of the error.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    content = flatbuffer_utils.convert_bytearray_to_object(model)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 3  # of float16
    content.operatorCodes.append(code)
    halved = set()
    for graph in content.subgraphs:
        for place, weights in enumerate(graph.tensors[:]):
            data = content.buffers[weights.buffer].data
            if data is None or len(data) < LARGE:
                continue
            half = copy.copy(weights)
            half.type = schema.TensorType.FLOAT16
            halved.add(weights.buffer)
            weights.buffer = 0  # computed, as all tensors without data
            graph.tensors.append(half)
            operator = schema.OperatorT()
            operator.opcodeIndex = len(content.operatorCodes) - 1
            operator.inputs, operator.outputs = [len(graph.tensors) - 1], [place]
            graph.operators.insert(0, operator)
    for buffer in (content.buffers[number] for number in halved):
        buffer.data = buffer.data.view(np.float32).astype(np.float16).view(np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content))


def signatures(captioner) -> dict:
    """The functions of the file, compiled for one image: name -> tf.function."""
    import tensorflow as tf

    model, size = captioner.model, captioner.image_size
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
        image = [parts[name] for name in sorted(parts) if name.startswith("image")]
        state = [parts[name] for name in sorted(parts) if name.startswith("state")]
        if model.has_attention:  # as model.step, which does not return where it looked
            outputs, state = model.read_words(tf.transpose(words), state)  # (B, 1, U)
            merged, weights = model.merge(tf.transpose(outputs, (1, 0, 2)), image)
            found = {"maps": tf.reduce_mean(weights, axis=1)}  # over the heads: (1, B, P)
            found["scores"] = tf.nn.log_softmax(model.score_words(merged))
        else:
            scores, state = model.step(words, state, image)
            found = {"scores": scores}
        return {**found, **{f"state{i}": part for i, part in enumerate(state)}}

    parts = {}
    for name, part in start(tf.zeros(features.shape)).items():
        captions = None if name.startswith("state") else 1
        parts[name] = tf.TensorSpec((captions, *part.shape[1:]), name=name)
    words = tf.TensorSpec((1, None), tf.int32, name="words")
    return {
        "encode": tf.function(encode, [tf.TensorSpec((1, size, size, 3), tf.uint8)]),
        "start": tf.function(start, [features]),
        "step": tf.function(step).get_concrete_function(words, **parts),
    }
