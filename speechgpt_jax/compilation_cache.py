"""The flag --compilation_cache of commands that compile; a main adopts it as its own."""

from speechgpt_jax.arguments import define, output_folder
from speechgpt_jax.files import user_cache

COMPILATION_CACHE = define(
    "compilation_cache",
    output_folder,
    None,
    "Folder, local or gs://, that keeps compiled programs: the next start doesn't compile them"
    " again.",
)


def use(by_default: bool = False) -> None:
    """Makes JAX keep its programs in the flag's folder; to be called before anything compiles.

    Args:
      by_default: without the flag, and unless JAX's own settings name a folder, they are kept in
        the user's cache, for commands that are started often.
    """
    folder = COMPILATION_CACHE.value
    if not folder and not by_default:
        return
    import jax  # Takes seconds; flags are checked before.

    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
    elif jax.config.jax_compilation_cache_dir is None and (cache := user_cache()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
        # Reading a program takes a few milliseconds.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
