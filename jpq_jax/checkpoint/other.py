"""Files and folders that are no checkpoint we read: what each is, and what to do with it."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path

HEAD = 4096  # bytes by which a file is recognized
_EXPECTED = "a safetensors, .npz, .jpq or Flax msgpack file, or a Hugging Face or orbax folder"
_PYTORCH = (
    "PyTorch's format, a pickle, which can run code and is not read; to turn it into safetensors, "
    "run in Python: import torch; from safetensors.torch import save_file; "
    "save_file({k: v.contiguous().clone() for k, v in torch.load('FILE', map_location='cpu')"
    ".items()}, 'model.safetensors'), or so for an entry such as ['state_dict'] of it"
)
_TORCHSCRIPT = (
    "TorchScript, which can run code and is not read: save torch.jit.load('FILE').state_dict() as "
    "safetensors"
)
_PICKLE = f"a pickle, which can run code and is not read: if PyTorch wrote it, see {_PYTORCH}"
_KERAS = "HDF5, such as Keras' weights: load it there and save its weights by name with numpy.savez"
_TENSORFLOW = "load it in TensorFlow and save its variables by name with numpy.savez"
_SAVED_MODEL = f"a TensorFlow SavedModel or graph: {_TENSORFLOW}"
_GGUF = "GGUF, of quantized weights: take the safetensors that it was made of"
_ONNX = "ONNX: save its initializers with numpy.savez, each by onnx.numpy_helper.to_array"
_PACKED = "a packed archive: unpack it"

_SIGNS = {
    0: {
        b"version https://git-lfs": "a Git LFS pointer in place of a file: run `git lfs pull`",
        b"\x89HDF\r\n\x1a\n": _KERAS,
        b"GGUF": _GGUF,
        b"\x93NUMPY": "an array without a name (.npy): save arrays by name with numpy.savez",
        b"model_checkpoint_path": f"the list of a TensorFlow checkpoint: {_TENSORFLOW}",
        **{bytes([0x80, protocol]): _PICKLE for protocol in range(2, 6)},
        b"\x1f\x8b": _PACKED,
        b"\x28\xb5\x2f\xfd": _PACKED,
        b"\xfd7zXZ": _PACKED,
        b"BZh": _PACKED,
        b"7z\xbc\xaf": _PACKED,
    },
    4: {b"TFL3": "TensorFlow Lite: take the model that it was made of"},
    257: {b"ustar": _PACKED},
}
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")
_PROTOBUF = b"\x12\x1a\x22\x3a\x42"  # what follows the version in ONNX

_IN_FOLDERS = {
    "saved_model.pb": _SAVED_MODEL,
    "*.data-00000-of-*": f"a TensorFlow checkpoint: {_TENSORFLOW}",
    "*.bin": _PYTORCH,
    "*.pt": _PYTORCH,
    "*.pth": _PYTORCH,
    "*.ckpt": _PYTORCH,
    "*.h5": _KERAS,
    "*.keras": _KERAS,
    "*.gguf": _GGUF,
    "*.onnx": _ONNX,
}
_READABLE = ("*.safetensors", "*.npz", "*.jpq", "*.msgpack", "checkpoint_*")  # the last is Flax's
_LOOKED_AT = 10_000  # files and folders below one without a checkpoint


def refused_file(path: Path, head: bytes) -> ValueError:
    """An error that says what a file is, by how it begins."""
    return ValueError(f"{path}: got {_what(path, head)}; expected {_EXPECTED}")


def by_sign(head: bytes) -> str:
    """What a file is that begins with a sign of its format; empty without one."""
    for offset, signs in _SIGNS.items():
        for sign, what in signs.items():
            if head[offset:].startswith(sign):
                return what
    return ""


def _what(path: Path, head: bytes) -> str:
    if not head:
        return "an empty file"
    if sign := by_sign(head):
        return sign
    if head.startswith(b"PK"):
        return _in_zip(path)
    return _text(head) or _protobuf(path, head) or f"an unknown file, which begins with {head[:16]}"


def _in_zip(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return "a truncated zip archive"
    with zipfile.ZipFile(path) as archive:
        names = {Path(name).name for name in archive.namelist()}
    if "data.pkl" in names:
        return _TORCHSCRIPT if "constants.pkl" in names else _PYTORCH
    return (
        _KERAS if "model.weights.h5" in names else "a zip archive of other than arrays: unpack it"
    )


def _text(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_PAGES):
        return "an HTML or XML page in place of a file: download the file itself"
    return "a JSON text" if text.startswith((b"{", b"[")) else ""


def _protobuf(path: Path, head: bytes) -> str:
    if path.suffix == ".pb":
        return _SAVED_MODEL
    is_model = head[0] == 8 and len(head) > 2 and head[1] < 32 and head[2] in _PROTOBUF
    return _ONNX if is_model or path.suffix == ".onnx" else ""


def refused_folder(folder: Path) -> ValueError:
    """An error that says what is in a folder without a checkpoint, or below it."""
    for pattern, what in _IN_FOLDERS.items():
        for path in sorted(folder.glob(pattern)):
            return ValueError(
                f"{folder}: got a folder with {path.name}, {what}; expected {_EXPECTED}"
            )
    below = [str(path.relative_to(folder)) for path in _readable(folder)]
    where = f"; below it: {', '.join(below[:8])}" if below else " or below it"
    return ValueError(
        f"{folder}: got a folder without a checkpoint in it{where}; expected {_EXPECTED}"
    )


def _readable(folder: Path) -> list[Path]:
    """Files and folders below it that could be read."""
    below = list(itertools.islice(folder.rglob("*"), _LOOKED_AT))
    trees = [path.parent for path in below if path.name == "_METADATA"]
    files = [path for path in below if path.is_file()]
    return sorted(trees + [path for path in files if any(map(path.match, _READABLE))])
