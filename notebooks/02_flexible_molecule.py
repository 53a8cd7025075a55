# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A flexible molecule: populations of conformers
#
# A student may have small force errors and still put a molecule into the wrong shapes, because
# populations depend on differences of free energies. Here student and teacher sample ethanol by
# replica exchange, and the turns of its O-H bond about C-O are compared: *trans* (the bonds C-C and
# O-H point apart) and the two *gauche* forms, mirror images of each other, whose populations must
# be equal. Error bars come from blocks.
#
# Units throughout: eV, Å, eV/Å, fs, K.
#
# Install once, in the root of the repository: `pip install -e ".[notebook]" -c constraints.txt`.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase.build import molecule

from distill import teachers
from distill.data import label_structures, split_by_trajectory
from distill.evaluation import measure_accuracy
from distill.observables import Curve, block_average, overlap
from distill.sampling import MDSamplingConfig, sample_by_md
from distill.simulation import MDConfig, exchange_summary, run_md
from distill.students import StudentSpec, initialise_student
from distill.training import LossConfig, TrainingConfig, fit

# %% [markdown]
# ## Settings
#
# With the environment variable `DISTILL_SMOKE` set, everything is as small as it can be: the tests
# run the notebook that way, and the populations then mean nothing.

# %%
SMOKE = bool(os.environ.get("DISTILL_SMOKE"))

folder = Path(tempfile.mkdtemp(prefix="distill-"))
ladder = (300.0, 360.0, 430.0, 515.0, 615.0)

if SMOKE:
    sampling = MDSamplingConfig(
        temperatures=(500.0,), replicas=4, frames=16, spacing=10.0, equilibration=40.0
    )
    training = TrainingConfig(
        max_steps=300, validation_every=150, warmup_steps=20, learning_rate=1e-2
    )
    student_options = {"n_channels": 4, "n_radial": 6, "max_l": 2, "n_triples": 0, "hidden": [16]}
    fractions = {"train": 0.5, "validation": 0.25, "test": 0.25}
    ladder = ladder[:2]
    steps, left_out, timestep = 400, 100, 0.25
else:
    sampling = MDSamplingConfig(
        temperatures=(400.0, 650.0), replicas=15, frames=50, spacing=100.0, equilibration=500.0
    )
    training = TrainingConfig(
        max_steps=6000,
        batch_size=16,
        optimizer="muon",
        loss=LossConfig(energy=1.0, force_kind="mae"),
    )
    student_options = {}
    fractions = {"train": 0.75, "validation": 0.1, "test": 0.15}
    steps, left_out, timestep = 200_000, 20_000, 0.5

# %% [markdown]
# ## Teacher, data, student
#
# The training data must hold all shapes that the hottest replica will see: the teacher's own
# dynamics runs hotter than the ladder.

# %%
repository = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "experiments").is_dir())
teacher = teachers.load(f"fennol:{repository / 'experiments' / 'models' / 'demo_chno.fnx'}")
atoms = molecule("CH3CH2OH")
structures = sample_by_md(teacher.potential, atoms, sampling, progress=False)
dataset = label_structures(teacher, structures, folder / "dataset.h5", progress=False)
usable = np.flatnonzero(dataset.usable)
parts = {
    name: usable[indices]
    for name, indices in split_by_trajectory(dataset.subset(usable), fractions).items()
}
start = initialise_student(
    StudentSpec.of_size("moment-s", dataset.elements, 5.0, student_options), dataset, parts["train"]
)
student = fit(
    start,
    dataset,
    parts["train"],
    parts["validation"],
    training,
    folder / "training",
    progress=False,
).student
errors = measure_accuracy(student.label, dataset, parts["test"]).summary()
print(f"force MAE {errors['force_mae_mev_per_ang']:.1f} meV/Å on held-out trajectories")

# %% [markdown]
# ## Replica exchange
#
# One replica for each temperature, all in one compiled program. Neighbours in the ladder try to
# exchange every 100 steps; index `r` of the frames is temperature `r`.


# %%
def sample(potential, seed):
    """Frames of all temperatures, and what became of the exchanges."""
    config = MDConfig(
        ensemble="nvt_langevin",
        timestep=timestep,
        friction=0.005,
        temperatures=ladder,
        exchange_every=100,
        record_every=20,
        steps=steps,
        block_steps=min(steps, 2000),
        seed=seed,
    )
    starts = np.stack([atoms.positions] * len(ladder))
    run = run_md(potential, starts, config, progress=False)
    return run.frames, exchange_summary(run.state, steps * timestep / 1000)


runs = {
    "teacher": sample(teacher.potential(atoms), 0),
    "teacher, other seed": sample(teacher.potential(atoms), 1),
    "student": sample(student.potential(atoms), 0),
}
for name, (_, exchange) in runs.items():
    rates = [pair["acceptance"] for pair in exchange["pairs"] if pair["attempts"]]
    print(f"{name}: accepted {np.round(rates, 2)}, round trips {exchange['round_trips']}")

# %% [markdown]
# ## Conformers
#
# The dihedral angle C-C-O-H of every frame at the lowest temperature.

# %%
oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
hydrogens = np.flatnonzero(atoms.numbers == 1)
carbons = np.flatnonzero(atoms.numbers == 6)
hydroxyl = int(hydrogens[np.argmin(atoms.get_distances(oxygen, hydrogens))])
first, second = carbons[np.argsort(-atoms.get_distances(oxygen, carbons))]


def dihedral(positions):
    """Degrees from -180 to 180, for positions `[T, n, 3]`."""
    a, b, c = (
        positions[:, j] - positions[:, i]
        for i, j in ((first, second), (second, oxygen), (oxygen, hydroxyl))
    )
    left, right = np.cross(a, b), np.cross(b, c)
    axis = b / np.linalg.norm(b, axis=-1, keepdims=True)
    sine = (np.cross(left, right) * axis).sum(-1)
    return np.degrees(np.arctan2(sine, (left * right).sum(-1)))


kept = left_out // 20
angles = {
    name: dihedral(np.asarray(frames.positions[kept:, 0], np.float64))
    for name, (frames, _) in runs.items()
}
conformers = {
    "trans": lambda angle: np.abs(angle) > 120,
    "gauche +": lambda angle: (angle > 0) & (angle <= 120),
    "gauche -": lambda angle: (angle <= 0) & (angle >= -120),
}
populations = {
    name: {
        shape: block_average(belongs(angle).astype(float)) for shape, belongs in conformers.items()
    }
    for name, angle in angles.items()
}
for name, found in populations.items():
    told = ", ".join(f"{shape} {p.value:.2f} ± {p.error:.2f}" for shape, p in found.items())
    print(f"{name}: {told}")

# %% [markdown]
# The overlap of the distributions of the angle, student against teacher, beside that of the teacher
# against itself with another seed, which is all that can be asked for at this length.

# %%
edges = np.linspace(-180, 180, 37)
centres = 0.5 * (edges[1:] + edges[:-1])
curves = {
    name: Curve(
        centres,
        np.stack([np.histogram(part, edges, density=True)[0] for part in np.array_split(own, 10)]),
        "C-C-O-H (degrees)",
        "density",
    )
    for name, own in angles.items()
}
for name in ("student", "teacher, other seed"):
    score = overlap(curves["teacher"], curves[name])
    print(f"{name} with teacher: {score.value:.3f} ± {score.error:.3f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, curve in curves.items():
    left.errorbar(centres, curve.mean, curve.error, label=name)
left.set(xlabel=curve.x_label, ylabel=curve.y_label, title=f"{ladder[0]:g} K")
left.legend()
for shift, (name, found) in zip((-0.25, 0.0, 0.25), populations.items(), strict=True):
    values = [p.value for p in found.values()]
    right.bar(
        np.arange(len(values)) + shift,
        values,
        0.22,
        label=name,
        yerr=[p.error for p in found.values()],
    )
right.set_xticks(range(len(conformers)), list(conformers))
right.set(ylabel="population", title="conformers")
right.legend()
