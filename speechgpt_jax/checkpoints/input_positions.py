"""Orbax handler of the input positions: {name: bytes}, one file per name."""

import dataclasses
from collections.abc import Collection, Mapping

import jax
import orbax.checkpoint as ocp
from etils import epath


class InputPositionsHandler(ocp.CheckpointHandler):
    """Saves and restores the position of each part of the input, {name: bytes}."""

    def save(self, directory: epath.Path, args: "InputPositionsSave") -> None:
        for name, position in args.positions.items():
            # Processes that read the same rows write the same file.
            file = directory / f"{name}.{jax.process_index()}"
            file.write_bytes(position)
            file.replace(directory / name)

    def restore(self, directory: epath.Path, args: "InputPositionsRestore") -> dict[str, bytes]:
        files = {name: directory / name for name in args.names}
        return {name: file.read_bytes() for name, file in files.items() if file.exists()}


@ocp.args.register_with_handler(InputPositionsHandler, for_save=True)
@dataclasses.dataclass
class InputPositionsSave(ocp.args.CheckpointArgs):
    """Positions to save, by name."""

    positions: Mapping[str, bytes]


@ocp.args.register_with_handler(InputPositionsHandler, for_restore=True)
@dataclasses.dataclass
class InputPositionsRestore(ocp.args.CheckpointArgs):
    """Names of the positions to restore; missing ones are left out."""

    names: Collection[str]
