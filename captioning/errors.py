"""Errors that a user can act on, and how a script ends."""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(ValueError):
    """What came, what was expected, how to fix it; scripts print it and exit with status 2."""


def reason(error: Exception) -> str:
    """The first line of a library's message, and the next if it ends in a colon; no path."""
    text = getattr(error, "strerror", None) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    text = text if len(text) <= 300 else f"{text[:297]}..."
    return (text if text.isprintable() else repr(text)) or type(error).__name__


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def log(text: object) -> None:
    """Print a message to stderr; stdout is for results alone."""
    print(text, file=sys.stderr, flush=True)


def run(main: Callable[[], int | None], interrupted: str) -> NoReturn:
    """Call `main`, which returns an exit status, and exit; on Ctrl-C print `interrupted`."""

    def stop(*_) -> None:
        # Files are written atomically, so the process may end anywhere. An exception would be
        # lost inside a destructor, and TensorFlow needs seconds to shut down.
        os.write(2, f"\n{interrupted}\n".encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)
    sys.stdout.reconfigure(errors="backslashreplace")  # file names that are not UTF-8
    status = 2
    try:
        status = main() or 0
        sys.stdout.flush()
    except InputError as error:
        log(f"error: {error}")
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] == "captioning":
            raise
        remedy = '. .venv/bin/activate, or pip install ".[train]"'
        log(f"error: {error.name} is not installed in this environment; {remedy}")
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # as in `| head`
            log(f"error: {error}")
        status = 141 if isinstance(error, BrokenPipeError) else 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # stdout would fail again at exit
    except Exception as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "ResourceExhaustedError":
            raise
        log("error: out of memory; use a smaller --batch-size, --units or --beam-width")
    gc.freeze()  # a last collection over all of TensorFlow takes most of a second
    sys.exit(status)
