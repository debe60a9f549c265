"""What the two scripts share: argument types, and errors that end in one line."""

import argparse
import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator

from captioning.files import InputError


def whole_number(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(
            f"{text}: expected a whole number from {least} to {most:,}"
        )

    return parse


positive_int = whole_number(1)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # which lies in no range


def positive_float(text: str) -> float:
    """A finite number above 0, for argparse."""
    value = _number(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def not_negative_float(text: str) -> float:
    """A finite number from 0 up, for argparse."""
    value = _number(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 up")
    return value


def fraction(text: str) -> float:
    """A number from 0 up to, not including, 1, for argparse."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 to below 1")
    return value


def run(main: Callable[[], int | None], interrupted: str = "stopped") -> None:
    """Call `main` and exit with its status; 2 for what the user can mend, 130 for Ctrl-C.

    Args:
        main: the script; returns the exit status, None for 0.
        interrupted: what to tell the user on Ctrl-C: what is saved and how to go on.
    """
    if sys.stdout is None:
        print("error: stdout is closed; results have nowhere to go", file=sys.stderr)
        sys.exit(2)
    # a file name that is not UTF-8 is printed with escapes, which JSON reads too
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader of stdout has gone, as in `| head`
        sys.stderr.close()
        status = 141
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except Exception as error:
        if type(error).__name__ not in ("MemoryError", "ResourceExhaustedError"):  # TensorFlow's
            raise
        print(
            "error: out of memory; ask for less (--batch-size, --units, --beam-width) or close "
            "other programs",
            file=sys.stderr,
        )
        status = 2
    sys.exit(status)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what native code writes to stderr; show it after all if the block raises.

    TensorFlow greets with a dozen lines while it is imported, before its own log level applies.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def import_tensorflow() -> None:
    """Import TensorFlow, which takes seconds, without its greetings."""
    with quiet_stderr():
        import tensorflow as tf

        tf.config.list_logical_devices()
