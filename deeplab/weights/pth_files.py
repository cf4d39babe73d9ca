"""The tensors of a .pth file. Anything else that a training framework saved in it is skipped, never built or run."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from deeplab.weights.strict_loading import Tensors, WeightsError

# Keys under which checkpoints hold their weights: Lightning's, torchvision's references', and common ones.
WRAPPERS = ("state_dict", "model", "model_state_dict", "network", "net")
# Prefixes of wrapped networks' keys: DataParallel, torch.compile, and the attribute of a Lightning module.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
REASON = re.compile(r"(Unsupported \w+|Trying to load unsupported|Can only)[\w .:,<>']{0,160}(?= was not|\. |\n|$)", re.MULTILINE)
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Inert:
    """Replaces every class and function in a file that torch does not know: accepts any arguments and state, does nothing."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class InertDict(Inert):
    """The same for subclasses of dict, in which frameworks keep settings: torch fills only its own kind of dict."""

    def __new__(cls, *arguments: object, **keywords: object) -> OrderedDict[object, object]:  # type: ignore[misc]
        return OrderedDict()


def read_pth(path: str | Path) -> Tensors:
    """The state dict in a .pth file or in a checkpoint of Lightning or torchvision, with the file's keys.

    torch's `weights_only` unpickler builds tensors and plain values only. Everything else (a Namespace of options, a
    framework's settings) becomes `Inert`: no module is imported and no code of the file runs. Raises WeightsError.
    """
    try:
        names = get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else ["argparse.Namespace"]
        try:
            loaded = _load(path, names, Inert)
        except pickle.UnpicklingError:
            loaded = _load(path, names, InertDict)
    except pickle.UnpicklingError as error:
        # torch's message buries the reason in advice to run the file's code.
        reason = REASON.search(str(error))
        raise WeightsError(f"{path}: no checkpoint of tensors and plain values{f' ({reason[0]})' if reason else ''}") from error
    except Exception as error:  # torch raises zip, EOF, key and runtime errors here; all mean the same
        raise WeightsError(f"{path}: not a readable .pth file ({_one_line(str(error)) or type(error).__name__})") from error
    while isinstance(loaded, dict) and any(isinstance(loaded.get(name), dict) for name in WRAPPERS):
        loaded = next(loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), dict))
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise WeightsError(f"{path}: holds no state dict (names -> tensors), as torch.save(network.state_dict(), ...) writes it")
    return {str(key): value for key, value in loaded.items()}


def _load(path: str | Path, names: list[str], stand_in: type[Inert]) -> object:
    with safe_globals([(stand_in, name) for name in names]), warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location="cpu", weights_only=True)


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in ESCAPES.sub("", text).strip().partition("\n")[0])[:200]


def unprefixed(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors with the network's own keys, and the keys of tensors outside it (a loss's weights)."""
    left_out: list[str] = []
    while prefix := next((p for p in PREFIXES if any(key.startswith(p) for key in tensors)), None):
        left_out += [key for key in tensors if not key.startswith(prefix)]
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return tensors, left_out
