"""Train the demonstration teacher: a small FeNNol potential for H, C, N, O on GFN2-xTB labels.

Steps: sample and label molecules and water clusters (``demo_teacher_data``), fit a CRATE
potential, test it on trajectories it never saw, run short molecular dynamics of ethanol, and
write the model (.fnx), its card (.card.yaml) and a plot (.png).

Outside the model all energies are eV, forces eV/A and lengths A; inside it energies are Hartree,
as in FeNNol's published models.

    python experiments/make_demo_teacher.py --minutes 17 --work-dir labels_cache
    python experiments/make_demo_teacher.py --smoke
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import yaml
from ase.units import Hartree
from fennol import FENNIX
from tqdm import tqdm

from demo_teacher_data import (
    BATCH,
    CUTOFF,
    ELEMENTS,
    Batches,
    Frame,
    fit_self_energies,
    make_frames,
    plan,
)

PEAK_RATE, FINAL_RATE, WARMUP = 3e-3, 1e-5, 0.01  # learning rates; warm-up as a share of the run
EMA_DECAY = 0.998
ENERGY_WEIGHT = 10.0  # per-atom energy error (eV) against force error (eV/A)
FORCE_SOFTENING = 0.02  # eV/A; below it the force loss turns from a distance into a square
HERE = Path(__file__).resolve().parent


def build_model(self_energies: dict[str, float], seed: int) -> FENNIX:
    """Return an untrained potential; ``self_energies`` are in Hartree."""
    modules = {
        "embedding": {
            "module_name": "CRATE",
            "dim": 96,
            "nlayers": 2,
            "dim_src": 32,
            "dim_dst": 16,
            "lmax": 2,
            "nchannels_l": 16,
            "n_tp": 1,
            "species_init": True,
            "mixing_hidden": [128],
            "activation": "silu",
            # CRATE's own default is only piecewise smooth; molecular dynamics wants better.
            "activation_mixing": "silu",
            "species_encoding": {"encoding": "one_hot", "species_order": list(ELEMENTS)},
            "radial_basis": {"basis": "bessel", "dim": 10},
            "embedding_key": "embedding",
        },
        "energy_network": {
            "module_name": "NEURAL_NET",
            "neurons": [96, 64, 1],
            "activation": "silu",
            "input_key": "embedding",
            "output_key": "energy",
            "squeeze": True,
        },
        # The network's output is of order one; binding energies per atom are not (Hartree).
        "energy_scale": {"module_name": "SCALE", "key": "energy", "scale": 0.03},
        "self_energy": {
            "module_name": "CHEMICAL_CONSTANT",
            "value": self_energies,
            "trainable": True,
        },
    }
    # The polynomial switch has two continuous derivatives at the cutoff (the cosine one has one).
    graph = {"graph": {"switch_params": {"switch_type": "polynomial", "p": 5.0}}}
    return FENNIX(
        cutoff=CUTOFF,
        modules=modules,
        preprocessing=graph,
        energy_terms=["energy", "self_energy"],
        energy_unit="Ha",
        rng_key=jax.random.PRNGKey(seed),
    )


def predictor(model: FENNIX) -> Callable[[dict, dict], tuple[jax.Array, jax.Array]]:
    """Return f(variables, inputs) -> (energies eV without self energies, forces eV/A).

    It calls the modules themselves: a function taken from ``set_energy_terms`` follows later
    changes of the terms, so the self energies could not be left out of the fit reliably.
    """

    def predict(variables: dict, inputs: dict) -> tuple[jax.Array, jax.Array]:
        def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            atomic = model.modules.apply(variables, {**inputs, "coordinates": x})["energy"]
            atomic = jnp.where(inputs["true_atoms"], atomic, 0.0) * Hartree
            energies = jax.ops.segment_sum(atomic, inputs["batch_index"], BATCH + 1)
            return energies.sum(), energies

        gradient, energies = jax.grad(total, has_aux=True)(inputs["coordinates"])
        return energies, -gradient

    return predict


def evaluate(predict: Callable, variables: dict, data: Batches) -> list[dict]:
    """Return, per frame, what was predicted and what GFN2-xTB says (eV, eV/A)."""
    rows = []
    for chosen, inputs, target in data.epoch(np.arange(len(data.frames))):
        energies, forces = map(np.asarray, predict(variables, inputs))
        for system, index in enumerate(chosen):
            mine = inputs["batch_index"] == system
            rows.append(
                {
                    "frame": data.frames[index],
                    "energy": (float(energies[system]), float(target["energy"][system])),
                    "forces": (forces[mine], target["forces"][mine]),
                }
            )
    return rows


def r_squared(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the coefficient of determination."""
    return float(1.0 - np.sum((predicted - true) ** 2) / np.sum((true - true.mean()) ** 2))


def summarise(rows: list[dict]) -> dict[str, dict]:
    """Return errors per system ("md" frames), for all of them, and for all distorted frames."""
    groups = defaultdict(list)
    for row in rows:
        if row["frame"].distorted:
            groups["distorted"].append(row)
        else:
            groups[row["frame"].system].append(row)
            groups["all"].append(row)
    table = {}
    for name, members in groups.items():
        energies = np.array([row["energy"] for row in members])
        natoms = np.array([len(row["frame"].numbers) for row in members])
        predicted, true = (np.concatenate([r["forces"][i] for r in members]) for i in (0, 1))
        per_atom = 1000 * (energies[:, 0] - energies[:, 1]) / natoms
        difference = 1000 * (predicted - true)
        table[name] = {
            "frames": len(members),
            "force_mae_meV_per_A": round(float(np.abs(difference).mean()), 2),
            "force_rmse_meV_per_A": round(float(np.sqrt((difference**2).mean())), 2),
            "force_r2": round(r_squared(predicted, true), 5),
            "energy_mae_meV_per_atom": round(float(np.abs(per_atom).mean()), 3),
            "energy_rmse_meV_per_atom": round(float(np.sqrt((per_atom**2).mean())), 3),
            "energy_r2": round(r_squared(energies[:, 0], energies[:, 1]), 5),
        }
    return table


def train(
    model: FENNIX, data: Batches, val: Batches, minutes: float | None, epochs: int, seed: int
) -> tuple[dict, list[tuple[float, float, float]], dict]:
    """Fit the model; return averaged variables, (minute, val force MAE, val energy MAE), facts.

    The learning rate follows the share of the run that is done: of the wall time if ``minutes`` is
    given, of the ``epochs`` otherwise (only the latter repeats exactly).
    """
    predict = predictor(model)
    optimiser = optax.chain(optax.clip_by_global_norm(5.0), optax.scale_by_adam(b2=0.99))

    def loss_of(variables: dict, inputs: dict, target: dict) -> jax.Array:
        energies, forces = predict(variables, inputs)
        natoms = jnp.maximum(inputs["natoms"], 1)
        systems = jnp.maximum(inputs["true_sys"].sum(), 1)
        # A softened distance rather than a square: a few hard frames must not rule the fit.
        error = jnp.sqrt(((forces - target["forces"]) ** 2).sum(-1) + FORCE_SOFTENING**2)
        force_term = jnp.where(inputs["true_atoms"], error, 0.0).sum() / inputs["natoms"].sum()
        energy_error = jnp.abs(energies - target["energy"]) / natoms
        energy_term = jnp.where(inputs["true_sys"], energy_error, 0.0).sum() / systems
        return force_term + ENERGY_WEIGHT * energy_term

    @jax.jit
    def step(
        variables: dict,
        average: dict,
        state: optax.OptState,
        inputs: dict,
        target: dict,
        rate: float,
    ) -> tuple[dict, dict, optax.OptState, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(variables, inputs, target)
        update, state = optimiser.update(gradient, state)
        variables = jax.tree.map(lambda v, u: v - rate * u, variables, update)
        # Written as a correction, so that what is not trained (the self energies) stays exact.
        average = jax.tree.map(lambda a, v: a + (1 - EMA_DECAY) * (v - a), average, variables)
        return variables, average, state, loss

    jitted = jax.jit(predict)
    variables = average = model.variables
    state = optimiser.init(variables)
    rng = np.random.default_rng(seed)
    curve, losses, steps, epoch, done = [], [], 0, 0, 0.0
    begin = time.monotonic()
    bar = tqdm(total=100.0, desc="train", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")
    per_epoch = len(data.frames) / BATCH
    while done < 1.0:
        for _, inputs, target in data.epoch(rng.permutation(len(data.frames))):
            elapsed = time.monotonic() - begin
            new = elapsed / (60 * minutes) if minutes else steps / (per_epoch * epochs)
            new = min(new, 1.0)
            bar.update(100 * (new - done))
            done = new
            if done >= 1.0:
                break
            cosine = FINAL_RATE + 0.5 * (PEAK_RATE - FINAL_RATE) * (1 + np.cos(np.pi * done))
            rate = cosine * min(1.0, done / WARMUP + 1e-2)
            variables, average, state, loss = step(variables, average, state, inputs, target, rate)
            losses.append(loss)
            steps += 1
        epoch += 1
        table = summarise(evaluate(jitted, average, val))["all"]
        force, energy = table["force_mae_meV_per_A"], table["energy_mae_meV_per_atom"]
        curve.append(((time.monotonic() - begin) / 60, force, energy))
        bar.set_postfix_str(
            f"epoch {epoch}, {steps / (time.monotonic() - begin):.1f} steps/s, "
            f"loss {np.mean(losses[-200:]):.4f}, val F {force} meV/A, E {energy} meV/atom"
        )
    bar.close()
    facts = {"steps": steps, "epochs": round(steps / per_epoch, 2)}
    return average, curve, facts


def stability(path: Path, picoseconds: float, seed: int) -> tuple[dict, np.ndarray]:
    """Run ethanol with the saved model (float32): NVE at 300 K, then Langevin at 500 K.

    Returns the figures for the card and the NVE total energies (eV), one per 10 steps of 0.5 fs.
    """
    from ase import units
    from ase.build import molecule
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
    from ase.md.verlet import VelocityVerlet
    from fennol.ase import FENNIXCalculator

    steps = int(picoseconds / 0.0005)
    atoms = molecule("CH3CH2OH")
    bonded = (atoms.get_all_distances() < 1.7) & ~np.eye(len(atoms), dtype=bool)
    atoms.calc = FENNIXCalculator(str(path))
    rng = np.random.default_rng(seed)
    # The molecule starts at rest in a minimum: equipartition halves the temperature it is given.
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    totals: list[float] = []
    nve = VelocityVerlet(atoms, 0.5 * units.fs)
    nve.attach(lambda: totals.append(atoms.get_total_energy()), interval=10)
    nve.run(steps)
    energies = np.array(totals)
    times = np.arange(len(energies)) * 0.005  # ps
    slope, offset = np.polyfit(times, energies, 1)
    longest, temperatures = 0.0, []
    hot = Langevin(
        atoms, 0.5 * units.fs, temperature_K=500, friction=0.01 / units.fs, fixcm=False, rng=rng
    )
    for _ in tqdm(range(steps // 10), desc="MD 500 K", unit="x10 steps"):
        hot.run(10)
        longest = max(longest, float(atoms.get_all_distances()[bonded].max()))
        temperatures.append(atoms.get_temperature())
    facts = {
        "system": "one ethanol molecule, no cell, float32, 0.5 fs",
        "picoseconds_each": picoseconds,
        "nve_drift_meV_per_atom_per_ps": round(1000 * float(slope) / len(atoms), 4),
        "nve_rms_about_drift_meV_per_atom": round(
            1000 * float(np.std(energies - slope * times - offset)) / len(atoms), 4
        ),
        "langevin_500K_mean_temperature_K": round(float(np.mean(temperatures)), 1),
        "langevin_500K_longest_bond_A": round(longest, 3),
    }
    return facts, energies


def plot(path: Path, curve: list, rows: list[dict], table: dict, energies: np.ndarray) -> None:
    """Draw the learning curve, the parity of energies and forces on test runs, and NVE energy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 8.4), layout="constrained")
    minutes, force, energy = np.array(curve).T
    axis = axes[0, 0]
    axis.semilogy(minutes, force, label="force MAE (meV/Å)")
    axis.semilogy(minutes, energy, label="energy MAE (meV/atom)")
    axis.set(title="Validation trajectories, averaged weights", xlabel="training time (min)")
    axis.legend(frameon=False)
    kinds = ((True, "distorted", "tab:orange"), (False, "all", "tab:blue"))
    for distorted, key, colour in kinds:
        members = [row for row in rows if row["frame"].distorted == distorted]
        natoms = np.array([len(row["frame"].numbers) for row in members])
        label = "distorted frames" if distorted else "MD frames"
        predicted, true = np.array([row["energy"] for row in members]).T / natoms
        text = f"{label}: MAE {table[key]['energy_mae_meV_per_atom']:.1f} meV/atom"
        axes[0, 1].plot(true, predicted, ".", ms=3, alpha=0.5, color=colour, label=text)
        true, predicted = (np.concatenate([r["forces"][i] for r in members]) for i in (1, 0))
        true, predicted = true.ravel(), predicted.ravel()
        text = f"{label}: MAE {table[key]['force_mae_meV_per_A']:.0f} meV/Å"
        axes[1, 0].plot(true, predicted, ".", ms=2, alpha=0.3, color=colour, label=text)
    axes[0, 1].set(title="Energy minus self energies, held-out (eV/atom)")
    axes[1, 0].set(title="Force components, held-out (eV/Å)")
    for axis in (axes[0, 1], axes[1, 0]):
        axis.axline((0, 0), slope=1, color="black", lw=0.8)
        axis.set(xlabel="GFN2-xTB", ylabel="potential")
        axis.legend(frameon=False, markerscale=4)
    axis = axes[1, 1]
    axis.plot(np.arange(len(energies)) * 0.005, 1000 * (energies - energies[0]) / 9, lw=0.8)
    axis.set(title="Ethanol, NVE at about 300 K: total energy", xlabel="time (ps)")
    axis.set(ylabel="change (meV/atom)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_card(path: Path, model: FENNIX, frames: list[Frame], facts: dict) -> None:
    """Write the model card (YAML); ``facts`` holds what only this run knows."""
    splits = {}
    for split in ("train", "val", "test"):
        members = [f for f in frames if f.split == split]
        splits[split] = {
            "trajectories": len({f.trajectory for f in members}),
            "frames": len(members),
            "of_which_distorted": sum(f.distorted for f in members),
        }
    embedding = model._input_args["modules"]["embedding"]
    card = {
        "name": "demo_chno",
        "licence": "MIT",
        "intended_use": "Demonstration and tests of this project (teacher of the quickstart). "
        "Not for research: few molecules, a semi-empirical reference, no bulk phase.",
        "elements": list(ELEMENTS),
        "energy_unit": "Ha",
        "cutoff_A": CUTOFF,
        "architecture": {
            "framework": "FeNNol",
            "embedding": {k: v for k, v in embedding.items() if k != "embedding_key"},
            "energy_network": list(model._input_args["modules"]["energy_network"]["neurons"]),
            "energy_terms": list(model.energy_terms),
            "switch": "polynomial, p = 5",
        },
        "parameters": int(sum(x.size for x in jax.tree.leaves(model.variables))),
        "reference": {
            "method": "GFN2-xTB",
            "program": f"tblite {version('tblite')}",
            "doi": "10.1021/acs.jctc.8b01176",
        },
        "training_data": {
            "systems": sorted({f.system for f in frames}),
            "sampling": "Langevin dynamics on GFN2-xTB, 0.5 fs, one frame per 6 fs, each second "
            "frame also with a strained bond or random displacements; split by whole trajectory",
            "temperatures_K": facts.pop("temperatures_K"),
            "splits": splits,
        },
        "errors_on_held_out_trajectories": facts.pop("errors"),
        "molecular_dynamics": facts.pop("molecular_dynamics"),
        "training": {
            **facts,
            "batch": BATCH,
            "peak_learning_rate": PEAK_RATE,
            "ema_decay": EMA_DECAY,
            "energy_weight": ENERGY_WEIGHT,
        },
        "versions": {
            "python": sys.version.split()[0],
            **{p: version(p) for p in ("fennol", "jax", "flax", "optax", "ase", "tblite", "numpy")},
        },
    }
    path.write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100))


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and make the model, its card and its plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the three files")
    parser.add_argument("--work-dir", type=Path, help="folder that keeps the labels for a rerun")
    parser.add_argument("--minutes", type=float, help="training time; default: use --epochs")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the data (default 60)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2, help="processes that label")
    parser.add_argument("--smoke", action="store_true", help="tiny data, under a minute")
    args = parser.parse_args(argv)
    begin = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="demo_teacher_"))
    # A smoke run must never replace the committed model unless it is told where to write.
    output = args.output or (scratch if args.smoke else HERE / "models")
    output.mkdir(parents=True, exist_ok=True)
    epochs = 3 if args.smoke else args.epochs

    runs = plan(args.seed, args.smoke)
    frames = make_frames(runs, (args.work_dir or scratch) / "labels", args.workers)
    parts = {s: [f for f in frames if f.split == s] for s in ("train", "val", "test")}
    self_energies = fit_self_energies(parts["train"])
    data = Batches(parts["train"], self_energies)
    val, test = (Batches(parts[s], self_energies, like=data) for s in ("val", "test"))
    model = build_model(self_energies, args.seed)
    start = time.monotonic()
    model.variables, curve, facts = train(model, data, val, args.minutes, epochs, args.seed)
    facts["training_minutes"] = round((time.monotonic() - start) / 60, 1)

    path = output / "demo_chno.fnx"
    model.save(path)
    rows = evaluate(jax.jit(predictor(model)), model.variables, test)
    table = summarise(rows)
    dynamics, energies = stability(path, 0.1 if args.smoke else 5.0, args.seed)
    plot(output / "demo_chno.png", curve, rows, table, energies)
    budget = f"--minutes {args.minutes:g}" if args.minutes else f"--epochs {epochs}"
    command = f"python experiments/make_demo_teacher.py {budget} --seed {args.seed}"
    facts |= {
        "errors": {"md_frames_unless_named_distorted": table},
        "molecular_dynamics": dynamics,
        "temperatures_K": sorted({run.temperature for run in runs}),
        "self_energies_Ha": self_energies,
        "seed": args.seed,
        "command": command,
        "total_minutes": round((time.monotonic() - begin) / 60, 1),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    write_card(output / "demo_chno.card.yaml", model, frames, facts)
    print(yaml.safe_dump({"files": str(output), "test": table, "md": dynamics}, sort_keys=False))


if __name__ == "__main__":
    main()
