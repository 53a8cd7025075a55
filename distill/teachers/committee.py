"""A committee of any teachers: the mean of their labels, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from distill.data.labels import Labels
from distill.errors import ConfigError
from distill.potential import Potential
from distill.teachers.base import HessianProduct, Teacher, TeacherInfo, check_structures
from distill.teachers.host import host_potential


class CommitteeTeacher:
    """Mean of several teachers of any kind.

    Networks of one FeNNol architecture are better loaded as one teacher (`fennol:a.fnx,b.fnx`),
    which shares their descriptors. Energies of teachers with different reference energies differ
    by a constant for each composition; their mean is taken as it is.

    Args:
        members: at least two; a structure must suit all of them.
        name: recorded as provenance; made of the members' names by default.

    Raises:
        ConfigError: fewer than two members, or members without a common element.
    """

    def __init__(self, members: Sequence[Teacher], name: str | None = None):
        if len(members) < 2:
            raise ConfigError(f"a committee needs at least two teachers, got {len(members)}")
        self.members = tuple(members)
        infos = [member.info for member in members]
        elements = set(infos[0].elements).intersection(*(info.elements for info in infos))
        if not elements:
            raise ConfigError(
                "the members of a committee have no element in common: "
                + ", ".join(info.name for info in infos)
            )
        cutoffs = [info.cutoff for info in infos if info.cutoff is not None]
        conservative = [info.conservative for info in infos]
        licences = sorted({info.licence for info in infos})
        self._info = TeacherInfo(
            name=name or "committee:" + "+".join(info.name for info in infos),
            kind="committee",
            version="+".join(f"{info.kind} {info.version}" for info in infos),
            weights_sha256=",".join(info.weights_sha256 for info in infos),
            elements=tuple(sorted(elements)),
            cutoff=max(cutoffs) if len(cutoffs) == len(infos) else None,
            n_members=len(infos),
            n_parameters=sum(info.n_parameters for info in infos),
            periodic=all(info.periodic for info in infos),
            partly_periodic=all(info.partly_periodic for info in infos),
            stress=all(info.stress for info in infos),
            licence=", ".join(licences),
            hessian="exact" if all(i.hessian == "exact" for i in infos) else "numerical",
            conservative=None if None in conservative else all(conservative),
        )

    @property
    def info(self) -> TeacherInfo:
        """Identity and capabilities: what all members have in common."""
        return self._info

    def label(self, structures: Sequence[Atoms], uncertainty: bool = False) -> Labels:
        """Means over the members.

        Args:
            structures: any that suit every member.
            uncertainty: also the spread: for each atom the standard deviation of the members'
                forces, eV/Å.

        Raises:
            UnknownElementError, UnsupportedStructureError: see `check_structures`; also what the
                members raise.
        """
        check_structures(self.info, structures)
        labels = [member.label(structures) for member in self.members]
        energy = np.mean([own.energy for own in labels], axis=0)
        forces = [
            np.mean(each, axis=0) for each in zip(*(own.forces for own in labels), strict=True)
        ]
        stresses = [own.stress for own in labels if own.stress is not None]
        stress = np.mean(stresses, axis=0) if len(stresses) == len(labels) else None
        spread = None
        if uncertainty:
            spread = [
                np.sqrt(((np.stack(each) - mean) ** 2).sum(-1).mean(0))
                for each, mean in zip(
                    zip(*(own.forces for own in labels), strict=True), forces, strict=True
                )
            ]
        return Labels(energy, forces, stress, uncertainty=spread)

    def potential(self, atoms: Atoms) -> Potential:
        """MD potential of the mean: the compiled loop calls the members back."""
        return host_potential(self, atoms)

    def hvp(self, structure: Atoms, direction: np.ndarray) -> HessianProduct:
        """Mean of the members' products; errors add in quadrature."""
        products = [member.hvp(structure, direction) for member in self.members]
        error = np.sqrt(np.sum([np.square(p.error) for p in products], axis=0)) / len(products)
        exact = all(p.exact for p in products)
        return HessianProduct(np.mean([p.values for p in products], axis=0), error, exact)
