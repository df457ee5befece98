"""The virtual environment of the HEAR kit, which sees the packages of the running one.

heareval and hearvalidator are installed as published, but with `--no-deps`, because they pin
versions of 2021; current versions of what they use are installed beside them. Packages of the
running environment, above all torch, are seen through a .pth file and not installed again. The
running environment itself is not changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import embedder
from embedder.checkpoints import WEIGHTS_DIR_VARIABLE, cache_dir, weights_dirs
from embedder.children import SAFE_PATH
from embedder.errors import BadRequest, EmbedderError
from eval.hear.startup import FOLDER_VARIABLE

PACKAGES: Final = ("heareval==2021.1.3", "hearvalidator==2021.0.2", "hearbaseline==2021.1.1")
LIBRARIES: Final = (
    *("click", "intervaltree", "librosa", "more-itertools", "pandas>=2.2", "python-slugify"),
    *("pytorch-lightning>=2.4,<3", "scikit-learn", "sed_eval", "soundfile", "torchinfo", "tqdm"),
)
SHARED: Final = ("torch", "numpy")  # these must not be installed a second time
STAMP: Final = "hear-kit.json"


class KitFailed(EmbedderError):
    """The kit cannot be installed, or a part of it ended with an error."""

    code = "kit_failed"


@dataclass(frozen=True, slots=True)
class Kit:
    """An environment in which the kit is installed."""

    folder: Path

    @property
    def python(self) -> Path:
        """The path of its interpreter."""
        return _python(self.folder)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs eval.hear.startup with these arguments."""
        return [str(self.python), "-m", "eval.hear.startup", *arguments]

    def variables(self, threads: int = 1) -> dict[str, str]:
        """Return the environment variables for such a command.

        With them, the process finds modules and weights as this one does, in whatever folder it
        runs. `threads` serve embedding; for predictions one is best, because heareval's networks
        are small.
        """
        ours = Path(embedder.__file__).resolve().parents[1]
        seen = [] if str(ours) in site.getsitepackages() else [str(ours)]
        path = [*seen, *filter(None, [os.environ.get("PYTHONPATH")])]
        weights = [folder.resolve() for folder in weights_dirs()[:-1]]  # the last is the cache
        return {
            **os.environ,
            **SAFE_PATH,
            "PYTHONPATH": os.pathsep.join(path),
            FOLDER_VARIABLE: str(Path.cwd()),
            "PYTHONUNBUFFERED": "1",
            "MPLBACKEND": "agg",
            "OMP_NUM_THREADS": str(threads),
            "EMBEDDER_THREADS": str(threads),
            WEIGHTS_DIR_VARIABLE: os.pathsep.join(map(str, weights)),
        }


def default_folder() -> Path:
    """Return the default folder of the kit: in the user's cache, another for each interpreter."""
    key = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    return cache_dir() / "hear" / f"kit-py{sys.version_info.major}{sys.version_info.minor}-{key}"


def ready(folder: Path) -> Kit | None:
    """Return the kit in this folder if it is complete and belongs to the running environment."""
    stamp = folder / STAMP
    if stamp.is_file() and json.loads(stamp.read_text("utf-8")) == _recipe():
        return Kit(folder)
    return None


def create(folder: Path) -> Kit:
    """Install the kit into `folder`, which appears when all is done, or not at all.

    Raises
    ------
    BadRequest : the folder holds something else.
    KitFailed : pip failed; the message holds the end of its output.
    """
    if folder.exists() and not (folder / STAMP).is_file() and any(folder.iterdir()):
        raise BadRequest(
            f"{folder} is no environment of the kit; name an empty folder or a new one"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        fresh = Path(temporary) / "kit"
        venv.EnvBuilder(with_pip=find_spec("pip") is None).create(fresh)
        user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
        _see_through(fresh, [*site.getsitepackages(), *user])
        _install(fresh)
        (fresh / STAMP).write_text(json.dumps(_recipe()), "utf-8")
        if ready(folder) is None:  # no other process was faster
            shutil.rmtree(folder, ignore_errors=True)
            fresh.replace(folder)
    return Kit(folder)


def _recipe() -> dict[str, Any]:
    """Return all that an environment depends on; if this changes, it must be made again."""
    return {
        "packages": [*PACKAGES, *LIBRARIES],
        "over": sys.prefix,
        "python": sys.version,
        "shared": {name: version(name) for name in SHARED},
    }


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _see_through(folder: Path, packages: Iterable[str]) -> None:
    """Let the environment see other site-packages after its own, editable installs included."""
    code = "import sysconfig, sys; sys.stdout.write(sysconfig.get_path('purelib'))"
    own = _run([str(_python(folder)), "-c", code])
    calls = "; ".join(f"site.addsitedir({path!r})" for path in packages)
    (Path(own.strip()) / "_running_environment.pth").write_text(f"import site; {calls}\n", "utf-8")


def _install(folder: Path) -> None:
    pins = folder / "constraints.txt"
    pins.write_text("".join(f"{name}=={version(name)}\n" for name in SHARED), "utf-8")
    pip = [str(_python(folder)), "-m", "pip", "install", "--quiet", "--no-warn-script-location"]
    _run([*pip, "--constraint", str(pins), *LIBRARIES])
    _run([*pip, "--no-deps", *PACKAGES])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        output = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise KitFailed(f"the kit's environment cannot be made; {command[3]} said:\n{output}")
    return done.stdout
