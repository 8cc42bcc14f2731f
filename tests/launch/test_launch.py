"""The commands of the launchers' --dry_run, checked against gcloud, Kubernetes and SLURM."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from launch_flags import GKE, IN_IMAGE, NEW, SLURM, TPU, TRAIN, UNITS_GIN, WATCH

from speechgpt_jax.errors import UserError
from speechgpt_jax.launch import gke, tpu_vm
from speechgpt_jax.launch.command import GRACE_SECONDS, MAINS, SAVED_EXIT_CODE, Command, flag_names
from speechgpt_jax.launch.command import TRAIN as TRAIN_MAIN
from tools import launch_gke, launch_slurm, launch_tpu_vm

# JobSet's own schema, from its CustomResourceDefinition of August 2026 (Apache-2.0), without its
# descriptions and without the fields of a pod that no launcher sets.
ROOT = Path(__file__).parent.parent.parent
SCHEMA = ROOT / "tests" / "testdata" / "jobset_v1alpha2.json"


def dry_run(module, arguments, capsys):
    assert module.main(arguments) == 0
    return capsys.readouterr().out


def check(value, schema, path="manifest"):
    """Raises an AssertionError where a value breaks the schema, like a strict Kubernetes server."""
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    if "type" in schema:
        assert isinstance(value, types[schema["type"]]), f"{path}: {value!r} is no {schema['type']}"
    assert value in schema.get("enum", [value]), f"{path}: {value!r} is none of {schema['enum']}"
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value), f"{path} lacks a required field"
        for key, item in value.items():
            known = schema.get("properties", {})
            if known:
                assert key in known, f"{path} has no field {key}"
            check(item, known.get(key) or schema.get("additionalProperties", {}), f"{path}.{key}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            check(item, schema.get("items", {}), f"{path}[{i}]")


@pytest.mark.parametrize(
    ("accelerator", "topology", "more", "slices", "hosts", "chips"),
    [
        ("tpu-v5-lite-podslice", "16x16", [], 1, 64, 4),
        ("tpu-v5-lite-podslice", "2x4", [], 1, 2, 4),
        ("tpu-v6e-slice", "2x4", ["--chips_per_host=8"], 4, 1, 8),
        ("tpu-v6e-slice", "1x1", [], 1, 1, 1),
        ("tpu-v5p-slice", "4x4x4", [], 2, 16, 4),
        ("tpu-v5p-slice", "1x1x1", [], 1, 1, 1),
        ("tpu-v5p-slice", "16x16x24", [], 1, 1536, 4),
        ("tpu-v4-podslice", "2x4x4", [], 1, 8, 4),
        ("tpu7x", "2x2x1", [], 1, 1, 4),
    ],
)
def test_jobset(accelerator, topology, more, slices, hosts, chips, capsys):
    shape = [f"--accelerator={accelerator}", f"--topology={topology}", f"--slices={slices}"]
    mesh = [f"--gin.sharding.MeshConfig.slices={slices}"]
    arguments = [*GKE, *shape, *more, "--", *mesh, *IN_IMAGE]
    manifest = yaml.safe_load(dry_run(launch_gke, arguments, capsys))
    check(manifest, json.loads(SCHEMA.read_text()))
    [group] = manifest["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    assert (group["replicas"], job["parallelism"], job["completions"]) == (slices, hosts, hosts)
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert container["command"][-2:] == IN_IMAGE
    # JobSet before 0.11 requires the status, too.
    [condition] = job["podFailurePolicy"]["rules"][1]["onPodConditions"]
    assert condition == {"type": "DisruptionTarget", "status": "True"}
    # Kubernetes requires a DNS label, and allows failure policies only if pods never restart.
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_jobset_on_spot_nodes_of_a_shared_cluster(capsys):
    flags = ["--spot", "--queue=team", "--namespace=speech", "--service_account=trainer"]
    flags += ["--host_network", "--env=A=1", "--env=B=x=y", "--topology=2x2"]
    manifest = yaml.safe_load(dry_run(launch_gke, [*GKE, *flags, "--", *TRAIN], capsys))
    check(manifest, json.loads(SCHEMA.read_text()))
    assert manifest["metadata"]["namespace"] == "speech"
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    assert pod["terminationGracePeriodSeconds"] == 15
    assert pod["serviceAccountName"] == "trainer" and pod["hostNetwork"]
    [container] = pod["containers"]
    assert container["env"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "x=y"}]
    assert container["securityContext"] == {"privileged": True}


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips", "message"),
    [
        ("tpu-v5-lite-podslice", "3x3", None, "no topology 3x3; expected one of 1x1, 2x2"),
        (
            "tpu-v5p-slice",
            "4x2x2",
            None,
            "2x2x4, 2x4x4, or three multiples of 4 in ascending order",
        ),
        ("tpu-v5p-slice", "16x16", None, "three multiples of 4 in ascending order"),
        ("tpu-v5p-slice", "2x2x6", None, "no topology 2x2x6"),
        ("tpu-v4-podslice", "2x4x8", None, "no topology 2x4x8"),
        ("tpu7x", "6x6x6", None, "no topology 6x6x6"),
        ("tpu7x", "8x4x4", None, "no topology 8x4x4"),
        ("tpu7x", "1x1x1", None, "no topology 1x1x1"),
        ("tpu-v5p-slice", "4x4x4000", None, "such as 4x4x8, of at most 6144 chips"),
        ("tpu-v6e-slice", "4x4x4", None, "8x16, 16x16[.]"),
        ("tpu-v6e-slice", "4x4", 8, "chips_per_host 8 must be 4 for tpu-v6e-slice of 4x4"),
        ("tpu-v6e-slice", "2x4", 1, "chips_per_host 1 must be 4 or 8"),
    ],
)
def test_slices_that_gke_does_not_have(accelerator, topology, chips, message):
    with pytest.raises(UserError, match=message):
        gke.Nodes(accelerator, topology, chips)


def test_the_schema_finds_mistakes():
    schema = json.loads(SCHEMA.read_text())
    for path, value in (
        (("spec", "failurePolicy", "maxRestart"), 3),
        (("spec", "failurePolicy", "rules", 0, "action"), "Restart"),
        (("spec", "replicatedJobs", 0, "template", "spec", "parallelism"), "4"),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "container"), []),
    ):
        manifest = inner = gke.job_set("a", "image", gke.Nodes("tpu7x", "2x2x1"), Command(TRAIN))
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(AssertionError, match=r"manifest\.spec"):
            check(manifest, schema)


def test_names_of_a_cluster_may_be_longer_than_that_of_a_run():
    names = {
        "--namespace": "1" + "a" * 62,
        "--queue": "1st.team-queue",
        "--service_account": "speech." + "a" * 100,
        "--reservation": "a" * 63,
    }
    given = [f"{flag}={name}" for flag, name in names.items()]
    args = launch_gke.parser().parse_args([*GKE, "--topology=2x4", *given, "--", "--v=1"])
    assert [args.namespace, args.queue, args.service_account, args.reservation] == [*names.values()]


@pytest.mark.parametrize(
    ("module", "arguments", "illegal"),
    [
        (launch_gke, [*GKE, "--topology=2x4"], "--topology=0x4"),
        (launch_gke, [*GKE, "--topology=2x4"], "--topology=16,16"),
        (launch_gke, [*GKE, "--topology=2x4"], "--topology=-2x-2"),
        (launch_gke, [*GKE, "--topology=2x4"], "--topology=4"),
        (launch_gke, [*GKE, "--topology=2x4"], "--module=speechgpt_jax.serve"),
        (launch_gke, [*GKE, "--topology=2x4"], "--slices=0"),
        (launch_gke, [*GKE, "--topology=2x4"], "--accelerator=tpu-v9"),
        (launch_gke, [*GKE, "--topology=2x4"], "--env=A"),
        (launch_gke, [*GKE, "--topology=2x4"], "--queue=Team"),
        (launch_gke, [*GKE, "--topology=2x4"], f"--name={'a' * 41}"),
        (launch_gke, [*GKE, "--topology=2x4"], "--name=1st"),
        (launch_gke, [*GKE, "--topology=2x4"], f"--namespace={'a' * 64}"),
        (launch_gke, [*GKE, "--topology=2x4"], "--namespace=a.b"),
        (launch_gke, [*GKE, "--topology=2x4"], "--service_account=a..b"),
        (launch_gke, [*GKE, "--topology=2x4"], "--reservation=2nd"),
        (launch_gke, [*GKE, "--topology=2x4"], "--max_restarts=-1"),
        (launch_gke, [*GKE, "--topology=2x4"], "--name=Stage_1"),
        (launch_gke, [*GKE, "--topology=2x4"], "--image="),
        (launch_slurm, SLURM, "--name=my run"),
        (launch_slurm, SLURM, "--name="),
        (launch_slurm, SLURM, "--module=infer"),
        (launch_slurm, SLURM, "--hours=0"),
        (launch_slurm, SLURM, "--hours=nan"),
        (launch_slurm, SLURM, "--nodes=0"),
        (launch_slurm, SLURM, "--gpus_per_node=-8"),
        (launch_slurm, SLURM, "--cpus_per_gpu=0"),
        (launch_slurm, SLURM, "--sbatch=partition gpu"),
        (launch_slurm, SLURM, "--node=1"),
    ],
)
def test_illegal_arguments_are_named(module, arguments, illegal, capsys):
    assert dry_run(module, [*arguments, "--", *TRAIN], capsys)
    flag, _, value = illegal.partition("=")
    with pytest.raises(UserError, match=f"{flag}.*{value}"):
        module.main([*arguments, illegal, "--", *TRAIN])


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "--name=my pod", "--zone=z"],
        ["create", "--name=pod", "--zone=", "--accelerator_type=a", "--runtime_version=b"],
        ["create", "--name=pod", "--zone=z", "--accelerator_type=a"],
        ["setup", "--name=pod", "--zone=z", "--source="],
        ["train", "--name=pod", "--zone=z"],
        ["destroy", "--name=pod", "--zone=z"],
        [],
    ],
)
def test_illegal_tpu_vm_commands(arguments):
    with pytest.raises(UserError):
        launch_tpu_vm.main(arguments)


def test_a_missing_program_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for module, arguments, message in (
        (launch_slurm, ["--name=a", "--nodes=4"], "sbatch is .*; --dry_run prints the script with"),
        (launch_gke, [*GKE[:-1], "--topology=2x2"], "kubectl is .*; --dry_run prints the man"),
        (launch_tpu_vm, ["train", "--name=a", "--zone=z"], "gcloud is .*; --dry_run prints the c"),
    ):
        with pytest.raises(UserError, match=message):
            module.main([*arguments, "--", *TRAIN])


def test_slurm(capsys):
    arguments = ["--name=a", "--nodes=4", "--sbatch=--partition=gpu", "--dry_run", "--", *TRAIN]
    lines = dry_run(launch_slurm, arguments, capsys).splitlines()
    assert lines[0] == "#!/bin/bash"
    options = dict(
        re.fullmatch(r"#SBATCH --([a-z-]+)=?(.*)", x).groups() for x in lines if "#SBATCH" in x
    )
    # JAX uses one device per task, by its local id.
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8"
    assert (options["nodes"], options["partition"]) == ("4", "gpu")
    assert options["signal"] == f"TERM@{GRACE_SECONDS}"
    assert re.fullmatch(r"\d+:\d\d:\d\d", options["time"])
    [srun] = [shlex.split(line) for line in lines if line.startswith("srun")]
    assert srun[-3:] == TRAIN, "the shell must not expand the pattern"


# Plays srun, whose tasks end with $CODE, and scontrol.
SRUN = """#!/bin/sh
echo "srun, $SRUN_CPUS_PER_TASK cores: $@"
exit $CODE
"""
SCONTROL = """#!/bin/sh
echo "scontrol $@"
"""


@pytest.mark.parametrize(
    ("main", "code", "crashes", "requeued"),
    [
        ("train", 0, 0, False),
        ("train", SAVED_EXIT_CODE, 0, True),
        ("train", SAVED_EXIT_CODE, 9, True),
        ("train", 1, 0, True),
        ("train", 137, 1, True),
        ("train", 1, 2, False),
        # SIGTERM ends the other mains.
        ("infer", 143, 9, True),
        ("infer", SAVED_EXIT_CODE, 9, False),
        ("evaluate", 143, 9, True),
    ],
)
def test_the_slurm_script_requeues(main, code, crashes, requeued, tmp_path, capsys):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    flags = [*SLURM, "--max_restarts=2", "--image=me/image", "--mounts=/scratch:/scratch"]
    flags += [f"--module=speechgpt_jax.{main}"]
    infer = ["--prompts=gs://bucket/a-*.jsonl", "--answers=gs://bucket/b"]
    arguments = infer if main == "infer" else TRAIN
    script = dry_run(launch_slurm, [*flags, "--", *arguments], capsys)
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CODE": str(code),
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "12",
    }
    (tmp_path / "a-7.crashes").write_text("exit code 1\n" * crashes)
    done = subprocess.run(
        ["bash"], input=script, env=variables, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == code
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "srun, 12 cores: --kill-on-bad-exit=1 --container-image=me/image"
        f" --container-mounts=/scratch:/scratch python -m speechgpt_jax.{main}"
    )
    assert lines[0].endswith(" ".join(arguments)), "the shell must not expand the pattern"
    assert lines[1:] == (["scontrol requeue 7"] if requeued else [])


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["create", *TPU, *NEW, "--spot"], {"--node-id=pod", "--spot"}),
        (["create", *TPU, *NEW, "--slices=2"], {"--node-count=2", "--node-prefix=pod"}),
        (["setup", *TPU, "--source=https://host/a.git"], {"--worker=all", "--node=all"}),
        (["train", *TPU, "--", *TRAIN], {"--worker=all", "--batch-size=all"}),
        (["delete", *TPU, "--project=p"], {"--force", "--quiet", "--project=p"}),
    ],
)
def test_tpu_vm(arguments, flags, capsys):
    command = shlex.split(dry_run(launch_tpu_vm, arguments, capsys))
    assert command[:4] == ["gcloud", "compute", "tpus", "queued-resources"]
    assert command[5:7] == ["pod", "--zone=us-west4-a"]
    assert flags <= set(command[7:])


@pytest.mark.parametrize(
    ("accelerator_type", "expected"),
    [
        ("nope", "v2-8.*v5p-8"),
        ("v5litepod-7", r"expected v5litepod-1\|4\|8\|16\|32\|64\|128\|256[.]$"),
        ("v6e-512", "v6e-1"),
        ("v4-24", "v4-8.*multiples of 128 to 8192"),
        ("v5p-12416", "to 12288"),
        ("v5p", "v5p-8"),
        ("v3-0", "v3-8"),
    ],
)
def test_tpu_types_that_there_are_not(accelerator_type, expected):
    with pytest.raises(UserError, match=f"no accelerator_type {accelerator_type}; .*{expected}"):
        launch_tpu_vm.main(["create", *TPU, *NEW, f"--accelerator_type={accelerator_type}"])
    for known in ("v2-8", "v3-32", "v4-8", "v4-4096", "v5p-384", "v5litepod-1", "v6e-256"):
        tpu_vm.Request(known, "image")


@pytest.mark.parametrize("accelerator_type", ["tpu7x-128", "v7x-8"])
def test_tpu7x_is_on_gke_only(accelerator_type):
    kind = f"--accelerator_type={accelerator_type}"
    for arguments in (["create", *TPU, *NEW, kind], [*WATCH, kind, "--", *TRAIN]):
        with pytest.raises(UserError, match=f"{accelerator_type} .* tools.launch_gke"):
            launch_tpu_vm.main(arguments)


def on_a_pod(module, arguments, capsys):
    """The words that start a main on a host of a TPU VM pod."""
    flags = ["train", *TPU, f"--module={module}", "--", *arguments]
    command = shlex.split(dry_run(launch_tpu_vm, flags, capsys))
    [remote] = [x.removeprefix("--command=") for x in command if x.startswith("--command=")]
    script = shlex.split(remote)[shlex.split(remote).index("-c") + 1]
    return shlex.split(script.split(";")[1])


def on_gke(module, arguments, capsys):
    flags = [*GKE, "--topology=2x2", f"--module={module}", "--", *arguments]
    manifest = yaml.safe_load(dry_run(launch_gke, flags, capsys))
    check(manifest, json.loads(SCHEMA.read_text()))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    [code] = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert code == (SAVED_EXIT_CODE if container["name"] == "train" else 143)
    return container["command"]


def on_slurm(module, arguments, capsys):
    flags = [*SLURM, f"--module={module}", "--", *arguments]
    [srun] = re.findall(r"(?m)^srun .*", dry_run(launch_slurm, flags, capsys))
    return shlex.split(srun)[2:]


def in_the_help(module):
    """The commands of the help, parsed."""
    text = module.__doc__.replace("\\\n", " ")
    commands = re.findall(r"python -m tools\.\w+ (.*)", text)
    return [module.parser().parse_args(shlex.split(command)) for command in commands]


LAUNCHERS = [launch_gke, launch_slurm, launch_tpu_vm]


@pytest.mark.parametrize("module", [*MAINS])
def test_each_main_gets_flags_that_it_has(module, capsys):
    known = flag_names(module)

    def names(words):
        given = [word for word in words if not word.startswith("--gin.")]
        return {re.fullmatch(r"--(\w+)=?.*", word)[1] for word in given}

    for start in (on_a_pod, on_gke, on_slurm):
        needed = list(TRAIN[:2]) if module == TRAIN_MAIN else []
        if module == "speechgpt_jax.infer":
            folder = "answers" if start is on_slurm else "gs://a"
            needed = [f"--prompts={UNITS_GIN}", f"--answers={folder}"]
        arguments = [*needed, "--log_dir=gs://a b", "--v=1"]
        python, m, started, *words = start(module, arguments, capsys)
        assert m == "-m" and started == module and python.endswith("python")
        assert words[-2:] == ["--log_dir=gs://a b", "--v=1"]
        given = names(words)
        assert given <= known
        assert ("stopped_exit_code" in given) == ("stopped_exit_code" in known)
        # On a pod a main is told to look for the other processes; elsewhere it does so by itself.
        assert ("multihost" in given) == (start is on_a_pod)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_commands_in_the_help(launcher):
    modules = {getattr(args, "module", None) for args in in_the_help(launcher)}
    assert {"speechgpt_jax.train", "speechgpt_jax.infer"} <= modules


def test_runs_of_two_mains_are_told_apart():
    digests = {Command(["--a"], module).digest for module in MAINS}
    assert len(digests | {Command(["--a", "--b"]).digest}) == len(MAINS) + 1
