"""Run a notebook from top to bottom without a browser, with parameters of your own.

    python tools/run_notebook.py caption_extraction.ipynb --set dataset=data/flickr8k
    python tools/run_notebook.py image_extraction.ipynb --set dataset=data/flickr8k \\
        --set encoder=resnet50 --save runs/image_extraction.ipynb

A notebook's parameters are the assignments in its cell tagged `parameters`. What `--set` gives
is put into a cell of its own below that one. Cells run in the root folder of this repository,
so relative paths among the parameters start there. What the cells print goes to stdout, their
progress bars to stderr; the notebook itself is left as it is unless `--save` names it.
"""

import argparse
import ast
import asyncio
import re
import signal
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from captioning.cli import ArgumentParser, run  # noqa: E402
from captioning.files import InputError, write_text  # noqa: E402

PARAMETERS, INJECTED = "parameters", "injected-parameters"  # cell tags
ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class StreamingClient(NotebookClient):
    """Runs cells and passes on what they print while they run.

    Warnings and progress bars belong to the run, not to its results: they go to stderr alone, and
    the executed notebook is free of them.
    """

    def process_message(self, msg, cell, cell_index):
        """Handle one message of the kernel; see nbclient."""
        if msg["msg_type"] == "stream":
            is_result = msg["content"]["name"] == "stdout"
            print(
                msg["content"]["text"],
                end="",
                file=sys.stdout if is_result else sys.stderr,
                flush=True,
            )
            if not is_result:
                return None
        return super().process_message(msg, cell, cell_index)


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read the notebook `path`.

    Raises:
        InputError: there is none.
    """
    try:
        return nbformat.read(path, as_version=4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, nbformat.reader.NotJSONError) as error:
        raise InputError(f"{path}: not a notebook ({str(error).splitlines()[0]})") from error


def parameters_cell(notebook: nbformat.NotebookNode) -> int:
    """Find the index of the cell tagged `parameters`.

    Raises:
        InputError: no cell is.
    """
    for index, cell in enumerate(notebook.cells):
        if PARAMETERS in cell.metadata.get("tags", []):
            return index
    raise InputError(f"the notebook has no cell tagged {PARAMETERS!r}")


def read_parameters(source: str) -> dict[str, object]:
    """Read the names and default values that the parameters cell assigns."""
    return {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
    }


def parse_value(name: str, text: str, default: object) -> object:
    """Turn what stands behind `NAME=` into a value of the same type as the default.

    Text may be given with or without quotes; all else is a Python literal, such as 5 or True.

    Raises:
        InputError: it is of another type.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if isinstance(default, str):
        return value if isinstance(value, str) else text
    if type(value) is not type(default):
        raise InputError(
            f"{name}={text}: expected {type(default).__name__}, as in {name}={default!r}"
        )
    return value


def set_parameters(notebook: nbformat.NotebookNode, assignments: list[str]) -> None:
    """Put a cell with the `NAME=VALUE` assignments below the parameters cell.

    Raises:
        InputError: an assignment is malformed or names no parameter.
    """
    index = parameters_cell(notebook)
    defaults = read_parameters(notebook.cells[index].source)
    lines = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"{assignment}: expected NAME=VALUE")
        if name not in defaults:
            raise InputError(f"{name}: no such parameter; there are {', '.join(defaults)}")
        lines.append(f"{name} = {parse_value(name, text, defaults[name])!r}")
    if lines:
        cell = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": [INJECTED]})
        notebook.cells.insert(index + 1, cell)


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run all cells in a fresh kernel; their outputs are kept in `notebook`.

    Raises:
        InputError: a cell raised it: what the user gave cannot be used.
        CellExecutionError: a cell failed otherwise.
    """
    client = StreamingClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        extra_arguments=["--log-level=ERROR"],
        on_notebook_start=_let_interrupts_through,
        record_timing=False,
        resources={"metadata": {"path": str(ROOT)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        if error.ename == InputError.__name__:
            raise InputError(error.evalue) from None
        raise
    except KeyboardInterrupt:
        if client.km is not None and client.km.has_kernel:
            kernel = client.km.provisioner.process  # nbclient would ask it to end, for seconds
            kernel.kill()
            kernel.wait()
        raise


def _let_interrupts_through(notebook: nbformat.NotebookNode) -> None:
    """Make Ctrl-C a KeyboardInterrupt; nbclient's own handler ends in an error about its kernel."""
    asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write `notebook` without what differs from machine to machine."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    write_text(path, nbformat.writes(notebook) + "\n")


def main() -> int:
    """Run `python tools/run_notebook.py`; returns the exit status."""
    parser = ArgumentParser(
        description=__doc__.split("\n\n", 1)[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="assignments",
        help="give a parameter another value; may be repeated",
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="write the executed notebook to FILE (default: its files in the prepared folder only)",
    )
    options = parser.parse_args()
    notebook = read_notebook(options.notebook)
    set_parameters(notebook, options.assignments)
    if options.assignments and Path.cwd() != ROOT:
        print(f"relative paths among the parameters start at {ROOT}", file=sys.stderr)
    try:
        execute(notebook)
    except CellExecutionError as error:
        print(ANSI_COLOUR.sub("", error.traceback), file=sys.stderr)
        return 1
    except DeadKernelError:
        print(f"{options.notebook}: the kernel died; was there enough memory?", file=sys.stderr)
        return 1
    if options.save:
        save(notebook, options.save)
    return 0


if __name__ == "__main__":
    run(main, "stopped; what was saved is kept (features: every five seconds), go on with")
