"""Arguments after `--` that a main would refuse are refused by the launchers."""

import re

import pytest
from launch_flags import GKE, IN_IMAGE, OUTPUT, SLURM, TPU, TRAIN, WATCH

from speechgpt_jax.errors import UserError
from tools import launch_gke, launch_slurm, launch_tpu_vm

TO_ARGUMENTS = [
    (launch_gke, [*GKE, "--topology=2x2"]),
    (launch_slurm, SLURM),
    (launch_tpu_vm, ["train", *TPU]),
    (launch_tpu_vm, WATCH),
]
REFUSED = [
    (TRAIN[:1], "speechgpt_jax.train needs --output_dir=[.]{3}: give it after `--`"),
    (TRAIN[1:2], "speechgpt_jax.train needs --gin_file="),
    (["--module=speechgpt_jax.infer", "--", "--v=1"], "speechgpt_jax.infer needs --answers="),
    (["--gin_file=nope.gin", OUTPUT], "gin file 'nope.gin' is neither in this folder nor in the"),
    ([*TRAIN, "--gin.UNIT=a"], "defines the macro UNIT[.] Did you mean UNITS"),
    ([*TRAIN, "--gin.UNITS"], "--gin.UNITS: write --gin.NAME=VALUE"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_arguments_of_a_main_are_checked_before_anything_starts(arguments, message):
    arguments = arguments if "--" in arguments else ["--", *arguments]
    for module, flags in TO_ARGUMENTS:
        with pytest.raises(UserError, match=message):
            module.main([*flags, *arguments])


def test_what_runs_in_this_folder_is_checked_whole():
    for arguments, message in (
        ([*TRAIN, "--profile_steps=9"], "profile_steps.* such as 20,22, got '9'"),
        (IN_IMAGE, "Unable to open file: /image/run.gin"),
        (["--module=speechgpt_jax.infer", "--", "--answers=a"], "Give one of --audio, --text"),
    ):
        arguments = arguments if "--" in arguments else ["--", *arguments]
        with pytest.raises(UserError, match=message):
            launch_slurm.main([*SLURM, *arguments])
        # A container has other files.
        assert launch_slurm.main([*SLURM, "--image=a", *arguments]) == 0


def test_types_of_gin_values_are_checked():
    arguments = ["--gin_file=gin/meshes/fsdp.gin", OUTPUT, "--gin.sharding.MeshConfig.data=ten"]
    with pytest.raises(UserError, match=r"sharding.MeshConfig.data = 'ten': expected"):
        launch_gke.main([*GKE, "--topology=2x2", "--", *arguments])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("include '{0}'", "{0}: the file includes itself, or includes a file that includes it[.]"),
        ("include 'gin/meshes/fsdp.gin'\ninclude '{0}'", "{0}: the file includes itself"),
        ("# \xe9", "{0}: not UTF-8 .*; save it as UTF-8[.]"),
        ("A = ", "{0}: Unable to parse value"),
        ("include 'nope.gin'", "gin file 'nope.gin' is neither"),
    ],
)
def test_a_broken_gin_file_is_one_line(data, message, tmp_path):
    file = tmp_path / "run.gin"
    file.write_bytes(data.format(file).encode("latin-1"))
    for module, flags in TO_ARGUMENTS:
        with pytest.raises(UserError, match=message.format(re.escape(str(file)))):
            module.main([*flags, "--", f"--gin_file={file}", OUTPUT])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dri=gs://a"], r"train has no flag --output_dri; did you mean --output_dir\?"),
        (["--module=speechgpt_jax.infer", "--", "--gin.x=1"], "infer has no flag --gin; see its"),
        (["--module=speechgpt_jax.infer", "--", "--noplai"], "no flag --noplai"),
    ],
)
def test_flags_that_a_main_lacks_are_refused(arguments, message):
    arguments = arguments if "--" in arguments else ["--", *arguments]
    with pytest.raises(UserError, match=message):
        launch_slurm.main([*SLURM, *arguments])


@pytest.mark.parametrize(
    ("main", "output"),
    [("train", [TRAIN[0], "--output_dir=runs/a"]), ("infer", ["--answers", "/tmp/a"])],
)
def test_an_output_on_the_disk_of_a_pod_is_refused(main, output):
    message = "--(output_dir=runs|answers=/tmp)/a is on the disk of a pod, .* give a folder on gs:"
    with pytest.raises(UserError, match=message):
        module = f"--module=speechgpt_jax.{main}"
        launch_gke.main([*GKE, "--topology=16x16", module, "--", *output])
