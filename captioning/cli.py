"""What the commands share: reading arguments, and errors that end in one line."""

import argparse
import contextlib
import gc
import math
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from captioning.files import FULL, InputError

LONGEST_COMMAND = 2000  # letters that are shown; thousands of pictures may have been named
PATIENCE_SECONDS = 1.5  # from Ctrl-C until a process that is deep in native code is ended


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, which tells what is wrong in one line instead of below the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print the complaint and exit with status 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


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


def _again(option: str) -> str:
    """The command that runs this program again, with `option` too if it is not empty."""
    added = [option] if option and option not in sys.argv else []
    command = shlex.join([*_program(), *sys.argv[1:], *added])
    return command if len(command) < LONGEST_COMMAND else " ".join(["the same command", *added])


def _program() -> list[str]:
    """How this program was called: a script, a module, or a command of an installation."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module and module.name.startswith("captioning"):
        return ["python", "-m", module.name.removesuffix(".__main__")]
    if sys.argv[0].endswith(".py"):
        return ["python", sys.argv[0]]
    return [os.path.basename(sys.argv[0])]  # noqa: PTH119 - which takes an empty name


@contextlib.contextmanager
def _stopping_at_once(farewell: str) -> Iterator[None]:
    """Within the block, end the process soon after Ctrl-C even if Python does not get to run.

    KeyboardInterrupt is raised between two steps of Python, and one step of TensorFlow may take
    minutes. All files are written whole or not at all, so it is safe to leave without clearing up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended, told = os.pipe()
    os.set_blocking(told, False)
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    finished = threading.Event()

    def watch() -> None:
        while number := os.read(ended, 1):
            if number[0] == signal.SIGINT and not finished.wait(PATIENCE_SECONDS):
                os.write(2, f"\n{farewell}\n".encode())
                os._exit(130)

    def tell(unraisable) -> None:
        # Ctrl-C within a destructor is not raised; the watcher ends the process then
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            told_before(unraisable)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    told_before, sys.unraisablehook = sys.unraisablehook, tell
    try:
        yield
    finally:
        sys.unraisablehook = told_before
        finished.set()
        signal.set_wakeup_fd(before)
        os.close(told)
        watcher.join()
        os.close(ended)


def run(main: Callable[[], int | None], interrupted: str, go_on: str = "") -> None:
    """Call `main` and exit with its status; 2 for what the user can mend, 130 for Ctrl-C.

    Args:
        main: the script; returns the exit status, None for 0.
        interrupted: what to tell the user on Ctrl-C, above the command that was given: what is
            saved, and what that command does now.
        go_on: an option that it needs for that.
    """
    farewell = f"{interrupted}\n{_again(go_on)}"
    if sys.stderr is None:  # closed, as some job managers leave it
        _open_stderr()
    if sys.stdout is None:
        print("error: stdout is closed; results have nowhere to go", file=sys.stderr)
        sys.exit(2)
    # a file name that is not UTF-8 is printed with escapes, which JSON reads too
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _stopping_at_once(farewell):
            status = main() or 0
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"\n{farewell}", file=sys.stderr)
        sys.stderr.flush()  # not stdout, whose reader may be waiting too; results are flushed
        os._exit(130)  # TensorFlow takes seconds to take itself apart
    except BrokenPipeError:  # the reader of stdout has gone, as in `| head`
        sys.stderr.close()
        status = 141
    except OSError as error:
        if error.filename is None and error.errno in FULL:  # files of ours raise InputError
            full = f"standard output: cannot be written ({error.strerror})"
            error = f"{full}; free some space and run\n{_again(go_on)}"
            sys.stdout = None  # what it still holds would fail once more at exit
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except Exception as error:
        too_much = isinstance(error, MemoryError)  # NumPy's too
        if not too_much and type(error).__name__ != "ResourceExhaustedError":  # TensorFlow's
            raise
        print(
            "error: out of memory; ask for less (--batch-size, --units, --beam-width) or close "
            "other programs",
            file=sys.stderr,
        )
        status = 2
    gc.freeze()  # or Python looks through all of TensorFlow for garbage, most of a second
    sys.exit(status)


def _open_stderr() -> None:
    """Let messages go nowhere, and not into whatever file is opened next."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - until the process ends


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
    """Import TensorFlow, which takes seconds, without its greetings.

    What is imported stays. To look through it for garbage, again and again while it is imported
    and at every full collection after, would take a fifth of those seconds.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with quiet_stderr():
            import tensorflow as tf

            tf.config.list_logical_devices()
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
