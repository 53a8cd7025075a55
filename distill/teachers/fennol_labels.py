"""Labels of a batch by a FeNNol model: energies, forces and virial from one differentiation."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from distill.teachers._fennol_model import FennolModel, overflow_flag
from distill.teachers.fennol_energy import cell_inputs


def make_label_function(model: FennolModel) -> Any:
    """Jitted `(state, per_member, variables, inputs) -> (energies, gradient, virial, overflow)`."""

    @partial(jax.jit, static_argnums=(0, 1))
    def label(
        state: Any, per_member: bool, variables: Any, inputs: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        data = model.process(state, inputs)
        data.pop("flags", None)

        def mean_energy(coordinates: jax.Array, strain: jax.Array, members: Any) -> Any:
            deformation = jnp.eye(3, dtype=coordinates.dtype) + strain
            moved = {
                "coordinates": jnp.einsum(
                    "na,nab->nb", coordinates, deformation[inputs["batch_index"]]
                )
            }
            if "cells" in inputs:
                moved |= cell_inputs(inputs["cells"] @ deformation)
            energies = model.energies({**data, **moved}, members)
            return energies.mean(0).sum(), energies

        n_systems = inputs["natoms"].shape[0]
        strain = jnp.zeros((n_systems, 3, 3), inputs["coordinates"].dtype)
        gradient_of = jax.grad(mean_energy, argnums=(0, 1), has_aux=True)
        (gradient, virial), energies = gradient_of(inputs["coordinates"], strain, variables)
        gradient = gradient[None]
        if per_member:

            def one(member: Any) -> jax.Array:
                single = jax.tree.map(lambda leaf: leaf[None], member)
                return gradient_of(inputs["coordinates"], strain, single)[0][0]

            gradient = jax.vmap(one)(variables)
        return energies, gradient, virial, overflow_flag(data)

    return label
