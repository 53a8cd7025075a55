"""Train a compact conservative Orb on labels of another teacher, so that tests and the quickstart
have a real Orb that needs no download.

Steps: sample molecular dynamics of a molecule with the labelling teacher, label, fit with
orb-models' own classes and loss, test on whole trajectories that training never saw and in a
short NVE run, and write the checkpoint (.ckpt), its card (.card.yaml) and a plot (.png).

    python experiments/make_compact_orb.py
    python experiments/make_compact_orb.py --smoke output=runs/compact_orb_smoke

Needs the extra `orb`. A run that was interrupted continues where it stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import units
from ase.data import chemical_symbols
from ase.md.verlet import VelocityVerlet
from matplotlib.figure import Figure

from compact_orb_training import OrbTrainingConfig, set_scales, train
from distill import teachers
from distill.calculators import OrbTeacherCalculator
from distill.config import config_to_dict, load_config, save_config
from distill.data import Dataset, label_structures, load, save, split_by_trajectory
from distill.errors import ConfigError
from distill.evaluation import Accuracy, measure_accuracy
from distill.evaluation.environment import describe_environment
from distill.evaluation.plots import plot_force_parity
from distill.sampling import MDSamplingConfig, sample_by_md
from distill.teachers._orb_model import load_network
from distill.teachers.weights import file_sha256
from quickstart import read_structure, resolve_teacher
from script import run_script

HERE = Path(__file__).resolve().parent
ARCHITECTURE = "orb_v3_conservative_architecture"
SMOKE = (
    "output=runs/compact_orb_smoke",
    "work=runs/compact_orb_smoke/work",
    "sampling={temperatures: [300.0], replicas: 6, frames: 5, equilibration: 20.0, spacing: 5.0}",
    "training={max_steps: 12, save_every: 6, warmup_steps: 2}",
    "md_steps=10",
)


@dataclass(frozen=True)
class CompactOrbConfig:
    """Settings.

    Attributes:
        teacher: that labels, see `distill.teachers.load`.
        structure: a molecule of `ase.build.molecule` or a file that ASE reads; not periodic.
        output: folder of checkpoint, card and plot.
        work: folder of labels and of the state of an interrupted run.
        architecture: arguments of `orb_v3_conservative_architecture`.
        max_neighbors: of each atom within the 6 Å that the architecture is made for.
        sampling: of the labelled structures.
        training: of the network.
        md_steps: of 0.5 fs in the NVE test.
        seed: of the split and the velocities.
    """

    teacher: str = "fennol:models/demo_chno.fnx"
    structure: str = "CH3CH2OH"
    output: Path = HERE / "models"
    work: Path = Path("runs/compact_orb")
    architecture: dict[str, int] = field(
        default_factory=lambda: {
            "latent_dim": 64,
            "base_mlp_hidden_dim": 128,
            "base_mlp_depth": 2,
            "head_mlp_hidden_dim": 64,
            "num_message_passing_steps": 2,
        }
    )
    max_neighbors: int = 120
    sampling: MDSamplingConfig = field(
        default_factory=lambda: MDSamplingConfig(
            temperatures=(300.0, 500.0, 700.0), replicas=12, frames=50
        )
    )
    training: OrbTrainingConfig = field(default_factory=OrbTrainingConfig)
    md_steps: int = 2000
    seed: int = 0


def main(argv: list[str] | None = None) -> int:
    """Run all steps; returns the exit status."""
    return run_script(CompactOrbConfig, run, argv, description=__doc__, smoke_overrides=SMOKE)


def run(config: CompactOrbConfig) -> None:
    """All steps, from labels to the card."""
    begin = time.monotonic()
    claim(config)
    dataset = labelled(config)
    parts = split_by_trajectory(dataset, {"train": 0.8, "test": 0.2}, seed=config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.training.seed)
        model = load_network(
            ARCHITECTURE,
            None,
            arguments=config.architecture,
            repulsion="mean",
            max_neighbors=config.max_neighbors,
        )
    set_scales(model.network, dataset, parts["train"], config.training.energy_std)
    print(f"{model.n_parameters} parameters, {len(parts['train'])} structures")
    curve = train(model, dataset, parts["train"], config.training, config.work)

    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "compact_orb.ckpt"
    torch.save(model.network.state_dict(), path)
    card = {
        "format": "distill-orb-card",
        "architecture": ARCHITECTURE,
        "arguments": config.architecture,
        "system_config": {"radius": model.radius, "max_num_neighbors": model.max_neighbors},
        "repulsion": "mean",
        "elements": [chemical_symbols[z] for z in dataset.elements],
        "licence": "MIT",
        "parameters": model.n_parameters,
        "sha256": file_sha256(path),
    }
    write_card(path, card)
    # What is tested is the file, as a user of the library gets it.
    teacher = teachers.load(f"orb:{path}")
    accuracy = measure_accuracy(teacher.label, dataset, parts["test"])
    plot(accuracy, curve, config.output / "compact_orb.png")
    labeller = teachers.load(resolve_teacher(config.teacher)).info.provenance()
    card |= {
        "errors": {k: rounded(v) for k, v in accuracy.summary().items()},
        "nve": nve(path, config),
        "labels": labeller,
        "data": {
            "system": config.structure,
            "sha256": dataset.sha256,
            "structures": {name: len(indices) for name, indices in parts.items()},
            "test_trajectories": sorted(set(dataset.trajectory[parts["test"]].tolist())),
        },
        "training_curve_force_mae_mev_per_ang": [[s, rounded(v)] for s, v in curve],
        "settings": {k: config_to_dict(config)[k] for k in ("sampling", "training")},
        "versions": describe_environment()["versions"] | {"torch": str(torch.__version__)},
        "minutes": round((time.monotonic() - begin) / 60, 1),
    }
    write_card(path, card)
    print(yaml.safe_dump({k: card[k] for k in ("errors", "nve", "minutes")}, sort_keys=False))


def claim(config: CompactOrbConfig) -> None:
    """Write the configuration into the working folder, or check that it holds the same one."""
    path = config.work / "config.yaml"
    if path.exists() and load_config(CompactOrbConfig, path) != config:
        raise ConfigError(f"{config.work} holds a run with other settings: choose another work=")
    config.work.mkdir(parents=True, exist_ok=True)
    save_config(config, path)


def labelled(config: CompactOrbConfig) -> Dataset:
    """Structures of the teacher's dynamics with its labels; both are kept for a resumed run."""
    teacher = teachers.load(resolve_teacher(config.teacher))
    sampled = config.work / "structures.h5"
    if not sampled.exists():
        atoms = read_structure(config.structure)
        if atoms.pbc.any():
            raise ConfigError("the compact Orb is trained on isolated structures: set pbc=False")
        save(sample_by_md(teacher.potential, atoms, config.sampling), sampled)
    dataset = label_structures(teacher, load(sampled), config.work / "dataset.h5")
    return dataset.subset(np.flatnonzero(dataset.usable))


def nve(path: Path, config: CompactOrbConfig) -> dict[str, float]:
    """Drift of the total energy in a short run from the relaxed start at 300 K."""
    atoms = read_structure(config.structure)
    atoms.calc = OrbTeacherCalculator(path)
    deviation = np.sqrt(units.kB * 300 / atoms.get_masses())[:, None]
    rng = np.random.default_rng(config.seed)
    atoms.set_velocities(deviation * rng.standard_normal((len(atoms), 3)))
    times: list[float] = []
    energies: list[float] = []

    def note() -> None:
        times.append(0.5e-3 * len(times))
        energies.append(atoms.get_total_energy())

    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.attach(note)
    dynamics.run(config.md_steps)
    slope, _ = np.polyfit(times, energies, 1)
    return {
        "duration_ps": rounded(times[-1]),
        "drift_mev_per_atom_per_ps": rounded(1e3 * slope / len(atoms)),
        "fluctuation_mev_per_atom": rounded(1e3 * np.std(energies) / len(atoms)),
    }


def plot(accuracy: Accuracy, curve: list[tuple[int, float]], path: Path) -> None:
    """Forces against those of the labelling teacher, and the training curve."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_force_parity(accuracy, left)
    left.set_title("Compact Orb, held-out trajectories")
    right.semilogy(*zip(*curve, strict=True), ".-")
    right.set(xlabel="step", ylabel="force MAE in training, meV/Å", title="Training")
    figure.savefig(path, dpi=120)


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write the card beside the checkpoint."""
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
    path.with_suffix(".card.yaml").write_text(text, encoding="utf-8")


def rounded(value: Any) -> Any:
    """Numbers with four digits, the rest as it is."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, (float, np.floating)) else value


if __name__ == "__main__":
    raise SystemExit(main())
