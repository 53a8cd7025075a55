"""Orb teachers by name: pretrained models, checkpoints with a card, untrained networks."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers

from distill.errors import ConfigError
from distill.teachers._orb_model import (
    ARCHITECTURE,
    architectures,
    load_network,
    pretrained_names,
    pretrained_url,
    require_orb,
)
from distill.teachers.names import TeacherName, card_of
from distill.teachers.orb import OrbTeacher
from distill.teachers.weights import file_sha256, find_file, require_sha256

LICENCE = "Apache-2.0"
"""Of the weights that Orbital Materials publish."""

OPTIONS = ("arch", "weights", "sha256", "elements", "radius", "max_neighbors", "device", "seed")


def load_orb(name: TeacherName, dtype: Any) -> OrbTeacher:
    """An Orb teacher.

    Args:
        name: `orb:<pretrained model>` or `orb:<checkpoint>`. Options:

            - `arch`: architecture of a checkpoint, a pretrained model's name or a function
              `orb_..._architecture` of orb-models; the checkpoint's card tells it otherwise.
            - `sha256`: what the weights must have.
            - `elements`: what it was trained on, e.g. `H,C,O`.
            - `radius`, `max_neighbors`: of a checkpoint's graphs.
            - `device`: torch's name; the first GPU if there is one by default.
            - `weights=random`: an untrained network, for timings only; `seed` sets its weights.
        dtype: precision of the arithmetic.

    Raises:
        ConfigError: an unknown model, option or architecture.
        WeightsError: weights are neither present nor to be downloaded, damaged, or of another
            architecture.
        MissingDependencyError: orb-models is not installed.
    """
    require_orb()
    name.require_options(OPTIONS)
    settings: dict[str, Any] = {"device": _device(name), "dtype": dtype}
    weights, digest = None, "random"
    if name.options.get("weights", "random") != "random":
        raise ConfigError(f"teacher {name.full!r}: weights may only be 'random'")
    random = "weights" in name.options
    path = Path(name.target)
    card: dict[str, Any] = {}
    if path.is_file():
        card = card_of(path)
        weights, digest = path, file_sha256(path)
        require_sha256(path, name.options.get("sha256") or card.get("sha256"))
        architecture = name.options.get("arch") or card.get("architecture")
        if architecture is None:
            raise ConfigError(
                f"teacher {name.full!r}: say which architecture the checkpoint has, ?arch=<one of "
                f"{', '.join(architectures())}>, or put its card beside it "
                f"({path.with_suffix('.card.yaml').name})"
            )
    elif name.target in architectures() and (random or name.target in pretrained_names()):
        architecture = name.target
        if not random:
            url = pretrained_url(name.target)
            place = orb_place(name.target)
            weights = find_file(place, url, name.options.get("sha256"))
            digest = file_sha256(weights)
    else:
        close = get_close_matches(name.target, pretrained_names(), n=1)
        hint = f" Did you mean orb:{close[0]}?" if close else ""
        raise ConfigError(
            f"teacher {name.full!r}: {name.target} is neither a file nor a pretrained model "
            f"({', '.join(pretrained_names())}).{hint}"
        )
    if architecture.endswith(ARCHITECTURE):
        graph = card.get("system_config", {})
        settings |= {
            "arguments": card.get("arguments", {}),
            "repulsion": card.get("repulsion"),
            "radius": name.number("radius", graph.get("radius", 6.0)),
            "max_neighbors": int(name.number("max_neighbors", graph.get("max_num_neighbors", 120))),
        }
    if random:
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(int(name.number("seed", 0)))
            model = load_network(architecture, None, **settings)
    else:
        model = load_network(architecture, weights, **settings)
    symbols = card.get("elements")
    elements = name.elements() or (tuple(atomic_numbers[s] for s in symbols) if symbols else None)
    published = name.target in pretrained_names() and not random
    return OrbTeacher(
        model,
        # Not the whole path: it says nothing on another machine, the checksum does.
        name=f"orb:{path.name}" if path.is_file() else name.full,
        weights_sha256=digest,
        licence=LICENCE if published else str(card.get("licence", "unknown")),
        elements=elements,
    )


def orb_place(name: str) -> str:
    """Where the weights of a pretrained model lie below `$DISTILL_MODELS` and the cache."""
    return "orb/" + pretrained_url(name).rsplit("/", 1)[-1]


def _device(name: TeacherName) -> str:
    import torch

    return name.options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
