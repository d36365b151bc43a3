"""Tells a fasts3-mount which files a program will read, so that they are there when it does.

A hint changes only when bytes are fetched. Paths that are not on such a mount cost nothing and are
no error, so a program may give hints wherever it runs.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Callable, Generic, Iterable, Iterator, Sequence, TypeVar, Union

__all__ = ["Ahead", "prefetch"]

Path = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]
"""The path of a file, or of a directory, which stands for its files."""

Item = TypeVar("Item")

_ATTRIBUTE = "user.s3.prefetch"


def prefetch(paths: Path | Iterable[Path]) -> int:
    """Has the mount fetch files in this order, and does not wait for them.

    A directory stands for the files in it, without those of its subdirectories. Returns how many of
    the paths a mount was told.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        paths = [paths]
    told = 0
    for path in paths:
        try:
            os.getxattr(path, _ATTRIBUTE)
            told += 1
        except (AttributeError, OSError, TypeError, ValueError):
            # Another file system or operating system, no such file, or no path at all.
            continue
    return told


class Ahead(Generic[Item]):
    """A sampler or batch sampler whose next samples are prefetched.

    Yields what `sampler` yields: indices, or batches of indices. `paths` has the path or the paths
    of each index, as a sequence, a dict, or a function. The files of up to `depth` samples are
    fetched ahead of the one that is yielded. Everything else about it is the sampler's:
    `set_epoch`, `batch_size`, its length.
    """

    def __init__(
        self,
        sampler: Iterable[Item],
        paths: Sequence[Any] | dict[Any, Any] | Callable[[Any], Any],
        depth: int = 512,
    ) -> None:
        if depth < 1:
            raise ValueError("depth must be at least 1")
        self.sampler = sampler
        self.paths = paths
        self.depth = depth

    def __iter__(self) -> Iterator[Item]:
        ahead: deque[tuple[Item, int]] = deque()
        samples = 0
        for item in self.sampler:
            indices = _indices(item)
            for index in indices:
                prefetch(self._paths_of(index))
            ahead.append((item, len(indices)))
            samples += len(indices)
            while samples > self.depth:
                item, length = ahead.popleft()
                samples -= length
                yield item
        for item, _ in ahead:
            yield item

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # Called for what is not found here; `sampler` is not while this is being unpickled.
        if name == "sampler":
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def _paths_of(self, index: Any) -> Any:
        return self.paths(index) if callable(self.paths) else self.paths[index]


def _indices(item: Any) -> Sequence[Any]:
    """Those of a batch, or the one."""
    return item if isinstance(item, (list, tuple)) else [item]
