"""The flag --compilation_cache of commands that compile; a main adopts it as its own."""

from speechgpt_jax.arguments import define, output_folder

COMPILATION_CACHE = define(
    "compilation_cache",
    output_folder,
    None,
    "Folder, local or gs://, that keeps compiled programs: another start compiles nothing anew.",
)


def use() -> None:
    """Makes JAX keep its programs in the flag's folder; to be called before anything compiles."""
    if COMPILATION_CACHE.value:
        import jax  # Takes seconds; flags are checked before.

        jax.config.update("jax_compilation_cache_dir", COMPILATION_CACHE.value)
