"""One file format for everything saved: safetensors with a checked JSON header. Written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from g2m.errors import FileError

FORMAT = "g2m/1"


def checksum(tensors: Mapping[str, Tensor], kind: str = "", meta: str = "") -> str:
    """Return a SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256(f"{FORMAT}|{kind}|{meta}".encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"|{key}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file under a temporary name, then rename it."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file under a temporary name, then rename it."""
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside a file, in a folder that is made; what is written there then becomes the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(argument: str, path: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if there.is_dir() == (there == path) or not os.access(there, os.W_OK):
        raise FileError(f"{argument}: {str(path)!r} cannot be written ({str(there)!r} cannot). Name another.")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy what safetensors would not take as it is: on another device, strided, or in memory shared with another."""
    apart, seen = {}, set()
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[key] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def write(path: str | Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write tensors and JSON metadata as one ``kind`` of file; readers see the old file or the whole new one."""
    path, tensors = Path(path), _apart(tensors)
    text = json.dumps(meta, sort_keys=True)
    header = {"format": FORMAT, "kind": kind, "meta": text, "checksum": checksum(tensors, kind, text)}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask gives; save_file would make it private
        save_file(tensors, temporary, header)
        temporary.chmod(mode)
    return path


def read(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write` wrote and check it before it is believed.

    Raises:
        FileError: if the file is missing, truncated, of another program or kind, or changed since it was written.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"path: no file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise FileError(f"path: {str(path)!r} is truncated or not a safetensors file ({error}).") from None
    if header.get("format") != FORMAT:
        raise FileError(f"path: expected a file of format {FORMAT!r} (got {header.get('format')!r} at {str(path)!r}).")
    if header.get("kind") != kind:
        raise FileError(f"path: expected a {kind} file (got a {header.get('kind')} file at {str(path)!r}).")
    if header.get("checksum") != checksum(tensors, kind, header.get("meta", "")):
        raise FileError(f"path: {str(path)!r} was changed after it was written (its checksum differs). Make it again.")
    return tensors, json.loads(header["meta"])
