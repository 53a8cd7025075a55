"""The certificate: what was measured of a student, as JSON and as a page to read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.data import chemical_symbols

from distill.data import Dataset, flag_summary
from distill.data.sanity import rare_elements
from distill.evaluation.environment import describe_environment
from distill.evaluation.results import replace_text
from distill.students import Student

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Targets:
    """What a student must reach for each check to pass.

    Attributes:
        force_r2: at least.
        force_mae_mev_per_ang: at most.
        nve_drift_mev_per_atom_per_ps: absolute value at most.
        md_speedup: more than.
    """

    force_r2: float = 0.998
    force_mae_mev_per_ang: float = 15.0
    nve_drift_mev_per_atom_per_ps: float = 0.05
    md_speedup: float = 1.0


def make_certificate(
    *,
    teacher: Mapping[str, Any],
    student: Student,
    atoms: Atoms,
    dataset: Dataset,
    parts: Mapping[str, Sequence[int]],
    accuracy: Mapping[str, Any],
    nve: Mapping[str, Any],
    speed: Mapping[str, Any],
    precision: str,
    targets: Targets,
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Put measurements together.

    Args:
        teacher: provenance record, see `TeacherInfo.provenance`.
        student: that was measured.
        atoms: system of the NVE run and of the speed comparison.
        dataset: labelled data.
        parts: indices of `train`, `validation` and `test` (whole trajectories each).
        accuracy: from `Accuracy.summary`, on the `test` part.
        nve: from `summarise_nve`.
        speed: from `compare_md_speed`.
        precision: of the student's arithmetic.
        targets: for the checks.
        timings: seconds of each stage.
    """
    trained = set(dataset.subset(parts["train"]).elements)
    present = sorted(set(atoms.numbers.tolist()))
    certificate = {
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "teacher": dict(teacher),
        "student": {
            "parameters": student.n_parameters,
            "architecture": student.spec.architecture,
            "cutoff_ang": student.cutoff,
            "options": student.spec.to_dict()["options"],
        },
        "system": {
            "formula": atoms.get_chemical_formula(),
            "atoms": len(atoms),
            "periodic": atoms.pbc.tolist(),
        },
        **describe_environment(),
        "precision": precision,
        "data": {
            "structures": flag_summary(dataset),
            "split": {name: len(indices) for name, indices in parts.items()},
            "trajectories": {
                name: sorted(set(dataset.trajectory[list(indices)].tolist()))
                for name, indices in parts.items()
            },
            "elements_in_training": [chemical_symbols[z] for z in sorted(trained)],
            "elements_in_system": [chemical_symbols[z] for z in present],
            "elements_not_in_training": [chemical_symbols[z] for z in present if z not in trained],
            "rare_elements": rare_elements(dataset, parts["train"]),
        },
        "accuracy": dict(accuracy),
        "nve": dict(nve),
        "speed": dict(speed),
        "timings_seconds": dict(timings),
    }
    certificate["checks"] = _checks(certificate, targets)
    return certificate


def save_certificate(
    certificate: Mapping[str, Any], folder: str | Path, plots: Sequence[Path] = ()
) -> tuple[Path, Path]:
    """Write `certificate.json` and `certificate.md`; numbers that are not finite become null."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "certificate.json", folder / "certificate.md"
    text = json.dumps(finite(certificate), indent=2, ensure_ascii=False, allow_nan=False)
    for path, content in zip(paths, (text + "\n", to_markdown(certificate, plots)), strict=True):
        replace_text(path, content)
    return paths


def to_markdown(certificate: Mapping[str, Any], plots: Sequence[Path] = ()) -> str:
    """The certificate as a page."""
    teacher, student, speed = (certificate[k] for k in ("teacher", "student", "speed"))
    data, accuracy, nve = (certificate[k] for k in ("data", "accuracy", "nve"))
    device, system = certificate["device"], certificate["system"]
    lines = [
        f"# Certificate: {system['formula']}, student of {teacher['teacher']}",
        "",
        f"Made {certificate['created']} on {device['processor']} ({device['platform']}, "
        f"{device['cores']} cores), precision {certificate['precision']}.",
        "",
        "| check | measured | target | passed |",
        "|---|---|---|---|",
        *(
            f"| {c['name']} | {c['measured']:.4g} | {_cell(c['target'])} | "
            f"{'yes' if c['passed'] else '**no**'} |"
            for c in certificate["checks"]
        ),
        "",
        "## Accuracy against the teacher, held-out trajectories",
        "",
        f"{accuracy['structures']} structures of {len(data['trajectories']['test'])} trajectories "
        "that training never saw.",
        "",
        f"- force MAE {accuracy['force_mae_mev_per_ang']:.2f} meV/Å, "
        f"RMSE {accuracy['force_rmse_mev_per_ang']:.2f} meV/Å, R² {accuracy['force_r2']:.6f} "
        f"(standard deviation of the forces {accuracy['force_label_std_mev_per_ang']:.0f} meV/Å)",
        f"- energy MAE {accuracy['energy_mae_mev_per_atom']:.3f} meV/atom",
        *(
            f"- force MAE of {symbol}: {value:.2f} meV/Å"
            for symbol, value in accuracy["force_mae_by_element_mev_per_ang"].items()
        ),
    ]
    if "teacher_spread_mev_per_ang" in accuracy:
        lines.append(
            f"- for comparison, the teacher's members differ from their mean by "
            f"{accuracy['teacher_spread_mev_per_ang']:.2f} meV/Å (RMS of a force component)"
        )
    lines += [
        "",
        "## Energy conservation",
        "",
        f"{nve['duration_ps']:.2f} ps NVE at {nve['mean_temperature_k']:.0f} K, timestep "
        f"{nve['timestep_fs']} fs: drift {nve['drift_mev_per_atom_per_ps']:+.5f} meV/atom/ps, "
        f"fluctuation {nve['energy_fluctuation_mev_per_atom']:.4f} meV/atom.",
        "",
        "## Speed",
        "",
        f"Same MD loop ({speed['ensemble']}, {speed['timestep_fs']} fs, batch {speed['batch']}), "
        f"one process and device, neighbour lists included, median of {speed['repeats']} runs in "
        "turn:",
        "",
        f"- teacher {speed['teacher_us_per_atom_step']:.3g} µs/atom/step "
        f"({teacher['n_members']} network(s), {teacher['n_parameters']} parameters)",
        f"- student {speed['student_us_per_atom_step']:.3g} µs/atom/step "
        f"({student['parameters']} parameters{_kernel(speed)})",
        f"- student {speed['md_speedup']:.2f} times faster (range of the ratios "
        f"{speed['md_speedup_range'][0]:.2f} to {speed['md_speedup_range'][1]:.2f})",
        "",
        "## Domain",
        "",
        f"- elements in training data: {', '.join(data['elements_in_training'])}; in the system: "
        f"{', '.join(data['elements_in_system'])}; not in training: "
        f"{', '.join(data['elements_not_in_training']) or 'none'}",
        *(
            f"- **warning**: {symbol} was seen in {count} environments of the training data only; "
            "label more structures that hold it"
            for symbol, count in data["rare_elements"].items()
        ),
        f"- structures: {', '.join(f'{k} {v}' for k, v in data['structures'].items())}",
        f"- split: {', '.join(f'{k} {v}' for k, v in data['split'].items())}",
        "",
        "## Provenance",
        "",
        *(f"- teacher {key}: {value}" for key, value in teacher.items() if key != "teacher"),
        *(f"- {name} {version}" for name, version in certificate["versions"].items()),
        *(f"- time for {k}: {v:.1f} s" for k, v in certificate["timings_seconds"].items()),
        "",
        *(f"![{path.stem}]({path.name})" for path in plots),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _checks(certificate: Mapping[str, Any], targets: Targets) -> list[dict[str, Any]]:
    r2 = certificate["accuracy"]["force_r2"]
    mae = certificate["accuracy"]["force_mae_mev_per_ang"]
    drift = certificate["nve"]["drift_mev_per_atom_per_ps"]
    speedup = certificate["speed"]["md_speedup"]
    limit = targets.nve_drift_mev_per_atom_per_ps
    missing = len(certificate["data"]["elements_not_in_training"])
    rows = [
        ("force R²", r2, f"≥ {targets.force_r2}", r2 >= targets.force_r2),
        (
            "force MAE (meV/Å)",
            mae,
            f"≤ {targets.force_mae_mev_per_ang}",
            mae <= targets.force_mae_mev_per_ang,
        ),
        ("NVE drift (meV/atom/ps)", drift, f"|drift| ≤ {limit}", abs(drift) <= limit),
        ("MD speedup", speedup, f"> {targets.md_speedup}", speedup > targets.md_speedup),
        ("elements not in training", missing, "0", missing == 0),
    ]
    return [
        {"name": name, "measured": value, "target": target, "passed": bool(passed)}
        for name, value, target, passed in rows
    ]


def _kernel(speed: Mapping[str, Any]) -> str:
    return f", kernel `{speed['kernel']}`" if speed.get("kernel") else ""


def _cell(text: str) -> str:
    """`text` for a cell of a Markdown table."""
    return text.replace("|", "\\|")


def finite(value: Any) -> Any:
    """The same nested data with None for numbers that are not finite, as JSON needs it."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
