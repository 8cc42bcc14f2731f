"""Orbax handler of the input positions: {name: bytes}, one compressed file per name."""

import asyncio
import dataclasses
import gzip
from collections.abc import Collection, Mapping

import jax
import orbax.checkpoint as ocp
from etils import epath


class InputPositionsHandler(ocp.AsyncCheckpointHandler):
    """Saves and restores the position of each part of the input, {name: bytes}.

    They are compressed and written in the background, beside the next steps.
    """

    async def async_save(
        self, directory: epath.Path, args: "InputPositionsSave"
    ) -> list[ocp.future.Future]:
        """Starts to write the positions."""
        written = _write(directory, args.positions)
        return [ocp.future.CommitFutureAwaitingContractedSignals(written, name="input_positions")]

    def save(self, directory: epath.Path, args: "InputPositionsSave") -> None:
        """Writes the positions."""
        asyncio.run(_write(directory, args.positions))

    def restore(self, directory: epath.Path, args: "InputPositionsRestore") -> dict[str, bytes]:
        """Reads the named positions; those that were not saved are left out."""
        files = {name: directory / f"{name}.gz" for name in args.names}
        return {n: gzip.decompress(file.read_bytes()) for n, file in files.items() if file.exists()}


async def _write(directory: epath.Path, positions: Mapping[str, bytes]) -> None:
    for name, position in positions.items():
        # Processes that read the same rows write the same file.
        file = directory / f"{name}.{jax.process_index()}"
        file.write_bytes(gzip.compress(position))
        file.replace(directory / f"{name}.gz")


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
