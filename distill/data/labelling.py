"""Labelling a set of structures by a teacher, resumable at every batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from ase import Atoms

from distill.data.dataset import Dataset
from distill.data.flags import FAILED, MAX_FORCE, NON_FINITE, compute_flags
from distill.data.hessian import HessianConfig, HessianProducts, draw_directions
from distill.data.joining import join, structure_hashes
from distill.data.labels import Labels
from distill.data.storage import DatasetWriter, load
from distill.errors import DatasetError
from distill.progress import progress_bar

logger = logging.getLogger(__name__)

HESSIAN_RECORD = "hessian_products"
"""Key of the provenance that holds the `HessianConfig`."""


class _Info(Protocol):
    def provenance(self) -> dict[str, Any]: ...


class LabellingTeacher(Protocol):
    """What labelling needs of a teacher."""

    @property
    def info(self) -> _Info:
        """Identity; `provenance()` gives it as a JSON-serialisable dict."""

    def label(self, structures: Sequence[Atoms], uncertainty: bool = False) -> Labels:
        """Labels of a batch in eV and Å."""


class _Product(Protocol):
    @property
    def values(self) -> np.ndarray: ...
    @property
    def error(self) -> np.ndarray: ...
    @property
    def exact(self) -> bool: ...


class HessianTeacher(LabellingTeacher, Protocol):
    """What labelling with Hessian products needs of a teacher."""

    def hvp(self, structure: Atoms, direction: np.ndarray) -> _Product:
        """Products of the Hessian (eV/Å²) with `direction` `[k, n, 3]`, see `Teacher.hvp`."""


def label_structures(
    teacher: LabellingTeacher,
    structures: Dataset,
    path: str | os.PathLike[str],
    batch_size: int = 32,
    max_force: float = MAX_FORCE,
    progress: bool = True,
    hessian: HessianConfig | None = None,
    uncertainty: bool = False,
) -> Dataset:
    """Label `structures` by `teacher` into the dataset file `path`.

    Every batch is on disk when the next one starts. Started again with the same input, labelling
    goes on after the last stored structure; more structures may have been added at the end.
    Structures that must not be trained on are kept and flagged (see `distill.data.flags`); when
    the teacher raises for a batch its structures are tried one by one.

    Hessian products are taken of the structures of a batch that have no flag. Where that fails the
    structure keeps its labels and is flagged `FAILED`, or `NON_FINITE` when a product is not
    finite. Each part on disk numbers the structures of its products from its own first one.

    Args:
        teacher: anything with `label` and `info`; for Hessian products also `hvp`.
        structures: in eV and Å; labels and products that they may have are ignored.
        path: HDF5 file, new or partly filled by an earlier call.
        batch_size: structures handed to the teacher at once.
        max_force: eV/Å, longer forces are flagged.
        progress: show a progress bar with rate and time left.
        hessian: which Hessian-vector products to take; none by default. It is recorded in the
            provenance as `hessian_products`.
        uncertainty: keep the spread of a committee's forces too (of a teacher that has one).

    Returns:
        The labelled dataset, in the order of `structures`.

    Raises:
        DatasetError: no structures; or the file holds other structures, another teacher, or
            another `max_force` or `hessian`; or a teacher without `hvp` is asked for products; or
            the teacher fails for every structure of the first batch, or
            later for a whole batch and also for a structure that it labelled before.
        UnitError: structures in other units.
    """
    if len(structures) == 0:
        raise DatasetError("there are no structures to label: the input dataset is empty")
    if batch_size < 1:
        raise DatasetError(f"batch_size is {batch_size}: give at least 1")
    if hessian is not None and not hasattr(teacher, "hvp"):
        raise DatasetError(
            "Hessian products were asked for, but the teacher has no method hvp: leave `hessian` "
            "out, or add one (distill.teachers.hessian.numerical_hvp takes differences of forces)"
        )
    structures.require_standard_units("labelling works")
    path = Path(path)
    record = {**_provenance(teacher), "max_force": float(max_force)}
    if hessian is not None:
        # the key `hessian` tells how the teacher computes them, see TeacherInfo
        record[HESSIAN_RECORD] = asdict(hessian)
    if uncertainty:
        record["uncertainty"] = True
    if structures.provenance:
        record["structures"] = structures.provenance
    expect_stress = bool(record.get("stress", False))
    with DatasetWriter(path, record) as writer:
        good = _verify_committed(path, structures, max_force, hessian) if writer.count else None
        bar = progress_bar(
            len(structures),
            f"labelling by {record.get('teacher')}",
            unit="structure",
            initial=writer.count,
            disable=not progress,
        )
        with bar:
            while writer.count < len(structures):
                chosen = np.arange(writer.count, min(writer.count + batch_size, len(structures)))
                # subset would cut the links to parents in earlier batches
                parent = structures.parent[chosen]
                batch = replace(structures.subset(chosen), parent=parent, hessian=None)
                batch, failed = _label_batch(teacher, batch, writer.count, good, uncertainty)
                flags = compute_flags(batch, max_force=max_force, expect_stress=expect_stress)
                batch = replace(batch, flag=np.where(failed, FAILED, flags), provenance=record)
                if not failed.all():
                    good = batch.structure(int(np.flatnonzero(~failed)[0]))
                if hessian is not None:
                    able = cast(HessianTeacher, teacher)
                    batch = _add_products(able, batch, writer.count, hessian)
                writer.append(batch)
                bar.update(len(batch))
        return writer.finish()


def _provenance(teacher: LabellingTeacher) -> dict[str, Any]:
    record = dict(teacher.info.provenance())
    if "version" in record:
        record.setdefault("teacher_version", record.pop("version"))
    return record


def _verify_committed(
    path: Path, structures: Dataset, max_force: float, hessian: HessianConfig | None
) -> Atoms | None:
    """Check that the stored structures are the first of `structures`; one that was labelled."""
    stored = load(path)
    expected = structures.subset(range(min(len(stored), len(structures))))
    advice = "give the same structures as before, or another path"
    if len(stored) > len(structures):
        raise DatasetError(
            f"{path}: already holds {len(stored)} structures, the input has only "
            f"{len(structures)}: {advice}"
        )
    differ = (structure_hashes(stored) != structure_hashes(expected)) | (
        stored.trajectory != expected.trajectory
    )
    if differ.any():
        raise DatasetError(
            f"{path}: {int(differ.sum())} of {len(stored)} stored structures are not those of the "
            f"input, first number {int(np.argmax(differ))}: {advice}"
        )
    used = stored.provenance.get("max_force")
    if used != max_force:
        raise DatasetError(
            f"{path}: was flagged with max_force={used} eV/Å, not {max_force}: resume with the "
            "same value, or use another path"
        )
    recorded = stored.provenance.get(HESSIAN_RECORD)
    wanted = None if hessian is None else asdict(hessian)
    if recorded != wanted:
        raise DatasetError(
            f"{path}: was labelled with hessian={recorded}, not {wanted}: resume with the same "
            "value, or use another path"
        )
    # FAILED alone may be about Hessian products
    labelled = np.flatnonzero((stored.flag & FAILED == 0) | np.isfinite(stored.energy))
    return stored.structure(int(labelled[0])) if len(labelled) else None


def _label_batch(
    teacher: LabellingTeacher, batch: Dataset, first: int, good: Atoms | None, uncertainty: bool
) -> tuple[Dataset, np.ndarray]:
    """The labelled batch and a `[B]` bool array of structures for which the teacher raised.

    Args:
        teacher: see `label_structures`.
        batch: structures to label.
        first: number of the first one, for messages.
        good: a structure that the teacher has labelled before, None in the first batch.
        uncertainty: see `label_structures`.
    """
    # Not every teacher of a user's own has the argument.
    options = {"uncertainty": True} if uncertainty else {}
    atoms = [batch.structure(i) for i in range(len(batch))]
    try:
        return batch.labelled(teacher.label(atoms, **options)), np.zeros(len(batch), bool)
    except Exception as error:
        cause = error
        logger.warning(
            "structures %d to %d: the teacher failed (%s); trying one by one",
            first,
            first + len(batch) - 1,
            error,
        )
    parts: list[Dataset] = []
    failed = np.zeros(len(batch), bool)
    for i, structure in enumerate(atoms):
        try:
            single = batch.subset([i]).labelled(teacher.label([structure], **options))
        except Exception as error:
            cause, failed[i] = error, True
            logger.warning("structure %d: the teacher failed (%s)", first + i, error)
            nothing = Labels(np.full(1, np.nan), [np.full((len(structure), 3), np.nan)])
            single = batch.subset([i]).labelled(nothing)
        parts.append(single)
    if failed.all():
        _require_working(teacher, good, first, cause)
    # The parts forgot their parents in other batches.
    return replace(join(parts), parent=batch.parent), failed


def _require_working(
    teacher: LabellingTeacher, good: Atoms | None, first: int, cause: Exception
) -> None:
    """After a whole batch failed: stop unless the teacher still labels a structure it knows.

    Without this a lost GPU would flag all the remaining structures.
    """
    if good is None:
        raise DatasetError(
            f"the teacher failed for every structure of the first batch: {cause}"
        ) from cause
    try:
        teacher.label([good])
    except Exception as error:
        raise DatasetError(
            f"the teacher failed from structure {first} on, also for one that it labelled before: "
            f"{error}; what was labelled is stored: remove the cause and start again to resume"
        ) from error


def _add_products(
    teacher: HessianTeacher, batch: Dataset, first: int, config: HessianConfig
) -> Dataset:
    """`batch` with Hessian products of its unflagged structures; failures are flagged.

    Args:
        teacher: see `label_structures`.
        batch: labelled structures with flags.
        first: number of the first one in the whole dataset.
        config: which products.
    """
    flag = batch.flag.copy()
    parts: list[HessianProducts] = []
    numbers = np.flatnonzero(batch.usable)
    for i in numbers:
        directions = draw_directions(config, first + int(i), int(batch.n_atoms[i]))
        try:
            result = teacher.hvp(batch.structure(int(i)), directions)
            values, error = np.asarray(result.values), np.asarray(result.error)
            if not (np.isfinite(values).all() and np.isfinite(error).all()):
                flag[i] |= NON_FINITE
                logger.warning("structure %d: a Hessian product is not finite", first + i)
                continue
            part = HessianProducts.of_structure(directions, values, error, result.exact)
        except Exception as cause:
            flag[i] |= FAILED
            logger.warning("structure %d: Hessian products failed (%s)", first + i, cause)
        else:
            parts.append(part)
    done = numbers[flag[numbers] == 0]
    return replace(batch, flag=flag, hessian=HessianProducts.join(parts, done.tolist()))
