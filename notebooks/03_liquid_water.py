# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Liquid water: structure, vibrations, density and speed
#
# A potential of liquid water is distilled into a small student. Then both simulate the same box,
# and what a liquid is judged by is compared: radial distribution functions, vibrational density of
# states, density at constant pressure. Two runs of the teacher with different seeds say how well
# two runs of this length can agree at all.
#
# This tells how well the student follows its teacher, not how well the teacher describes water.
#
# Units throughout: eV, Å, eV/Å, fs, K, GPa.
#
# Install once, in the root of the repository: `pip install -e ".[notebook]" -c constraints.txt`,
# and `pip install calorine` for the teacher: a NEP4 potential of water, whose file `nep_water.txt`
# must lie where the notebook runs. Any other teacher with stress will do that keeps water liquid in
# its own dynamics, which not every one does: see `docs/trust.md`.

# %%
import os
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from distill import teachers
from distill.data import concatenate, label_structures, split_by_trajectory
from distill.evaluation import measure_accuracy
from distill.observables import Observables, ObservablesConfig, overlap
from distill.sampling import MDSamplingConfig, pack_liquid, sample_by_md
from distill.simulation import MDConfig, run_md
from distill.students import StudentSpec, initialise_student
from distill.training import LossConfig, TrainingConfig, fit

# %% [markdown]
# ## Settings
#
# As they are, the teacher makes some 200 000 steps. With the environment variable `DISTILL_SMOKE`
# set, everything is as small as it can be, and the teacher is the small one that comes with the
# repository, which knows nothing of liquids: the tests run the notebook that way, and the results
# then mean nothing.

# %%
SMOKE = bool(os.environ.get("DISTILL_SMOKE"))

folder = Path(tempfile.mkdtemp(prefix="distill-"))
temperature = 300.0

if SMOKE:
    repository = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "experiments").is_dir())
    name = f"fennol:{repository / 'experiments' / 'models' / 'demo_chno.fnx'}"
    molecules, densities = 8, (1.0,)
    sampling = MDSamplingConfig(
        temperatures=(300.0,), replicas=4, frames=4, spacing=2.0, equilibration=2.0, timestep=0.25
    )
    training = TrainingConfig(max_steps=20, validation_every=10, warmup_steps=5)
    size = {"n_channels": 2, "n_radial": 4, "max_l": 1, "n_triples": 0, "hidden": [8]}
    steps, block_steps, timestep, start, window = 120, 40, 0.1, 0.0, 0.004
else:
    name = "ase:calorine.calculators:CPUNEP?model_filename=nep_water.txt"
    molecules, densities = 32, (0.95, 1.0, 1.05)
    sampling = MDSamplingConfig(
        temperatures=(300.0, 450.0),
        replicas=3,
        frames=40,
        spacing=25.0,
        equilibration=500.0,
        relaxation_steps=100,
    )
    training = TrainingConfig(
        max_steps=8000,
        batch_size=4,
        optimizer="muon",
        loss=LossConfig(energy=1.0, stress=1000.0, force_kind="mae"),
    )
    size = {}
    steps, block_steps, timestep, start, window = 40_000, 2000, 0.5, 3.0, 1.0

# %% [markdown]
# ## Teacher, data, student
#
# The teacher's own dynamics at several densities, because the volume is to move later, and hotter
# than the runs to come.

# %%
teacher = teachers.load(name)
pieces = [
    sample_by_md(
        teacher.potential,
        pack_liquid({"H2O": molecules}, density),
        sampling,
        system=f"water-{density}",
        progress=False,
    )
    for density in densities
]
dataset = label_structures(teacher, concatenate(pieces), folder / "water.h5", progress=False)
usable = np.flatnonzero(dataset.usable)
fractions = {"train": 0.5, "validation": 0.25, "test": 0.25}
parts = {
    part: usable[indices]
    for part, indices in split_by_trajectory(dataset.subset(usable), fractions).items()
}
spec = StudentSpec.of_size("moment-s", dataset.elements, 5.0, size)
student = fit(
    initialise_student(spec, dataset, parts["train"]),
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
# ## Constant volume
#
# Two replicas of each from the same frame, with their own velocities. What is observed is averaged
# while the run goes on. The time of a step is that of the blocks after the first, in which all is
# compiled.

# %%
atoms = dataset.structure(int(parts["test"][0]))


class Clock:
    """Notes when each block of a run was done."""

    def __init__(self):
        self.times = []

    def __call__(self, frames):
        self.times.append(time.perf_counter())

    def per_step(self, n_replicas):
        """Milliseconds for a step of one replica, median of the blocks."""
        return 1e3 * np.median(np.diff(self.times)) / (block_steps * n_replicas)


def simulate(potential, wanted, pooled, seed=0, **ensemble):
    """Results of two replicas, together or each, and the time of a step."""
    config = MDConfig(
        timestep=timestep,
        temperature=temperature,
        steps=steps,
        record_every=4,
        block_steps=block_steps,
        seed=seed,
        **ensemble,
    )
    observed = Observables(atoms, wanted, timestep * config.record_every, 2, pooled=pooled)
    clock = Clock()
    run_md(
        potential,
        np.stack([atoms.positions] * 2),
        config,
        on_frames=[observed, clock],
        keep_frames=False,
        progress=False,
    )
    return observed.results(), clock.per_step(2)


curves_wanted = ObservablesConfig(
    rdf=True, vdos=True, start=start, rdf_interval=0.4 if SMOKE else 20.0, vdos_window=window
)
nvt = {"ensemble": "nvt_csvr", "thermostat_time": 500.0}
(own,), student_step = simulate(student.potential(atoms), curves_wanted, pooled=True, **nvt)
(first, second), teacher_step = simulate(
    teacher.potential(atoms), curves_wanted, pooled=False, seed=1, **nvt
)

for curve in own.curves:
    score = overlap(own.curves[curve], first.curves[curve])
    itself = overlap(first.curves[curve], second.curves[curve])
    print(f"{curve}: student {score.value:.3f}, teacher with itself {itself.value:.3f}")

figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
for axis, curve in zip(axes.ravel(), own.curves, strict=False):
    runs = {"teacher": first, "teacher, other seed": second, "student": own}
    for label, results in runs.items():
        found = results.curves[curve]
        axis.plot(found.x, found.mean, label=label)
        axis.fill_between(
            found.x, found.mean - 2 * found.error, found.mean + 2 * found.error, alpha=0.3
        )
    axis.set(xlabel=found.x_label, ylabel=found.y_label, title=curve)
axes[0, 0].legend()

# %% [markdown]
# ## Constant pressure
#
# One bar; only the size of the cell moves. The density of so small a box fluctuates by some
# percent, so error bars shrink slowly. (In the shortest form the teacher is left out.)

# %%
npt = {
    "ensemble": "npt_scr",
    "thermostat_time": 200.0,
    "barostat_time": 20_000.0 if SMOKE else 200.0,
    "pressure": 1e-4,
}
wanted = ObservablesConfig(start=start)
potentials = {"student": student.potential(atoms)}
if not SMOKE:
    potentials["teacher"] = teacher.potential(atoms)
for label, potential in potentials.items():
    (results,), _ = simulate(potential, wanted, pooled=True, **npt)
    density = results.scalars["density_g_per_cm3"]
    print(f"{label}: {density.value:.3f} ± {density.error:.3f} g/cm³")

# %% [markdown]
# ## Speed
#
# Of the runs at constant volume above, on this machine, one after the other. `compare_md_speed` and
# `experiments/benchmark.py` take both in turn, which is fairer.

# %%
print(
    f"{len(atoms)} atoms: teacher {teacher_step:.2f} ms per step, student {student_step:.2f} ms, "
    f"{teacher_step / student_step:.0f} times faster"
)
