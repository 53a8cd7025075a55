"""Finding the weights of pretrained models: a local folder first, else a checked download."""

from __future__ import annotations

import os
from pathlib import Path

from distill.errors import DistillError
from distill.teachers.zoo import PretrainedModel

MODELS_VARIABLE = "DISTILL_MODELS"
"""Environment variable that names a folder of weights, laid out as `fennol/<folder>/<file>`."""

TIMEOUT = 30
"""Seconds without an answer after which a download is given up."""


class WeightsError(DistillError, FileNotFoundError):
    """Weights are neither present nor to be downloaded, or do not have their checksum."""


def find_weights(model: PretrainedModel, file: str, cache: str | Path | None = None) -> Path:
    """Path of one weight file, checked against its SHA-256.

    `$DISTILL_MODELS/fennol/<folder>/<file>` is used when that variable is set; otherwise the file
    is downloaded into a cache (once; a partial file is never left under its name).

    Args:
        model: from `distill.teachers.zoo`.
        file: one of `model.files`.
        cache: folder of downloads; the user's cache folder by default.

    Raises:
        WeightsError: names both ways to get the file, or says that it is damaged.
    """
    import pooch

    digest = model.files[file]
    folder = os.environ.get(MODELS_VARIABLE)
    if folder:
        path = Path(folder) / "fennol" / model.folder / file
        if not path.is_file():
            raise WeightsError(
                f"{path} does not exist: {MODELS_VARIABLE} must name the folder that holds "
                f"fennol/{model.folder}/{file}; unset it to download the file instead"
            )
        found = pooch.file_hash(str(path), alg="sha256")
        if found != digest:
            raise WeightsError(
                f"{path} has SHA-256 {found}, expected {digest}: the file is damaged or another "
                "version; replace it"
            )
        return path
    target = Path(cache) if cache is not None else Path(pooch.os_cache("distill"))
    try:
        return Path(
            pooch.retrieve(
                url=f"{model.url}/{file}",
                known_hash=f"sha256:{digest}",
                fname=file,
                path=target / model.folder,
                downloader=pooch.HTTPDownloader(timeout=TIMEOUT, progressbar=False),
            )
        )
    except (OSError, ValueError) as error:
        # pooch raises ValueError for a wrong checksum and requests' errors are OSErrors.
        raise WeightsError(
            f"the weights {file} of {model.name} are not on this machine and could not be "
            f"downloaded from {model.url}: {error}. Either set {MODELS_VARIABLE} to a folder that "
            f"holds fennol/{model.folder}/{file}, or connect to the network and try again"
        ) from error
