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
# # Quickstart, step by step
#
# The same way as `experiments/quickstart.py`, one stage per cell: sample structures with a teacher,
# label them, train a student, measure it, run molecular dynamics with it, save it and use it in ASE
# and jax-md.
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
from ase import units
from ase.build import molecule
from ase.md.langevin import Langevin

from distill import teachers
from distill.calculators import StudentCalculator
from distill.data import flag_summary, label_structures, split_by_trajectory
from distill.evaluation import compare_md_speed, measure_accuracy, run_nve, summarise_nve
from distill.evaluation.plots import (
    plot_force_parity,
    plot_learning_curve,
    plot_nve_energy,
    plot_speed,
)
from distill.sampling import MDSamplingConfig, sample_by_md
from distill.simulation import MDConfig, run_md
from distill.students import StudentSpec, initialise_student, load_bundle, save_bundle
from distill.training import TrainingConfig, fit, read_metrics

# %% [markdown]
# ## Settings
#
# With the environment variable `DISTILL_SMOKE` set, everything is as small as it can be: the tests
# run the notebook that way. The student is then a poor one.
#
# The files go to a new folder each time. Give `folder` a fixed path to keep them; labelling and
# training then continue where they stopped.

# %%
SMOKE = bool(os.environ.get("DISTILL_SMOKE"))

folder = Path(tempfile.mkdtemp(prefix="distill-"))
atoms = molecule("CH3CH2OH")

if SMOKE:
    sampling = MDSamplingConfig(
        temperatures=(500.0,), replicas=4, frames=16, spacing=10.0, equilibration=40.0
    )
    training = TrainingConfig(
        max_steps=400, validation_every=200, warmup_steps=20, learning_rate=1e-2
    )
    student_options = {
        "n_channels": 4,
        "n_radial": 6,
        "max_l": 2,
        "n_triples": 2,
        "hidden": [16],
    }
    fractions = {"train": 0.5, "validation": 0.25, "test": 0.25}
    temperature, duration, repeats = 50.0, 0.1, 2
else:
    sampling = MDSamplingConfig(temperatures=(300.0, 500.0), replicas=10, frames=80, spacing=20.0)
    training = TrainingConfig(max_steps=16_000, validation_every=1000)
    student_options = {}
    fractions = {"train": 0.7, "validation": 0.1, "test": 0.2}
    temperature, duration, repeats = 300.0, 5.0, 5

# %% [markdown]
# ## Teacher
#
# The demonstration teacher comes with the repository. `teachers.load("fennol:ani1ccx")` loads a
# published one; see `docs/teachers.md`.

# %%
repository = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "experiments").is_dir())
teacher = teachers.load(f"fennol:{repository / 'experiments' / 'models' / 'demo_chno.fnx'}")
teacher.info.provenance()

# %% [markdown]
# ## Sample
#
# Langevin dynamics with the teacher, several replicas per temperature, on the device. Each replica
# is a trajectory of its own.

# %%
structures = sample_by_md(teacher.potential, atoms, sampling, progress=False)
print(f"{len(structures)} structures, {len(set(structures.trajectory))} trajectories")

# %% [markdown]
# ## Label
#
# Every batch is written to the file before the next one starts. Structures that must not be trained
# on are flagged and kept.

# %%
dataset = label_structures(teacher, structures, folder / "dataset.h5", progress=False)
flag_summary(dataset)

# %% [markdown]
# ## Split
#
# By whole trajectories: neighbouring frames of one run are too alike.

# %%
usable = np.flatnonzero(dataset.usable)
parts = {
    name: usable[indices]
    for name, indices in split_by_trajectory(dataset.subset(usable), fractions).items()
}
{name: len(indices) for name, indices in parts.items()}

# %% [markdown]
# ## Train
#
# The student that is returned has the averaged parameters of the best validation.

# %%
spec = StudentSpec("moment", dataset.elements, 5.0, student_options)
start = initialise_student(spec, dataset, parts["train"])
result = fit(
    start,
    dataset,
    parts["train"],
    parts["validation"],
    training,
    folder / "training",
    progress=False,
)
student = result.student
print(f"{student.n_parameters} parameters, best at step {result.best_step}")

figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
plot_learning_curve(read_metrics(folder / "training" / "metrics.csv"), axes)

# %% [markdown]
# ## Measure the errors
#
# Against the teacher's labels, on trajectories that training never saw.

# %%
accuracy = measure_accuracy(student.label, dataset, parts["test"])
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
plot_force_parity(accuracy, axes)
accuracy.summary()

# %% [markdown]
# ## Test in molecular dynamics
#
# A small error is not enough: the student must also conserve energy in a simulation.

# %%
nve = run_nve(
    student.potential(atoms), atoms, temperature=temperature, duration=duration, progress=False
)
nve_summary = summarise_nve(nve, len(atoms), timestep=0.5)
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
plot_nve_energy(nve.frames, len(atoms), nve_summary["drift_mev_per_atom_per_ps"], axes)
nve_summary

# %% [markdown]
# ## Compare the speed
#
# Teacher and student in the same loop, in turn, one molecule per call. Neighbour lists are
# included, compilation is not.

# %%
speed = compare_md_speed(teacher.potential(atoms), student.potential(atoms), atoms, repeats=repeats)
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
plot_speed(speed, axes)

# %% [markdown]
# ## Save
#
# A bundle is a folder with the architecture, the parameters (no pickle) and a card. Write into the
# card what a user must know.

# %%
save_bundle(
    student,
    folder / "student",
    {"teacher": teacher.info.provenance(), "errors": accuracy.summary(), "nve": nve_summary},
)
bundle = load_bundle(folder / "student")
print(sorted(path.name for path in bundle.path.iterdir()))

# %% [markdown]
# ## Use in ASE

# %%
ethanol = molecule("CH3CH2OH")
ethanol.calc = StudentCalculator(bundle)
dynamics = Langevin(
    ethanol, 0.5 * units.fs, temperature_K=temperature, friction=0.01 / units.fs, fixcm=False
)
dynamics.run(50)
print(f"{ethanol.get_potential_energy():.3f} eV, {ethanol.get_temperature():.0f} K")

# %% [markdown]
# ## Use in jax-md
#
# `run_md` compiles blocks of steps and looks after the neighbour list. Positions with a leading
# axis are replicas, run side by side.

# %%
potential = bundle.potential(atoms)
run = run_md(
    potential,
    np.stack([atoms.positions] * 4),
    MDConfig(ensemble="nvt_langevin", temperature=temperature, steps=200, block_steps=200),
    progress=False,
)
print(run.frames.positions.shape, run.frames.temperature[-1].round())
