"""Where compiled programs are kept."""

import types

import jax
import pytest

from speechgpt_jax import compilation_cache


@pytest.fixture(autouse=True)
def settings():
    """JAX's own settings come back."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    values = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in values.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("flag", "named", "by_default", "expected"),
    [
        ("programs", "named", True, "programs"),
        ("programs", None, False, "programs"),
        (None, "named", True, "named"),
        (None, None, True, "{tmp_path}/speechgpt_jax/compiled"),
        (None, None, False, None),
    ],
)
def test_the_folder(monkeypatch, tmp_path, flag, named, by_default, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation_cache, "COMPILATION_CACHE", types.SimpleNamespace(value=flag))
    jax.config.update("jax_compilation_cache_dir", named)
    compilation_cache.use(by_default)
    folder = jax.config.jax_compilation_cache_dir
    assert folder == (expected and expected.format(tmp_path=tmp_path))
