"""What the launcher needs to know of tritonserver's command line; the rest passes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pikfix.serving.errors import ServingError

DEFAULT_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}

# Flags without a value; every other flag takes one, in the next word or after "=".
_BARE = {"--help", "--disable-auto-complete-config"}
_REPOSITORY = ("--model-repository", "--model-store")
_TRUE = {"true", "1", "on"}


@dataclass(frozen=True)
class Endpoint:
    """A listening socket that the server will open."""

    name: str
    address: str
    port: int
    shared: bool  # several servers may listen on it (--reuse-grpc-port, --reuse-http-port)


class Arguments:
    """A tritonserver command line: flags with their values, and the words as given."""

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self._values: dict[str, list[str]] = {}
        self._positions: list[tuple[str, int]] = []
        index = 0
        while index < len(self.words):
            flag, equals, value = self.words[index].partition("=")
            self._positions.append((flag, index))
            if not equals and flag.startswith("--") and flag not in _BARE:
                index += 1
                value = self.words[index] if index < len(self.words) else ""
            self._values.setdefault(flag, []).append(value)
            index += 1

    def has(self, flag: str) -> bool:
        """Whether the flag was given."""
        return flag in self._values

    def last(self, flag: str, default: str) -> str:
        """The value given last, as tritonserver takes it."""
        return self._values.get(flag, [default])[-1]

    def all(self, flag: str) -> list[str]:
        """Every value given for a flag that may repeat."""
        return list(self._values.get(flag, []))

    def is_true(self, flag: str, default: bool) -> bool:
        """A boolean flag's value."""
        return self.last(flag, str(default)).lower() in _TRUE

    def integer(self, flag: str, default: int) -> int:
        """An integer flag's value; ServingError if it is none."""
        value = self.last(flag, str(default))
        try:
            return int(value)
        except ValueError:
            raise ServingError(f"{flag} must be an integer, not {value!r}") from None

    @property
    def help(self) -> bool:
        """Whether only the usage text is asked for."""
        return "--help" in self._values or "-h" in self._values

    @property
    def repositories(self) -> list[str]:
        """Every --model-repository, as given."""
        return [value for flag in _REPOSITORY for value in self.all(flag)]

    def with_absolute_repositories(self, link: Callable[[Path], Path]) -> list[str]:
        """The words with local repository paths made absolute, and plain by `link`.

        A stub gets its model's path on its command line; a relative one would depend on the
        working directory of two processes.
        """

        def reachable(repository: str) -> str:
            if not repository or is_remote(repository):
                return repository
            return str(link(Path(absolute(repository))))

        words = list(self.words)
        for flag, index in self._positions:
            if flag not in _REPOSITORY:
                continue
            if "=" in words[index]:
                words[index] = f"{flag}={reachable(words[index].partition('=')[2])}"
            elif index + 1 < len(words):
                words[index + 1] = reachable(words[index + 1])
        return words

    def endpoints(self, default_address: str) -> list[Endpoint]:
        """The sockets that a server started with these words listens on."""
        http_address = self.last("--http-address", default_address)
        found = []
        for name, fallback in (
            ("http", default_address),
            ("grpc", default_address),
            ("metrics", http_address),
        ):
            if self.is_true(f"--allow-{name}", True):
                found.append(
                    Endpoint(
                        name,
                        self.last(f"--{name}-address", fallback),
                        self.integer(f"--{name}-port", DEFAULT_PORTS[name]),
                        self.is_true(f"--reuse-{name}-port", False),
                    )
                )
        return found


def is_remote(repository: str) -> bool:
    """Whether a repository is an object store's URL and not a folder."""
    return "://" in repository


def absolute(repository: str) -> str:
    """A local repository's absolute path; URLs stay as they are."""
    if not repository or is_remote(repository):
        return repository
    return str(Path(repository).resolve())
