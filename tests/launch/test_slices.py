"""A run's mesh is for as many slices as are requested."""

import pytest
from launch_flags import GKE, OUTPUT, RECIPE, WATCH

from speechgpt_jax.errors import UserError
from speechgpt_jax.launch.command import Command
from speechgpt_jax.launch.slices import check_mesh
from tools import launch_gke, launch_tpu_vm

TWO_SLICES = "--gin_file=gin/meshes/two_slices.gin"
FOUR = "--gin.sharding.MeshConfig.slices=4"


def test_a_mesh_for_the_slices(tmp_path, capsys):
    for slices, arguments in (
        (1, RECIPE),
        (2, [*RECIPE, TWO_SLICES]),
        (2, ["--gin_file", "gin/meshes/two_slices.gin"]),
        (4, [FOUR, *RECIPE, TWO_SLICES]),
    ):
        assert check_mesh(slices, Command(arguments)) is None
    included = tmp_path / "run.gin"
    included.write_text("include 'gin/meshes/two_slices.gin'\n")
    assert check_mesh(2, Command([f"--gin_file={included}"])) is None
    block = tmp_path / "block.gin"  # With a separator of lines that gin doesn't know.
    block.write_text("A = '\u2028 b.MeshConfig.slices = 9'\nb.MeshConfig:\n  slices = 2\n")
    assert check_mesh(2, Command([f"--gin_file={block}"])) is None
    # A file of the image that isn't here can't be checked.
    assert check_mesh(1, Command(["--gin_file=/image/run.gin"])) is None
    note = "2 slices need a mesh for them, if the gin files don't bind it: " + TWO_SLICES
    assert check_mesh(2, Command(["--gin_file=/image/run.gin"])) == note
    arguments = [*GKE, "--topology=4x4", "--slices=2", "--", "--gin_file=/image/run.gin", OUTPUT]
    assert launch_gke.main(arguments) == 0
    assert capsys.readouterr().err == note + "\n"
    # Only training has a mesh over several slices.
    assert check_mesh(2, Command(["--prompts=a"], "speechgpt_jax.infer")) is None


@pytest.mark.parametrize(
    ("slices", "arguments", "message"),
    [
        (2, RECIPE, f"is for 1 of 2 slices: .* is 1; after the recipe, add {TWO_SLICES}[.]"),
        (4, [*RECIPE, TWO_SLICES], f"2 of 4 slices: .*MeshConfig.data=4 {FOUR}[.]"),
        (1, [*RECIPE, TWO_SLICES], "2 of 1 slices: .*MeshConfig.slices=1[.]"),
    ],
)
def test_a_mesh_for_other_slices_is_refused(slices, arguments, message):
    for module, flags in ((launch_gke, [*GKE, "--topology=4x4"]), (launch_tpu_vm, WATCH)):
        with pytest.raises(UserError, match=message):
            module.main([*flags, f"--slices={slices}", "--", *arguments])
