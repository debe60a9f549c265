"""Fit the merge-decoder on a prepared folder; a checkpoint every epoch.

    python train.py --epochs 20 --batch-size 128
    python train.py --epochs 20 --batch-size 128 --resume     # go on after a kill

Reads what the two notebooks wrote (`--data`), writes to `--output`: `epoch-NNN.keras`, one
self-contained checkpoint an epoch; `best.keras`, the one with the highest CIDEr-D on dev;
`history.csv` and `curves.png`; `resume.npz`, the state that `--resume` takes up.
"""

import argparse
import sys
from pathlib import Path

from captioning.cli import (
    ArgumentParser,
    fraction,
    import_tensorflow,
    positive_float,
    positive_int,
    run,
    whole_number,
)
from captioning.files import InputError

FEW_UPDATES = 20  # an epoch, of which a model learns little


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; see `--help`."""
    parser = ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=positive_int, default=20, help="passes over the training captions")
    add("--batch-size", type=positive_int, default=128, help="captions an update")
    add("--data", default="prepared", help="folder that the notebooks prepared")
    add("--output", default="weights", help="folder of the checkpoints")
    add("--resume", action="store_true", help="go on after the last finished epoch in --output")
    add(
        "--encoder", help="whose features to use, of those in DATA/features (default: the only one)"
    )

    model = parser.add_argument_group("the model")
    add = model.add_argument
    add("--attention", choices=("none", "grid"), default="none", help="merge one pooled vector an"
        " image, or also attend to the grid of features")  # fmt: skip
    add("--rnn", choices=("gru", "lstm"), default="gru", help="kind of the RNN")
    add("--units", type=positive_int, default=512, help="width of the RNN and the merged layer")
    add("--heads", type=positive_int, default=8, help="attention heads; they share the units")
    add("--dropout", type=fraction, default=0.5, help="share of word vectors, RNN outputs, image"
        " features and merged activations dropped in training")  # fmt: skip
    add("--freeze-embeddings", action="store_true", help="do not fine-tune the word vectors")
    add("--random-embeddings", action="store_true", help="start from random word vectors instead"
        " of DATA/embeddings.npy")  # fmt: skip

    fit = parser.add_argument_group("the optimiser")
    add = fit.add_argument
    add("--learning-rate", type=positive_float, default=1e-3, help="peak; warm-up, then a cosine")
    add("--weight-decay", type=fraction, default=0.0, help="AdamW's weight decay")
    add("--label-smoothing", type=fraction, default=0.1, help="of the target distribution")
    add("--self-critical-epochs", type=whole_number(0), default=0, help="epochs after --epochs that"
        " raise the CIDEr-D of the model's own captions (Rennie et al. 2017)")  # fmt: skip
    add("--self-critical-rate", type=positive_float, default=1e-5, help="their learning rate")
    add("--no-mirror", action="store_true", help="leave the features of mirrored images unused")
    add(
        "--seed",
        type=whole_number(0),
        default=0,
        help="of everything random; the same seed, the same run",
    )
    add("--bfloat16", action="store_true", help="multiply in bfloat16 (faster on CPUs and GPUs"
        " that have it)")  # fmt: skip
    add("--distribute", choices=("mirrored", "multi-worker"), help="train on all GPUs of this"
        " machine, or on the workers of TF_CONFIG, see docs/scaling.md")  # fmt: skip
    add("--worker-timeout", type=positive_float, default=600, metavar="SECONDS", help="how long to"
        " wait for the other workers at the start")  # fmt: skip
    add("--tensorboard", metavar="DIR", help="also write what TensorBoard shows there: scores,"
        " captions of some dev images, word vectors (default: none)")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.attention == "grid" and options.units % options.heads:
        parser.error(f"--units {options.units} cannot be shared by --heads {options.heads}")
    return options


def main() -> None:
    """Train as the command line says."""
    options = parse_arguments()
    from captioning.prepared import Prepared

    prepared = Prepared(options.data)
    for split in ("train", "dev"):
        if split not in prepared.splits:
            raise InputError(f"{options.data}: has no {split} split, and training needs one")

    team = None
    if options.distribute:
        from captioning.distributed import join

        team, options = join(options, prepared)
    import_tensorflow()
    import keras
    import numpy
    import tensorflow as tf

    from captioning.batches import feature_shape, open_caches
    from captioning.files import exclusive
    from captioning.model import ModelConfig
    from captioning.pictures import plot_history
    from captioning.tensorboard import TensorBoard
    from captioning.training import BEST_FILE, STATE_FILE, Trainer, TrainingConfig

    caches = open_caches(options.data, options.encoder, mirrored=not options.no_mirror)
    embeddings = None if options.random_embeddings else prepared.embeddings()
    model_config = ModelConfig(
        vocabulary_size=len(prepared.vocabulary),
        feature_shape=feature_shape(caches[0], options.attention),
        embedding_size=300 if embeddings is None else embeddings.shape[1],
        rnn=options.rnn,
        units=options.units,
        attention=options.attention,
        heads=options.heads,
        word_dropout=options.dropout,
        rnn_dropout=options.dropout,
        image_dropout=options.dropout,
        merge_dropout=options.dropout,
        train_embeddings=not options.freeze_embeddings,
    )
    config = TrainingConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        label_smoothing=options.label_smoothing,
        self_critical_epochs=options.self_critical_epochs,
        self_critical_rate=options.self_critical_rate,
        seed=options.seed,
    )
    dtype = "mixed_bfloat16" if options.bfloat16 else "float32"
    with exclusive(options.output):
        make = team.trainer if team else Trainer
        trainer = make(prepared, caches, model_config, config, options.output, dtype, embeddings)
        devices = [device.device_type for device in tf.config.list_logical_devices()]
        log(
            f"TensorFlow {tf.__version__}, Keras {keras.__version__}, NumPy {numpy.__version__}; "
            f"{', '.join(devices)}; {dtype}; seed {options.seed}"
        )
        log(
            f"{trainer.train.caption_count:,} training captions, "
            f"{len(prepared.vocabulary):,} words, features {model_config.feature_shape} of "
            f"{caches[0].encoder['name']}{', mirrored too' if len(caches) > 1 else ''}, "
            f"{trainer.model.count_params():,} weights"
        )
        updates = -(-trainer.train.caption_count // options.batch_size)
        if updates < FEW_UPDATES:
            log(f"only {updates} updates an epoch; a smaller --batch-size, such as 8, makes more")
        if options.resume and trainer.resume():
            log(f"resumed after epoch {len(trainer.history)}")
            plot_history(trainer.history, Path(options.output) / "curves.png")  # if killed before
        elif options.resume and trainer.is_first_epoch_unfinished():
            log("no epoch was finished yet, this is the first")
        elif trainer.has_state():
            state = Path(options.output) / STATE_FILE
            if state.exists() or trainer.is_first_epoch_unfinished():
                remedy = "add --resume to go on with it, or choose another --output"
            else:
                remedy = f"its {STATE_FILE} is gone, so it cannot go on; choose another --output"
            raise InputError(f"{options.output}: holds a run already; {remedy}")
        board = None
        if options.tensorboard:
            board = TensorBoard(options.tensorboard, prepared, caches[0], trainer.captioner)
        for row, sample in trainer.epochs():
            print(epoch_line(row, trainer.last_epoch, trainer.best_epoch, sample), flush=True)
            plot_history(trainer.history, Path(options.output) / "curves.png")
            if board:
                board.add_epoch(row)
        if board:
            board.add_word_vectors()
        if not team or team.is_chief:
            best = Path(options.output) / BEST_FILE
            log(f"best epoch {trainer.best_epoch}: {best if best.exists() else 'gone'}")


def epoch_line(row: dict, epochs: int, best_epoch: int, sample: str) -> str:
    """An epoch in one line of fixed format."""
    if row["reward"] is None:
        progress = f"train loss {row['train_loss']:6.3f}"
    else:
        progress = f"reward {row['reward']:10.2f}"
    return (
        f"epoch {row['epoch']:>3}/{epochs}  {progress}  "
        f"dev loss {row['dev_loss']:.3f}  perplexity {row['dev_perplexity']:6.2f}  "
        f"BLEU-4 {row['dev_BLEU-4']:5.2f}  CIDEr-D {row['dev_CIDEr-D']:6.2f}"
        f"{'*' if row['epoch'] == best_epoch else ' '}  {row['minutes']:.1f} min  {sample}"
    )


def log(text: str) -> None:
    """Tell the user; stdout is for results alone."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main, "stopped; the finished epochs are saved, go on with", go_on="--resume")
