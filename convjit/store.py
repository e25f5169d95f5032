"""What convjit remembers between processes: readable JSON files in the user's directory.

A :class:`Store` is one file of entries by key, versioned, over one that the package ships: a user's
entry stands before a shipped one.  What can go wrong with a file is handled here, once for all:

* It is written under a name of its own and renamed, so that nobody sees half of it; who changes it
  holds a lock, so that two processes that add entries at once both succeed.
* A file that is no such document is set aside (as ``name.corrupt``) with one warning.  One that a
  newer version wrote is left alone; one of an older version counts as empty, and is replaced.
* Where nothing can be written, one warning says so; the entries hold for this process, and the
  next change tries again.
* Fields that nobody here knows are ignored, and kept when the file is written.

Reading costs one ``stat`` while the file stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from convjit import config
from convjit.errors import ConfigError, ConvjitWarning
from convjit.locks import lock_held_over_forks

Entry = Mapping[str, Any]

LOCK_TIMEOUT = 10.0  # seconds; a writer holds the lock for milliseconds

_lock = lock_held_over_forks()
_NOTHING: Mapping[str, Entry] = MappingProxyType({})


class _Corrupt(ValueError):
    """A file that is no document of a store; the message says why."""


class _Newer(ValueError):
    """A document that a newer version wrote."""


class Store:
    """Entries by key, in a JSON file of the user over one that the package ships.

    Parameters
    ----------
    name : str
        Of the file in :func:`convjit.config.cache_dir`, such as ``"tuning.json"``.
    version : int
        Of the entries' form.  Entries of another version are not used.
    shipped : (package, file), optional
        A resource of the same form, for what the user's file does not have.
    directory : Path, optional
        Instead of the user's.

    Attributes
    ----------
    changes : int
        Grows whenever this process finds or makes :meth:`entries` other than they were.
    """

    def __init__(
        self,
        name: str,
        version: int,
        shipped: tuple[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self.name, self.version, self.changes = name, version, 0
        self._directory = directory
        self._resource = shipped
        self._shipped: Mapping[str, Entry] | None = None
        # By path, as the directory may change: a stamp of the file, and the entries then found.
        self._read: dict[Path, tuple[object, Mapping[str, Entry]]] = {}
        self._unwritten: dict[Path, dict[str, Entry | None]] = {}
        self._warned: set[Path] = set()

    @property
    def path(self) -> Path:
        """Where the user's file is, or would be."""
        return (self._directory or config.cache_dir()) / self.name

    # ---------------------------------------------------------------- reading

    def entries(self) -> Mapping[str, Entry]:
        """Every entry by key: the user's, and the shipped ones of other keys.

        Warns
        -----
        ConvjitWarning
            Once, if the user's file cannot be used.
        """
        path = self.path
        stamp = _stamp(path)
        known = self._read.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        problem = ""
        with _lock:
            users: dict[str, Entry] = {}
            if stamp is not None:
                document, problem = self._usable(path)
                users = document["entries"]
            _change(users, self._unwritten.get(path, {}))
            entries = MappingProxyType({**self._from_package(), **users})
            if known is None or known[1] != entries:
                self.changes += 1
            self._read[path] = (stamp, entries)
        self._warn(path, problem)
        return entries

    def _from_package(self) -> Mapping[str, Entry]:
        if self._shipped is None:
            self._shipped = _NOTHING
            if self._resource is not None:
                package, file = self._resource
                text = resources.files(package).joinpath(file).read_text(encoding="utf-8")
                self._shipped = self._document(text)["entries"]
        return self._shipped

    def _usable(self, path: Path) -> tuple[dict[str, Any], str]:
        """The document in the user's file, an empty one if that is of no use, and why it is."""
        try:
            return self._document(path.read_bytes()), ""
        except FileNotFoundError:
            return self._new(), ""
        except _Newer as error:
            return self._new(), f"{path} is not used: {error}. Update convjit, or remove the file."
        except OSError as error:
            return self._new(), f"{path} cannot be read ({error}); convjit goes on without it."
        except _Corrupt as error:
            try:
                with self._locked(path):
                    return self._usable_when_locked(path)
            except (OSError, NotImplementedError, _Newer):
                return self._new(), f"{path} is damaged ({error}) and is not used. Remove it."

    def _usable_when_locked(self, path: Path) -> tuple[dict[str, Any], str]:
        """As :meth:`_usable`; a corrupt file, which nobody can replace now, is set aside.

        Raises
        ------
        _Newer, OSError
        """
        try:
            return self._document(path.read_bytes()), ""
        except FileNotFoundError:
            return self._new(), ""
        except _Corrupt as error:
            aside = path.with_name(f"{path.name}.corrupt")
            os.replace(path, aside)
            return self._new(), f"{path} was damaged ({error}); it is set aside as {aside.name}."

    def _document(self, text: str | bytes) -> dict[str, Any]:
        """The document that a file holds, without entries if its version is older."""
        found = self._of_any_version(text)
        return found if found["version"] == self.version else self._new()

    def _of_any_version(self, text: str | bytes) -> dict[str, Any]:
        """The document that a file holds, which this version or an older one wrote.

        Raises
        ------
        _Corrupt, _Newer
        """
        import json

        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
            raise _Corrupt(str(error)) from error
        if not isinstance(found, dict) or found.get("convjit") != self.name:
            raise _Corrupt(f'it is no object with "convjit": "{self.name}"')
        version, entries = found.get("version"), found.get("entries")
        if not isinstance(version, int):
            raise _Corrupt('its "version" is not a whole number')
        if version > self.version:
            raise _Newer(f"its version is {version}, this convjit knows up to {self.version}")
        if version == self.version and not (
            isinstance(entries, dict) and all(isinstance(e, dict) for e in entries.values())
        ):
            raise _Corrupt('its "entries" are not objects by key')
        return found

    def _new(self) -> dict[str, Any]:
        return {"convjit": self.name, "version": self.version, "entries": {}}

    # ---------------------------------------------------------------- writing

    def update(self, changes: Mapping[str, Entry | None]) -> bool:
        """Add or replace entries of the user, or remove them (None); what else is there stays.

        Parameters
        ----------
        changes : mapping of str to object that JSON knows, or None

        Returns
        -------
        bool
            Whether they were written; if not, they hold for this process.

        Warns
        -----
        ConvjitWarning
            Once for each directory that cannot be written.
        """
        path, problem = self.path, ""
        with _lock:
            pending = self._unwritten.setdefault(path, {})
            pending.update(changes)
            self._read.pop(path, None)
            self.changes += 1
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with self._locked(path):
                    document, problem = self._usable_when_locked(path)
                    _change(document["entries"], pending)
                    write_whole(path, _text(document))
                del self._unwritten[path]
            except _Newer as error:
                problem = f"{path} is left alone: {error}. Update convjit, or remove the file."
            except (OSError, NotImplementedError) as error:
                problem = (
                    f"{path} cannot be written ({error}); what is found holds for this process "
                    "alone. Set CONVJIT_CACHE_DIR to a writable directory."
                )
            written = path not in self._unwritten
        self._warn(path, problem)
        return written

    @staticmethod
    def _locked(path: Path) -> contextlib.AbstractContextManager[Any]:
        """The lock that every process takes before it changes a file."""
        from filelock import FileLock

        return FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT)

    def _warn(self, path: Path, message: str) -> None:
        """One warning for each file, so that a broken one is not told of in every call."""
        if message and path not in self._warned:
            self._warned.add(path)
            warnings.warn(message, ConvjitWarning, stacklevel=4)

    # ---------------------------------------------------------------- files of the user's own

    def export(self, path: str | Path, keep: Callable[[str, Entry], bool] | None = None) -> int:
        """Write the entries to another file, to carry to another machine or to ship.

        Parameters
        ----------
        path : str or Path
        keep : callable, optional
            From key and entry to whether it is written.

        Returns
        -------
        int
            Entries written.

        Raises
        ------
        ConfigError
            If the file cannot be written.
        """
        chosen = {k: e for k, e in self.entries().items() if keep is None or keep(k, e)}
        try:
            write_whole(Path(path), _text({**self._new(), "entries": chosen}))
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error}); name a file in a writable directory."
            ) from error
        return len(chosen)

    def read_file(self, path: str | Path) -> dict[str, Entry]:
        """The entries of a file that :meth:`export` wrote; nothing is remembered.

        Raises
        ------
        ConfigError
            If the file cannot be read or is none of that form and version.
        """
        try:
            found = self._of_any_version(Path(path).read_bytes())
            if found["version"] != self.version:
                raise ValueError(f"its version is {found['version']}")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} cannot be imported ({error}); give a file that was exported as "
                f"{self.name}, version {self.version}."
            ) from error
        entries: dict[str, Entry] = found["entries"]
        return entries


def write_whole(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all, making its directory if needed.

    Raises
    ------
    OSError
        If that is not possible; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _text(document: Mapping[str, Any]) -> bytes:
    """For people too: one field a line, entries in the order of their keys."""
    import json

    ordered = {**document, "entries": dict(sorted(document["entries"].items()))}
    return (json.dumps(ordered, indent=1) + "\n").encode()


def _stamp(path: Path) -> object:
    """Changes when a file is replaced or written to; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _change(entries: dict[str, Any], changes: Mapping[str, Entry | None]) -> None:
    for key, entry in changes.items():
        if entry is None:
            entries.pop(key, None)
        else:
            entries[key] = entry
