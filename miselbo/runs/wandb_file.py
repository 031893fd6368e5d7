"""Reads what W&B keeps of a run on disk (``run-<id>.wandb``): what the dashboard shows once the file is sent.

The file is a log of protobuf records in LevelDB's format: blocks of 32 KiB, records cut into chunks at their borders.
"""

import json
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import (  # type: ignore[attr-defined]
        ArtifactRecord,
        HistoryItem,
        Record,
        RunRecord,
    )

BLOCK, FULL, FIRST, LAST = 2**15, 1, 2, 4
HEADER = 7  # bytes: of the file, and of each chunk (checksum, length, kind)


def chunks(data: bytes) -> Iterator[bytes]:
    """The whole records of a file's bytes; a record that a kill cut short is left out.

    Example:
        >>> chunk = bytes(4) + (5).to_bytes(2, "little") + bytes([FULL]) + b"hello"
        >>> list(chunks(b":W&B" + bytes(3) + chunk + chunk[:9]))
        [b'hello']
    """
    if data[:4] != b":W&B":
        return
    at, parts = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        end = at + HEADER + length
        if kind == 0 or end > len(data):
            return
        parts = (b"" if kind in (FULL, FIRST) else parts) + data[at + HEADER : end]
        at = end
        if kind in (FULL, LAST):
            yield parts


def records(file: Path) -> "list[Record]":
    """The file's protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    found = []
    for chunk in chunks(file.read_bytes()):
        record = Record()
        record.ParseFromString(chunk)
        found.append(record)
    return found


def items(part: "Iterable[HistoryItem]") -> dict[str, Any]:
    """Name and value of an item list, as nested as their keys."""
    found: dict[str, Any] = {}
    for item in part:
        *outer, last = list(item.nested_key) or [item.key]
        at = found
        for key in outer:
            at = at.setdefault(key, {})
        at[last] = json.loads(item.value_json)
    return found


def finished(file: Path, seconds: float = 60) -> "WandbFile":
    """The run of a file once its last record is written, which is shortly after ``finish`` returns."""
    end = time.monotonic() + seconds
    while (shown := WandbFile(file)).exit_code is None and time.monotonic() < end:
        time.sleep(0.2)
    return shown


class WandbFile:
    """What one file shows.

    Attributes:
        run: the run's record: ``run_id``, ``run_group``, ``tags``, ``display_name``.
        config: nested configuration.
        history: rows, each name to value; images and tables as their descriptions.
        summary: last values and headline.
        metrics: of each defined metric (``q1/*``) the one on its x-axis.
        artifacts: records of logged artifacts.
        exit_code: None while there is no last record; W&B then shows the run as failed.
    """

    def __init__(self, file: Path):
        self.history: list[dict[str, object]] = []
        self.summary: dict[str, object] = {}
        self.config: dict[str, object] = {}
        self.metrics: dict[str, str] = {}
        self.artifacts: list[ArtifactRecord] = []
        self.run: RunRecord | None = None
        self.exit_code: int | None = None
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= items(record.run.config.update)
            elif kind == "config":
                self.config |= items(record.config.update)
            elif kind == "history":
                self.history.append(items(record.history.item))
            elif kind == "summary":
                self.summary |= items(record.summary.update)
            elif kind == "metric":
                self.metrics[record.metric.glob_name or record.metric.name] = record.metric.step_metric
            elif kind == "artifact":
                self.artifacts.append(record.artifact)
            elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                self.artifacts.append(record.request.log_artifact.artifact)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code
