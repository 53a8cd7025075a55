"""Finding the weights of pretrained models: a local folder first, else a checked download."""

from __future__ import annotations

import os
from pathlib import Path

from distill.errors import DistillError
from distill.teachers.zoo import PretrainedModel

MODELS_VARIABLE = "DISTILL_MODELS"
"""Environment variable that names a folder of weights: `fennol/<folder>/<file>`, `orb/<file>`."""

TIMEOUT = 30
"""Seconds without an answer after which a download is given up."""

RETRIES = 2
"""Times that a download which failed or did not have its checksum is tried again."""


class WeightsError(DistillError, FileNotFoundError):
    """Weights are neither present nor to be downloaded, or do not have their checksum."""


def find_weights(model: PretrainedModel, file: str, cache: str | Path | None = None) -> Path:
    """Path of one weight file of a model in `distill.teachers.zoo`; see `find_file`."""
    return find_file(
        f"fennol/{model.folder}/{file}", f"{model.url}/{file}", model.files[file], cache
    )


def find_file(
    place: str, url: str, sha256: str | None = None, cache: str | Path | None = None
) -> Path:
    """Path of a weight file, checked against its SHA-256.

    `$DISTILL_MODELS/<place>` is used when that variable is set; otherwise the file is downloaded
    into a cache (once; a partial file is never left under its name, a damaged one is removed and
    downloaded again). For a file whose checksum its authors do not publish, that of the first
    download is kept beside it and holds from then on.

    Args:
        place: path below the folder of models and below the cache.
        url: of the file.
        sha256: expected; None when it is not known.
        cache: folder of downloads; the user's cache folder by default.

    Raises:
        WeightsError: names both ways to get the file, or says that it is damaged.
    """
    folder = os.environ.get(MODELS_VARIABLE)
    if folder:
        path = Path(folder) / place
        if not path.is_file():
            raise WeightsError(
                f"{path} does not exist: {MODELS_VARIABLE} must name the folder that holds "
                f"{place}; unset it to download the file instead"
            )
        require_sha256(path, sha256)
        return path
    return _download(place, url, sha256, _cache_folder(cache))


def is_present(place: str, cache: str | Path | None = None) -> bool:
    """Whether `find_file` would find the file without a network (its checksum is not read)."""
    folder = os.environ.get(MODELS_VARIABLE)
    return ((Path(folder) if folder else _cache_folder(cache)) / place).is_file()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    import pooch

    return str(pooch.file_hash(str(path), alg="sha256"))


def require_sha256(path: Path, sha256: str | None) -> None:
    """Raise `WeightsError` unless `path` has this SHA-256 (None: any)."""
    if sha256 is None:
        return
    found = file_sha256(path)
    if found != sha256:
        raise WeightsError(
            f"{path} has SHA-256 {found}, expected {sha256}: the file is damaged or another "
            "version; replace it"
        )


def _cache_folder(cache: str | Path | None) -> Path:
    import pooch

    return Path(cache) if cache is not None else Path(pooch.os_cache("distill"))


def _download(place: str, url: str, sha256: str | None, cache: Path) -> Path:
    import pooch

    target = cache / place
    pin = target.with_name(target.name + ".sha256")
    known = sha256 or (pin.read_text().strip() if pin.is_file() else None)
    base, _, name = url.rpartition("/")
    store = pooch.create(
        path=target.parent,
        base_url=f"{base}/",
        registry={target.name: f"sha256:{known}" if known else None},
        urls={target.name: url},
        retry_if_failed=RETRIES,
    )
    try:
        store.fetch(
            target.name, downloader=pooch.HTTPDownloader(timeout=TIMEOUT, progressbar=False)
        )
    except (OSError, ValueError) as error:
        # pooch raises ValueError for a wrong checksum and requests' errors are OSErrors.
        raise WeightsError(
            f"the weights {name} are not on this machine and could not be downloaded from "
            f"{base}: {error}. Either set {MODELS_VARIABLE} to a folder that holds {place}, or "
            "connect to the network and try again"
        ) from error
    if sha256 is None and not pin.is_file():
        pin.write_text(file_sha256(target) + "\n")
    return target
