"""The state of a fit in a file, from which it goes on to the same bits.

A checkpoint is an npz archive of plain arrays: a version, a description of the fit to
which it belongs, and the numbers of its state. It is written beside the file, brought
to the disk, and put into place at once, so that at every moment the file is a whole
checkpoint, the new one or the one before.
"""

import contextlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

VERSION = 5
_VERSION, _FIT = "jaxfit_checkpoint", "fit"


class Checkpoint:
    """One file.

    Args:
        path: where it is, exactly.

    Raises:
        ValueError: from `read` and `check`, for a file that is damaged, is no
            checkpoint, comes from another version, or belongs to another fit. The file
            stays as it is.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"The folder of the checkpoint {self.path} does not exist; make it "
                "first, or give another path."
            )

    def write(self, fit: Mapping[str, Any], state: PyTree) -> None:
        """Replace the file.

        Args:
            fit: strings and numbers that describe the fit, by name.
            state: arrays.
        """
        arrays: dict[str, Any] = {
            name: np.asarray(leaf) for name, leaf in _named(state).items()
        }
        arrays[_VERSION] = np.asarray(VERSION)
        arrays[_FIT] = np.asarray(json.dumps(dict(fit)))
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        _sync_folder(self.path.parent)

    def read(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """The description of the fit, and its arrays by name; None without a file."""
        if not self.path.exists():
            return None
        try:
            with zipfile.ZipFile(self.path) as archive:
                if archive.testzip() is not None:
                    raise ValueError("a checksum does not match")
            with np.load(self.path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            version = arrays.pop(_VERSION, None)
            fit = json.loads(str(arrays.pop(_FIT, "{}")))
        except PermissionError:
            raise
        except Exception as error:  # damage makes zipfile raise all kinds
            raise self._error(f"is damaged, or none of jaxfit ({error})") from error
        if version is None:
            raise self._error("is an archive of something else")
        if int(version) != VERSION:
            age = "a newer" if int(version) > VERSION else "an older"
            raise self._error(
                f"was written by {age} jaxfit, in version {version} of the format; "
                f"this one reads version {VERSION}"
            )
        return fit, arrays

    def check(self, saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Refuse the checkpoint of another fit.

        Args:
            saved: from `read`.
            expected: of this fit; only what both know is compared.
        """
        other = [
            name
            for name, value in expected.items()
            if None not in (value, saved.get(name)) and value != saved[name]
        ]
        if other:
            words = ", ".join(
                f"{name} ({saved[name]} there, {expected[name]} here)" for name in other
            )
            raise self._error(f"belongs to another fit, which differs in {words}")

    def restore(self, like: PyTree, arrays: Mapping[str, np.ndarray]) -> PyTree:
        """A pytree like this one from arrays by name."""
        leaves = []
        for name, leaf in _named(like).items():
            array = arrays.get(name)
            if array is None or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
                raise self._error(f"is damaged: {name} is missing or has another shape")
            leaves.append(array)
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def mapping(
        self, name: str, arrays: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """A field of a state that is a dictionary of arrays of any shapes."""
        begin, end = f".{name}['", "']"
        return {
            key.removeprefix(begin).removesuffix(end): array
            for key, array in arrays.items()
            if key.startswith(begin)
        }

    def _error(self, what: str) -> "CheckpointError":
        return CheckpointError(
            f"The checkpoint {self.path} {what}. Give another path, or remove the file "
            "to start anew."
        )


class CheckpointError(ValueError):
    """A file that cannot be the checkpoint of this fit."""


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path) or "state": leaf for path, leaf in leaves}


def _sync_folder(folder: Path) -> None:
    """Bring the new name of a file to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
