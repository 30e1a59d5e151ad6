"""What the base installation promises, for a Python that has nothing else: run by `make test-base`.

No pytest, torch or server is there: the client and the command line have to do without.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import pikfix.client
from pikfix.client import PikFixClient, PikFixError, RestoredPhoto


def check(name: str, holds: bool) -> None:
    """Print one line; end with it where it does not hold."""
    print(f"{'ok' if holds else 'FAILED'}  {name}", flush=True)
    if not holds:
        sys.exit(1)


def pikfix_command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command line."""
    return subprocess.run(
        [sys.executable, "-m", "pikfix.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def main() -> None:
    """Check the installation that runs this."""
    print(f"python {sys.version.split()[0]}, numpy {np.__version__}")
    check("torch is not here", importlib.util.find_spec("torch") is None)
    names = pikfix.client.__all__
    check(f"all {len(names)} names of the client", all(hasattr(pikfix.client, n) for n in names))
    with tempfile.TemporaryDirectory() as folder, PikFixClient("127.0.0.1:1") as client:
        check("no server is ready where none is", not client.is_ready())
        try:
            outcome: RestoredPhoto | PikFixError = client.restore(np.zeros((32, 32), np.uint8))
        except PikFixError as error:
            outcome = error
        check("a picture meets a typed error without a server", isinstance(outcome, PikFixError))
        photo = Path(folder) / "missing.jpg"
        shown = pikfix_command("--help")
        check("pikfix --help", shown.returncode == 0 and "restore" in shown.stdout)
        failed = pikfix_command("restore", str(photo), "-o", f"{folder}/out.png")
        told = failed.stderr.splitlines()
        check(
            "a missing photo is named and exits with 1",
            failed.returncode == 1 and any(str(photo) in line for line in told),
        )
        web = pikfix_command("web")
        check(
            "pikfix web says what it needs",
            web.returncode == 1 and "pip install 'pikfix[web]'" in web.stderr,
        )
        wrong = pikfix_command("restore", "--no-such-option")
        check("a wrong option exits with 2", wrong.returncode == 2)


if __name__ == "__main__":
    main()
