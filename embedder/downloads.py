"""Download a file by pooch: whole and verified, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

if TYPE_CHECKING:
    from requests import Response
    from rich.progress import Progress

MAX_DOWNLOAD: Final = 2 << 30  # bytes; the largest published file has 0.3 GB
_CHUNK: Final = 1 << 20
_TIMEOUT: Final = 30.0  # seconds without a byte


def download(
    url: str,
    target: Path,
    sha256: str | None = None,
    inspect: Callable[[Path], None] = lambda _: None,
) -> None:
    """Download a file with a progress bar on the terminal; `target` appears when all is well.

    Several processes may download the same file at once: each writes a file of its own first.

    Parameters
    ----------
    url : its redirects must lead to https.
    sha256 : the hash that the file must have, if it is known.
    inspect : is called with the downloaded file before `target` appears.

    Raises
    ------
    OSError : the file could not be downloaded or written.
    ValueError : it has another hash.
    """
    # Imported here: most processes find their weights on disk.
    import pooch

    def write(url: str, file: str, _: object) -> None:
        _write(url, Path(file))
        Path(file).chmod(0o644)  # pooch's temporary files are the user's alone
        inspect(Path(file))

    with _quiet(pooch.get_logger()):
        pooch.retrieve(url, sha256, target.name, target.parent, downloader=write)


def _write(url: str, file: Path) -> None:
    from pooch import HTTPDownloader
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    responses: list[Response] = []

    def check(response: Response, **_: object) -> None:
        responses.append(response)
        if response.is_redirect:
            _check_redirect(urljoin(response.url, response.headers["location"]))

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        fetch = HTTPDownloader(
            progressbar=_Bar(progress, url.rsplit("/", 1)[-1], file),
            chunk_size=_CHUNK,
            timeout=_TIMEOUT,
            hooks={"response": check},
            headers={"Accept-Encoding": "identity"},
        )
        try:
            fetch(url, str(file), None)
        finally:
            for response in responses:
                response.close()


def _check_redirect(target: str) -> None:
    """Called before the redirect is followed, so that nothing is asked of a plain server."""
    if urlsplit(target).scheme != "https":
        raise ConnectionError(f"it was redirected to {target}, which is no https")


class _Bar:
    """A progress bar in the form that pooch takes; it also ends downloads that grow too large."""

    def __init__(self, progress: Progress, name: str, file: Path) -> None:
        self._progress, self._file = progress, file
        self._task = progress.add_task(name, total=None)

    @property
    def total(self) -> int:
        """Bytes of the whole file; 0: unknown."""
        return int(self._progress.tasks[self._task].total or 0)

    @total.setter
    def total(self, size: int) -> None:
        self._progress.update(self._task, total=size or None)

    def update(self, _: int) -> None:
        """Look at the file: pooch counts whole chunks, which may come in part."""
        size = self._file.stat().st_size
        if size > MAX_DOWNLOAD:
            raise ConnectionError(f"it has more than {MAX_DOWNLOAD >> 20} MB")
        self._progress.update(self._task, completed=size)

    def reset(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without pooch's log on stderr, which tells where it downloads what."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
