"""The flag --module_import, of commands that use SeqIO tasks of the user's own modules."""

import importlib.util

from absl import flags

from speechgpt_jax.errors import UserError

MODULE_IMPORT = flags.DEFINE_list(
    "module_import", [], "Modules that register tasks besides those of `tasks`, with commas."
)


def register() -> None:
    """Imports `tasks` and the given modules, and with them TensorFlow, which takes seconds.

    Raises:
      UserError: there is no module of a given name; nothing is imported then.
    """
    for name in MODULE_IMPORT.value:
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # A parent package is missing, or it is no module name.
            found = None
        if not found:
            raise UserError(f"--module_import={name}: there is no such module.")
    for name in ("tasks", *MODULE_IMPORT.value):
        importlib.import_module(name)
