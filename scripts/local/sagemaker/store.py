"""State on disk: one JSON file per resource, with its events that are not delivered yet.

A file holds {"record": {...} or null, "events": [{"seq": n, "envelope": {...}}]}. The record and the event
that announces its change are replaced in one rename, so a killed server neither forgets an event nor
announces something that did not happen. A null record is a deleted resource with events still to deliver.
"""

import copy
import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]

TRAINING_JOBS = "training-jobs"
MODELS = "models"
ENDPOINT_CONFIGS = "endpoint-configs"
ENDPOINTS = "endpoints"
KINDS = (TRAINING_JOBS, MODELS, ENDPOINT_CONFIGS, ENDPOINTS)


class Store:
    """Resources by kind and name. Records are copied in and out; hold `lock` to read, decide and write."""

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self._folder = folder
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}
        self._owed: dict[int, tuple[str, str]] = {}
        for kind in KINDS:
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for leftover in (folder / kind).glob("*.tmp"):
                leftover.unlink()
            for path in (folder / kind).glob("*.json"):
                self._load(kind, path)
        self._next_seq = max(self._owed, default=0) + 1

    def _load(self, kind: str, path: Path) -> None:
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            events = [event["seq"] for event in entry["events"]]
            entry["record"]
        except (ValueError, KeyError, TypeError) as exc:
            raise ValueError(f"{path} is not a state file of this server; move it away: {exc!r}") from exc
        key = (kind, path.stem)
        self._entries[key] = entry
        self._owed.update(dict.fromkeys(events, key))

    def get(self, kind: str, name: str) -> Record | None:
        """A copy of the record, or None."""
        with self.lock:
            entry = self._entries.get((kind, name))
            return copy.deepcopy(entry["record"]) if entry else None

    def all(self, kind: str) -> list[Record]:
        """Copies of all records of a kind, in no order."""
        with self.lock:
            return [
                copy.deepcopy(entry["record"])
                for (of, _), entry in self._entries.items()
                if of == kind and entry["record"] is not None
            ]

    def put(self, kind: str, name: str, record: Record, event: Record | None = None) -> None:
        """Create or replace a record and add `event` to what is to be delivered, atomically."""
        self._write(kind, name, copy.deepcopy(record), event)

    def delete(self, kind: str, name: str, event: Record | None = None) -> None:
        """Remove a record; the file stays until its events are delivered."""
        self._write(kind, name, None, event)

    def next_event(self) -> tuple[int, Record] | None:
        """The oldest undelivered event: (sequence number, envelope)."""
        with self.lock:
            if not self._owed:
                return None
            seq = min(self._owed)
            for event in self._entries[self._owed[seq]]["events"]:
                if event["seq"] == seq:
                    return seq, event["envelope"]
            raise RuntimeError(f"event {seq} is owed by {self._owed[seq]} but not stored there")

    def event_done(self, seq: int) -> None:
        """The event was delivered, or dropped."""
        with self.lock:
            kind, name = self._owed.pop(seq)
            entry = self._entries[(kind, name)]
            self._replace(kind, name, entry["record"], [e for e in entry["events"] if e["seq"] != seq])

    def _write(self, kind: str, name: str, record: Record | None, event: Record | None) -> None:
        with self.lock:
            entry = self._entries.get((kind, name), {"events": []})
            events = list(entry["events"])
            seq = None
            if event is not None:
                seq = self._next_seq
                self._next_seq += 1
                events.append({"seq": seq, "envelope": event})
            self._replace(kind, name, record, events)
            if seq is not None:
                self._owed[seq] = (kind, name)
            self.changed.notify_all()

    def _replace(self, kind: str, name: str, record: Record | None, events: Iterable[Record]) -> None:
        path = self._folder / kind / f"{name}.json"
        entry = {"record": record, "events": list(events)}
        if record is None and not entry["events"]:
            self._entries.pop((kind, name), None)
            path.unlink(missing_ok=True)
            return
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(entry), encoding="utf-8")
        temporary.replace(path)
        self._entries[(kind, name)] = entry
