"""`embedder detect`: what sounds when, in every file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from embedder.cli import options as opt
from embedder.cli import start
from embedder.cli.report import Report
from embedder.defaults import DEFAULT_DETECTOR, MEDIAN, THRESHOLD
from embedder.errors import BadRequest, EmbedderError
from embedder.events.formats import (
    FORMATS,
    Recording,
    check_format,
    format_of,
    make_format,
)
from embedder.zoo import MODELS

if TYPE_CHECKING:
    from embedder.model import AudioEmbedder


class Options(NamedTuple):
    """What makes an event, by the names of `EventRules.of`, which explains each."""

    threshold: float | dict[str, float]
    median: int
    min_duration_ms: float
    merge_gap_ms: float


def detect(
    paths: opt.Paths,
    output: opt.Events = None,
    form: opt.EventFormat = None,
    threshold: opt.Threshold = THRESHOLD,
    thresholds: opt.Thresholds = None,
    median: opt.Median = MEDIAN,
    min_duration_ms: opt.MinDurationMs = 0.0,
    merge_gap_ms: opt.MergeGapMs = 0.0,
    model: opt.Detector = DEFAULT_DETECTOR,
    weights: opt.DetectorWeights = None,
    device: opt.Device = "auto",
    runtime: opt.Runtime = "auto",
    workers: opt.Workers = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """List the sound events of every file: label, onset, offset, score."""
    output = None if output == start.STDOUT else output
    files = start.files(paths)
    name = _format_name(files, output, form, overwrite)
    chosen = _by_label(thresholds) if thresholds else threshold
    options = Options(chosen, median, min_duration_ms, merge_gap_ms)
    from embedder.events.finder import EventRules
    from embedder.events.frames import check_detects

    if model in MODELS:  # before its weights are fetched
        check_detects(model, MODELS[model])
    embedder = start.load(model, weights, device, runtime)
    check_detects(embedder.name, embedder.spec)
    EventRules.of(embedder.labels, *options)  # refuses options that make no sense
    mel = embedder.spec.mel
    with Report(len(files.paths)) as report, ExitStack() as stack:
        write = _sink(stack, output, name, (mel.fmin, mel.fmax), overwrite)
        for recording in _recordings(embedder, files, options, start.workers(workers)):
            write(recording)
            report.file(recording.path, recording.error, recording.note)
    report.exit()


def _format_name(
    files: start.Files, output: Path | None, form: str | None, overwrite: bool
) -> str | None:
    """The format to write, None for a table on stdout; BadRequest for what cannot be written."""
    if form is not None:
        check_format(form)
    if output is None:
        name = form
    elif output.is_dir():
        if form is None:
            raise BadRequest(f"{output} is a folder; --format says what to write into it")
        _check_folder(files, output, form, overwrite)
        return form
    else:
        name = form or format_of(output)
        if not output.parent.is_dir():
            raise BadRequest(f"cannot write {str(output)!r}; name a file in an existing folder")
        if output.exists() and not overwrite:
            raise BadRequest(f"{output} exists; --overwrite replaces it")
    if name is not None and not FORMATS[name].several and len(files.paths) > 1:
        raise BadRequest(
            f"{name} holds one recording; name a folder with -o for {len(files.paths)}"
        )
    return name


def _check_folder(files: start.Files, folder: Path, form: str, overwrite: bool) -> None:
    """BadRequest if a recording's file is already in the folder, or two would get the same name."""
    targets: dict[Path, str] = {}
    for path in map(files.name, files.paths):
        target = _beside(folder, path, form)
        if target in targets:
            raise BadRequest(f"{path} and {targets[target]} would both become {target}")
        if target.exists() and not overwrite:
            raise BadRequest(f"{target} exists; --overwrite replaces it")
        targets[target] = path


def _beside(folder: Path, path: str, form: str) -> Path:
    return folder / f"{Path(path).stem}{FORMATS[form].suffix}"


def _sink(
    stack: ExitStack,
    output: Path | None,
    name: str | None,
    band_hz: tuple[float, float],
    overwrite: bool,
) -> Callable[[Recording], None]:
    """A function that writes a recording; closing the stack completes what it has written."""
    if output is not None and name is not None and output.is_dir():
        return _into_folder(output, name, band_hz)
    sink = stack.enter_context(start.lines_to(output, overwrite))
    document = None if name is None else make_format(name, band_hz)
    if document is not None:
        sink.write(document.head)
        stack.callback(sink.write, document.tail)  # also of a job that is interrupted

    def write(recording: Recording) -> None:
        sink.write(_table(recording) if document is None else document.part(recording))
        sink.flush()

    return write


def _into_folder(
    folder: Path, name: str, band_hz: tuple[float, float]
) -> Callable[[Recording], None]:
    def write(recording: Recording) -> None:
        if recording.error is None:
            document = make_format(name, band_hz)
            text = f"{document.head}{document.part(recording)}{document.tail}"
            _beside(folder, recording.path, name).write_text(text, "utf-8")

    return write


def _table(recording: Recording) -> str:
    """Lines for people; none for a file that failed, which stderr reports."""
    if recording.error is not None:
        return ""
    rows = [
        f"{event.onset_s:10.3f} {event.offset_s:10.3f} {event.score:6.3f}  {event.label}\n"
        for event in recording.events
    ]
    return f"{recording.path}\n{''.join(rows) or '  no events'}\n"


def _recordings(
    embedder: AudioEmbedder, files: start.Files, options: Options, workers: int
) -> Iterator[Recording]:
    """Every file in order: its events, or the reason why it failed."""
    from embedder.audio.ahead import decode_ahead
    from embedder.waveforms import Clock

    with closing(decode_ahead(files.paths, embedder.sample_rate, workers)) as decoded:
        for path, blocks in decoded:
            name = files.name(path)
            clock = Clock(blocks)
            try:
                [events] = embedder.events_stream(clock, **options._asdict())
            except EmbedderError as error:
                yield Recording(name, 0.0, [], str(error))
            else:
                seconds = clock.samples / embedder.sample_rate
                yield Recording(name, seconds, events, note=blocks.note)


def _by_label(path: Path) -> dict[str, float]:
    """Read thresholds by label from a JSON object."""
    try:
        thresholds = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"cannot read thresholds from {str(path)!r}: {error}") from error
    if not isinstance(thresholds, dict) or not all(map(_is_number, thresholds.values())):
        raise BadRequest(f"{path} holds no object of label: threshold")
    return thresholds


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
