"""Pretrained FeNNol models that can be named: where they are, their checksums and licences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PretrainedModel:
    """Files of a pretrained model.

    Attributes:
        name: what it is called after `fennol:`.
        folder: below the collection, and below `$DISTILL_MODELS/fennol`.
        files: file names and their SHA-256.
        url: of the folder, without a trailing slash.
        elements: chemical symbols it was made for.
        licence: of the weights.
        reference: to cite.
    """

    name: str
    folder: str
    files: dict[str, str]
    url: str
    elements: str
    licence: str
    reference: str


COLLECTION = "https://raw.githubusercontent.com/FeNNol-tools/FeNNol-PMC/HEAD"
"""FeNNol's collection of pretrained models."""

_ANI1CCX = (
    "f27afaa2fc235c92579806806c85e3d2cad5a8baca3093be5150b2ab188ce69b",
    "b5ce059731156da9eeef8f76133f827bbb04880df2a2345839466445003f36ed",
    "2d86a61ac3c0b8eefafdef55fe585597df2914f936746510847cb29deb0413d3",
    "a26f9fe37b9dbf4854751df9383e366c8206efa77b5249d823aadc58955700fd",
    "8e1ae6031e257c2aa378a38a01fe2346ccf737b5b317dc5ff847845e0b54f6dc",
    "8a9e6cbb39624e86fb45a0a890f68026625449f8a7a204a20358606bc43712a8",
    "4fb826e121556c9fe88487da4e1a23943b981e5232a635d8d7b18f8f45900281",
    "48b7e2786d9a669a109b35e365cc0ff334cf6e8f8c1a08782f702bac143fac99",
)

FENNOL_MODELS = {
    "ani1ccx": PretrainedModel(
        name="ani1ccx",
        folder="ANI/ANI1CCX",
        files={f"ani1ccx_model{i}.fnx": digest for i, digest in enumerate(_ANI1CCX)},
        url=f"{COLLECTION}/ANI/ANI1CCX",
        elements="H C N O",
        licence="MIT",
        reference="J. S. Smith et al., Nat. Commun. 10, 2903 (2019)",
    ),
}
"""Models by name. A committee is the mean of its members, as its authors use it."""
