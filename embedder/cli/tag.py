"""`embedder tag`: what sounds in every file, as labels with their probabilities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeAlias

from embedder.cli import options as opt
from embedder.cli import start
from embedder.cli.report import Report
from embedder.defaults import DEFAULT_MODEL, TOP_K
from embedder.errors import EmbedderError

if TYPE_CHECKING:
    from embedder.model import AudioEmbedder

Tags: TypeAlias = list[dict[str, Any]]


def tag(
    paths: opt.Paths,
    top: opt.Top = TOP_K,
    as_json: opt.AsJson = False,
    output: opt.TagLines = None,
    model: opt.Model = DEFAULT_MODEL,
    weights: opt.Weights = None,
    device: opt.Device = "auto",
    runtime: opt.Runtime = "auto",
    workers: opt.Workers = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """Show what sounds in every file: labels with their probabilities."""
    files = start.files(paths)
    with start.lines_to(output, overwrite) as sink:
        embedder = start.load(model, weights, device, runtime)
        with Report(len(files.paths)) as report:
            for path, tags, error, note in _tags(embedder, files, top, start.workers(workers)):
                if as_json or output:
                    line = {"path": path, "tags": tags, "error": error, "note": note}
                    sink.write(f"{json.dumps(line, ensure_ascii=False)}\n")
                elif error is None:
                    scores = "".join(f"{tag['score']:8.3f}  {tag['label']}\n" for tag in tags)
                    sink.write(f"{path}\n{scores}")
                sink.flush()
                report.file(path, error, note)
    report.exit()


def _tags(
    embedder: AudioEmbedder, files: start.Files, top: int, workers: int
) -> Iterator[tuple[str, Tags, str | None, str | None]]:
    """Each file's path, its tags with the most probable first, its error, and a note."""
    from embedder.audio.ahead import decode_ahead

    with closing(decode_ahead(files.paths, embedder.sample_rate, workers)) as decoded:
        for path, blocks in decoded:
            name = files.name(path)
            try:
                scores, order = embedder.tags_stream(blocks)[0].sort(descending=True)
            except EmbedderError as error:
                yield name, [], str(error), None
                continue
            best = zip(scores[:top].tolist(), order[:top].tolist(), strict=True)
            tags = [{"label": embedder.labels[i], "score": round(score, 3)} for score, i in best]
            yield name, tags, None, blocks.note
