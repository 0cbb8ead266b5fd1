"""Jobs on clusters: their files say what is meant whatever the names, and the tools are asked rightly.

The tools are programs of the test on PATH that note what they were given and play what they are told.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.errors import FileProblem, UsageError
from luthier.runs.launch.cargo import job_name, load_along, recipe_for
from luthier.runs.launch.jobs import find_job, list_jobs, plan_job
from luthier.runs.launch.kubernetes import CARRIED, place_on_volume, small
from luthier.runs.launch.price import cost_of
from luthier.runs.launch.slurm import TIME
from luthier.schema.launch import Cost, LaunchChoice
from luthier.schema.load import dump_values, load_recipe, recipe_values
from luthier.schema.recipe import Recipe
from tiny import save_tiny_model, write_rows

ODD = """it's $(touch never) "odd" & `x`; # 50%"""
TOOL = """#!{python} -SEI
import json, os, shutil, sys
here = os.path.dirname(os.path.abspath(__file__))
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open(os.path.join(here, "calls.jsonl"), "a") as file:
    file.write(json.dumps(words) + "\\n")
plays = json.load(open(os.path.join(here, "plays.json")))
line = " ".join(words)
key = max((one for one in plays if line.startswith(one)), key=len, default=None)
if key is None:
    sys.exit(0)
turns = os.path.join(here, "turn-" + str(sorted(plays).index(key)))
turn = os.path.getsize(turns) if os.path.exists(turns) else 0
open(turns, "a").write("x")
play = plays[key][min(turn, len(plays[key]) - 1)]
if "makes" in play:
    shutil.copytree(play["makes"], words[-1])
sys.stdout.write(play.get("says", ""))
sys.stderr.write(play.get("errs", ""))
sys.exit(play.get("code", 0))
"""


class Tools:
    """Programs on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def play(self, plays: dict[str, list[dict[str, Any]]], *programs: str) -> None:
        """What each command that begins so says, turn by turn; the last goes on."""
        for program in programs:
            path = self.folder / program
            path.write_text(TOOL.format(python=sys.executable))
            path.chmod(0o755)
        for old in self.folder.glob("turn-*"):
            old.unlink()
        (self.folder / "plays.json").write_text(json.dumps(plays))
        (self.folder / "calls.jsonl").write_text("")

    def calls(self, *beginning: str) -> list[list[str]]:
        """Commands that were given, of those that begin so."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [words for words in map(json.loads, lines) if tuple(words[: len(beginning)]) == beginning]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    found = Tools(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{found.folder}:/usr/bin:/bin")
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / ODD
    folder.mkdir()
    write_rows(folder / "my rows.jsonl", 20)
    (folder / "recipe.yaml").write_text(
        "name: Orders!\nmodel: {id: nobody/no-such-model}\nmethod: {name: lora}\n"
        'data: {train: "my rows.jsonl"}\ntraining: {batch_size: 16, epochs: 1}\n'
    )
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LUTHIER_RUNS", str(folder / "runs"))
    monkeypatch.setenv("LUTHIER_POLL", "0.02")
    return folder


def luthier(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


def choice(on: str = "slurm", **more: Any) -> LaunchChoice:
    return LaunchChoice.model_validate({"on": on, "name": "orders", "nodes": 2, "gpus": 4, **more})


def asked(home: Path, one: LaunchChoice, *words: str) -> Recipe:
    return recipe_for(load_recipe(home / "recipe.yaml", words), one)


def job_text(home: Path, one: LaunchChoice) -> str:
    return plan_job(one, asked(home, one), file=None, cost=Cost()).text


def finished(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"state": "done"}\n')
    return folder


# -- SLURM ---------------------------------------------------------------------------------------


def batch(home: Path, tools: Tools, text: str, **more: str) -> subprocess.Popen[str]:
    (home / "runs" / ".jobs").mkdir(parents=True, exist_ok=True)
    names = {"SLURM_JOB_ID": "31234", "SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_PROCID": "1", **more}
    return subprocess.Popen(
        ["bash", "-c", text], env={**os.environ, **names}, stderr=subprocess.DEVNULL, text=True
    )


def test_the_batch_script_calls_srun_with_every_word_as_it_is(home: Path, tools: Tools) -> None:
    tools.play(
        {"scontrol show": [{"says": "gpu1\ngpu2\n"}], "srun": [{"says": "training\n", "code": 3}]},
        "scontrol", "srun", "scancel",
    )  # fmt: skip
    text = job_text(home, choice(time="2:00:00", partition="a100", setup=("export FROM_SETUP=1",)))
    ended = batch(home, tools, text)
    assert ended.wait(30) == 3, "the training's exit code"
    (srun,) = tools.calls("srun")
    assert srun[1:5] == ["--ntasks=2", "--ntasks-per-node=1", "--wait=0", "--kill-on-bad-exit=0"]
    there = str(home / "runs" / ".jobs" / "orders.recipe.yaml")
    assert srun[9:] == [
        sys.executable,
        "-m",
        "luthier",
        "train",
        there,
        "--run",
        "orders",
        "--gpus",
        "4",
        "--nodes",
        "2",
    ]
    log = (home / "runs" / ".jobs" / "orders.log").read_text()
    assert "start 0 of job 31234 on gpu[1-2]" in log
    assert "training" in log
    assert not (home / "never").exists(), "nothing in a name is run"
    assert not tools.calls("scontrol", "requeue")


def test_the_task_of_a_machine_knows_its_place_and_the_first(home: Path, tools: Tools) -> None:
    """The srun of this test runs its command as one task would."""
    tools.play({"scontrol show": [{"says": "gpu1\ngpu2\n"}]}, "scontrol", "scancel")
    srun = tools.folder / "srun"
    srun.write_text('#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n')
    srun.chmod(0o755)
    text = job_text(home, choice()).replace(sys.executable, str(tools.folder / "python"))
    tools.play({"scontrol show": [{"says": "gpu1\ngpu2\n"}]}, "scontrol", "python")
    assert batch(home, tools, text).wait(30) == 0
    (python,) = tools.calls("python")
    there = str(home / "runs" / ".jobs" / "orders.recipe.yaml")
    assert python[1:] == [
        "-m", "luthier", "train", there, "--run", "orders", "--gpus", "4", "--nodes", "2",
        "--node-rank", "1", "--rendezvous", "gpu1:21234",
    ]  # fmt: skip


def test_a_job_whose_time_is_up_saves_and_waits_again(home: Path, tools: Tools) -> None:
    tools.play({"scontrol show": [{"says": "gpu1\n"}]}, "scontrol", "scancel")
    srun = tools.folder / "srun"  # ends when it is told to, as a run that saves
    wait = f"until [ -e {tools.folder}/told ]; do sleep 0.05; done"
    srun.write_text(f"#!/bin/bash\ntouch {tools.folder}/up\n{wait}\nexit 130\n")
    srun.chmod(0o755)
    job = batch(home, tools, job_text(home, choice(nodes=1)))
    until = time.monotonic() + 30
    while not (tools.folder / "up").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    while not tools.calls("scancel"):
        assert time.monotonic() < until
        time.sleep(0.02)
    (tools.folder / "told").touch()
    job.wait(30)
    assert tools.calls("scancel") == [["scancel", "--signal=TERM", "31234"]]
    assert tools.calls("scontrol", "requeue") == [["scontrol", "requeue", "31234"]]


def test_slurm_plays_its_states_and_the_run_is_found(
    home: Path, tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.play(
        {
            "sbatch": [{"says": "77;cluster\n"}],
            "squeue": [{"says": "PENDING|Resources\n"}, {"says": "RUNNING|None\n"},
                       {"says": "REQUEUED|None\n"}, {"says": "RUNNING|None\n"},
                       {"errs": "slurm_load_jobs error: Invalid job id specified\n", "code": 1}],
            "sacct": [{"says": "COMPLETED|0:0\n"}],
        },
        "sbatch", "squeue", "sacct",
    )  # fmt: skip
    finished(home / "runs" / "orders")
    (home / "runs" / ".jobs").mkdir()
    (home / "runs" / ".jobs" / "orders.log").write_text("step 1\nstep 2\nhalf a li")
    assert luthier("launch", "recipe.yaml", "--on", "slurm", "--name", "orders", "--gpus", "8",
                   "--price-per-gpu", "2", "--hours", "3", "--submit", "--yes") == 0  # fmt: skip
    said = capsys.readouterr()
    assert "$16.00 an hour ($2.00 a GPU, as given)" in said.out
    assert "$48.00" in said.out
    assert said.out.index("$48.00") < len(said.out)
    for words in (
        "pending: PENDING (Resources)",
        "running: RUNNING",
        "preempted: REQUEUED",
        "done: COMPLETED",
    ):
        assert words in said.err
    assert "step 2" in said.err
    assert "half a li" not in said.err, "a line that is not whole waits"
    (sbatch,) = tools.calls("sbatch")
    assert sbatch == ["sbatch", "--parsable", str(home / "orders.sbatch")]
    job = find_job("latest")
    assert (job.id, job.state, job.brought) == ("77", "done", str(home / "runs" / "orders"))
    assert find_job("77") == find_job("ord") == job
    assert luthier("launch", "--list", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)["jobs"]
    assert (listed["job"], listed["state"], listed["cost"]["hourly"]) == ("orders", "done", 16.0)


def test_a_job_that_fails_says_so_and_goes_on_when_submitted_again(
    home: Path, tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.play(
        {"sbatch": [{"says": "1\n"}], "squeue": [{}], "sacct": [{"says": "TIMEOUT|0:0\n"}]},
        "sbatch", "squeue", "sacct",
    )  # fmt: skip
    words = ("launch", "recipe.yaml", "--on", "slurm", "--name", "orders", "--submit", "--yes")
    assert luthier(*words) == 1
    assert "job orders is failed: TIMEOUT" in capsys.readouterr().err.replace("\n", " ")
    assert luthier(*words) == 2, "a name is taken once"
    finished(home / "runs" / "orders")
    tools.play(
        {"sbatch": [{"says": "2\n"}], "squeue": [{}], "sacct": [{"says": "COMPLETED|0:0\n"}]},
        "sbatch", "squeue", "sacct",
    )  # fmt: skip
    assert luthier("launch", "--again", "orders", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out.partition("\n{")[2].join(("{", "")) or "{}")["state"] == "done"
    assert find_job("orders").id == "2"
    assert luthier("launch", "--follow", "orders") == 0


def test_ctrl_c_leaves_the_job_running_and_it_can_be_followed_again(home: Path, tools: Tools) -> None:
    tools.play({"sbatch": [{"says": "5\n"}], "squeue": [{"says": "RUNNING|None\n"}]}, "sbatch", "squeue")
    followed = subprocess.Popen(
        [sys.executable, "-m", "luthier", "launch", "recipe.yaml", "--on", "slurm", "--name", "orders",
         "--submit", "--yes"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "LUTHIER_POLL": "0.1"},
    )  # fmt: skip
    until = time.monotonic() + 60
    while not tools.calls("squeue"):
        assert time.monotonic() < until
        time.sleep(0.05)
    followed.send_signal(signal.SIGINT)
    _, said = followed.communicate(timeout=30)
    assert followed.returncode == 130
    assert "orders runs on" in said
    assert "luthier launch --follow orders" in said
    assert "scancel 5" in said
    assert not tools.calls("scancel")
    assert find_job("orders").id == "5"


def test_a_question_without_an_answer_is_asked_again(
    home: Path, tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.play(
        {"sbatch": [{"says": "9\n"}], "sacct": [{"says": "COMPLETED|0:0\n"}],
         "squeue": [{"errs": "Unable to contact slurm controller\n", "code": 1}] * 3 + [{"says": ""}]},
        "sbatch", "squeue", "sacct",
    )  # fmt: skip
    finished(home / "runs" / "orders")
    assert luthier("launch", "recipe.yaml", "--on", "slurm", "--name", "orders", "--submit", "--yes") == 0
    assert capsys.readouterr().err.count("Unable to contact slurm controller") == 1


# -- SkyPilot ------------------------------------------------------------------------------------


def test_sky_is_given_the_task_and_the_run_comes_back(
    home: Path, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def queue(state: str) -> dict[str, str]:
        rows = [
            {"job_id": 1, "job_name": "orders", "status": "FAILED"},
            {"job_id": 2, "job_name": "orders", "status": state},
        ]
        return {"says": "Fetching...\n" + json.dumps({"orders": rows})}

    states = ("PENDING", "SETTING_UP", "RUNNING", "RUNNING", "RUNNING", "SUCCEEDED")
    tools.play(
        {"sky queue orders --output json": [queue(one) for one in states],
         "sky logs orders 2": [{"says": "step 1\nstep 2\n"}],
         "rsync": [{"makes": str(finished(tmp_path / "there"))}]},
        "sky", "rsync",
    )  # fmt: skip
    assert luthier("launch", "recipe.yaml", "--on", "sky", "--name", "orders", "--gpus", "2", "--nodes", "2",
                   "--gpu-type", "h100", "--submit", "--yes", "--spot") == 0  # fmt: skip
    said = capsys.readouterr()
    assert "$15.96 an hour ($3.99 a GPU, RunPod" in said.out
    assert "no prediction of hours or memory: " in said.out.replace("\n", " ")
    assert tools.calls("sky", "launch") == [
        ["sky", "launch", "--yes", "--detach-run", "--cluster", "orders", str(home / "orders.sky.yaml")]
    ]
    (rsync,) = tools.calls("rsync")
    assert rsync[-2:] == ["orders:luthier/runs/orders/", f"{home / 'runs' / 'orders'}/"]
    assert find_job("orders").id == "2"
    assert find_job("orders").state == "done"
    assert said.err.count("step 2") == 1, "a log that is read again is not printed again"
    assert "sky down orders" in said.err.replace("\n", " ")
    task = recipe_values((home / "orders.sky.yaml").read_text())
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "H100:2"
    assert task["resources"]["use_spot"] is True
    assert task["file_mounts"]["~/luthier/data/0-my-rows.jsonl"] == str(home / "my rows.jsonl")
    recipe = load_recipe(Path(task["file_mounts"]["~/luthier/recipe.yaml"]))
    assert (recipe.training.devices, recipe.training.nodes) == (4, 2)
    assert recipe.data.train[0].endswith("/data/0-my-rows.jsonl"), "beside the recipe, wherever that is"


def test_a_bucket_makes_a_job_that_is_recovered(home: Path, tools: Tools, tmp_path: Path) -> None:
    rows = [{"job_id": 4, "job_name": "orders", "status": one, "recovery_count": 1}
            for one in ("STARTING", "RUNNING", "RECOVERING", "RUNNING", "SUCCEEDED")]  # fmt: skip
    tools.play(
        {"sky jobs queue --output json": [
            {"says": json.dumps([{"job_id": 3, "job_name": "x"}, row])} for row in rows],
         "sky jobs logs": [{"says": "step\n"}],
         "aws s3 sync": [{"makes": str(finished(tmp_path / "there"))}]},
        "sky", "aws",
    )  # fmt: skip
    words = ("--bucket", "s3://my-bucket", "--gpu-type", "h100", "--setup", "echo hello", "--submit", "--yes")
    assert luthier("launch", "recipe.yaml", "--on", "skypilot", "--name", "orders", *words) == 0
    assert tools.calls("sky", "jobs", "launch")[0][3:6] == ["--yes", "--detach-run", "--name"]
    (sync,) = tools.calls("aws")
    assert sync[1:] == ["s3", "sync", "--no-progress", "s3://my-bucket/orders", str(home / "runs" / "orders")]
    task = recipe_values((home / "orders.sky.yaml").read_text())
    assert task["file_mounts"]["~/luthier/runs"] == {"source": "s3://my-bucket", "mode": "MOUNT_CACHED"}
    assert task["resources"]["job_recovery"] == {"max_restarts_on_errors": 10}
    assert task["setup"] == "set -e\necho hello\n"
    assert "--node-rank" not in task["run"]


# -- Kubernetes ----------------------------------------------------------------------------------


def test_kubectl_is_given_the_documents_and_the_run_is_copied(
    home: Path, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(**values: Any) -> dict[str, str]:
        return {"says": json.dumps({"status": values})}

    complete = [{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}]
    tools.play(
        {"kubectl --namespace team get job": [
            status(active=2), status(active=2, ready=2), status(active=1, failed=1),
            status(active=2, ready=2),
            status(conditions=complete, succeeded=2)],
         "kubectl --namespace team logs": [{"says": "step 1\n"}],
         "kubectl --namespace team cp": [{"makes": str(finished(tmp_path / "there"))}]},
        "kubectl",
    )  # fmt: skip
    assert luthier("launch", "recipe.yaml", "--on", "k8s", "--name", "orders", "--nodes", "2", "--gpus", "4",
                   "--image", "registry/luthier:1", "--volume", "team-disk", "--namespace", "team",
                   "--selector", "gpu=h100", "--secret", "hub", "--submit", "--yes") == 0  # fmt: skip
    said = capsys.readouterr().err
    for words in (
        "pending: 0 of 2 pods ready",
        "running: 2 of 2",
        "preempted: 0 of 2",
        "done: Complete",
        "step 1",
    ):
        assert words in said
    commands = [words[3] for words in tools.calls("kubectl")]
    assert commands[0] == "apply"
    assert commands[-4:] == ["apply", "wait", "cp", "delete"], "the reading pod is taken away again"
    assert find_job("orders").brought == str(home / "runs" / "orders")

    documents = [recipe_values(part) for part in (home / "orders.k8s.yaml").read_text().split("---\n")]
    config, service, job = documents
    assert service["spec"]["clusterIP"] == "None"
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 2)
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][-8:] == [
        "--gpus", "4", "--nodes", "2", "--node-rank", "$(JOB_COMPLETION_INDEX)",
        "--rendezvous", "orders-0.orders:29400",
    ]  # fmt: skip
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert config["data"]["data--0-my-rows.jsonl"] == (home / "my rows.jsonl").read_text()
    items = {item["key"]: item["path"] for item in pod["volumes"][0]["configMap"]["items"]}
    assert items == {"recipe.yaml": "recipe.yaml", "data--0-my-rows.jsonl": "data/0-my-rows.jsonl"}
    assert recipe_values(config["data"]["recipe.yaml"])["data"]["train"] == ["data/0-my-rows.jsonl"]


def test_what_is_large_or_no_text_must_lie_on_the_volume(home: Path) -> None:
    (home / "my rows.jsonl").write_bytes(b"x" * (CARRIED + 1))
    cargo = load_along(asked(home, choice("kubernetes")))
    assert small(cargo) == []
    found = place_on_volume(cargo, "orders")
    assert recipe_values(found.recipe)["data"]["train"] == ["/luthier/orders/data/0-my-rows.jsonl"]
    assert any("must lie on the volume as /luthier/orders/data/0-my-rows.jsonl" in one for one in found.notes)
    (home / "my rows.jsonl").write_bytes(b"PAR1\xff\xfe")
    assert small(load_along(asked(home, choice("kubernetes")))) == []


def test_setup_lines_of_a_pod_are_left_to_its_shell(home: Path) -> None:
    text = job_text(home, choice("kubernetes", image="i", volume="v", setup=("echo $(date) $HOME",)))
    pod = recipe_values(text.split("---\n")[2])["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert command[2] == 'set -e\necho $$(date) $HOME\nexec "$@"\n', "Kubernetes replaces $(...) itself"


# -- what is asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--on", "slrum"), "did you mean slurm"),
        ((), "--on is missing"),
        (("--on", "slurm", "--name", "Orders"), "not a name that all clusters take"),
        (("--on", "slurm", "--name", "a" * 41), "not a name that all clusters take"),
        (("--on", "slurm", "--time", "2h"), "--time 2h: not a time"),
        (("--on", "slurm", "--partition", "a b"), "not a name of SLURM"),
        (("--on", "slurm", "--setup", "if true"), "the script cannot be read"),
        (("--on", "slurm", "--nodes", "0"), "--nodes 0"),
        (("--on", "slurm", "--gpu-type", "h1000"), "is not in the catalogue"),
        (("--on", "slurm", "--price-per-gpu", "-1"), "--price-per-gpu -1"),
        (("--on", "sky"), "looks for machines by their GPU"),
        (("--on", "sky", "--gpu-type", "h100", "--bucket", "my bucket"), "not a bucket"),
        (("--on", "k8s"), "a pod needs an image"),
        (("--on", "k8s", "--image", "i"), "the run needs a volume"),
        (("--on", "k8s", "--image", "i", "--volume", "A B"), "not a name of Kubernetes"),
        (("--on", "k8s", "--image", "i", "--volume", "v", "--selector", "x"), "takes LABEL=VALUE"),
        (("--on", "slurm", "--submit"), "this asks first"),
        (("--on", "slurm", "data.train=none*.jsonl"), "no such file"),
        (("--follow", "x"), "name one thing"),
    ],
)
def test_words_that_cannot_be_are_refused(
    home: Path, tools: Tools, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    tools.play({}, "sbatch")
    assert luthier("launch", "recipe.yaml", *words) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not tools.calls("sbatch")


@pytest.mark.parametrize(("on", "program"), [("slurm", "sbatch"), ("sky", "sky"), ("k8s", "kubectl")])
def test_a_tool_that_is_not_there_is_named_before_anything_is_written(  # noqa: PLR0917
    home: Path,
    tools: Tools,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    on: str,
    program: str,
) -> None:
    monkeypatch.setenv("PATH", str(tools.folder))
    flags = ("--gpu-type", "h100", "--image", "i", "--volume", "v", "--name", "orders", "--submit", "--yes")
    assert luthier("launch", "recipe.yaml", "--on", on, *flags) == 1
    assert f"{program} is not on this machine" in capsys.readouterr().err.replace("\n", " ")
    assert list_jobs() == []


def test_a_dry_run_shows_the_file_and_writes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert luthier("launch", "recipe.yaml", "--on", "slurm", "--gpus", "8", "--dry-run", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["text"].startswith("#!/bin/bash\n#SBATCH --job-name=orders-")
    assert "no price" in values["cost"]["unknown"]
    assert any("my rows.jsonl" in note for note in values["notes"])
    assert sorted(path.name for path in home.iterdir()) == ["my rows.jsonl", "recipe.yaml"]


def test_names_are_made_of_what_all_clusters_take() -> None:
    recipe = Recipe.model_validate({"model": {"id": "a"}, "data": {"train": "x"}})
    for name in ("Bestellungen – Müller & Söhne", "42", "---", "a" * 200):
        made = job_name(None, recipe.model_copy(update={"name": name}), Path("r.yaml"))
        assert job_name(made, recipe, Path("r.yaml")) == made
    assert all(TIME.fullmatch(one) for one in ("90", "2:00:00", "1-12", "1-12:00:00", "30:00"))


@pytest.mark.parametrize(
    "text", ["a\nb\n", "\n", " a\n b", "tab\t\nx", "a\r\nb\r\n", "x\x85y\nz", ODD, "- a: b\n", "null", "1e3"]
)
def test_texts_survive_yaml(text: str) -> None:
    documents = dump_values({"a": text, "b": [text, {"c": text}]}, {"d": 1})
    first, second = documents.split("---\n")
    assert recipe_values(first) == {"a": text, "b": [text, {"c": text}]}
    assert recipe_values(second) == {"d": 1}


def test_patterns_are_files_and_what_is_missing_is_said(home: Path) -> None:
    write_rows(home / "more-1.jsonl", 4)
    write_rows(home / "more-2.jsonl", 4)
    cargo = load_along(asked(home, choice("skypilot"), "data.train=more-*.jsonl"))
    assert [one.there for one in cargo.files] == ["data/0-more-1.jsonl", "data/1-more-2.jsonl"]
    with pytest.raises(FileProblem, match="no such file"):
        load_along(asked(home, choice("skypilot"), "data.train=none.jsonl"))


def test_hours_are_predicted_and_what_does_not_fit_is_refused(home: Path, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    words = (f"model.id={tmp_path / 'model'}", "export.gguf=[]", "training.micro_batch_size=1")
    one = choice(gpu_type="h100", nodes=1, gpus=1)
    found = cost_of(one, asked(home, one, *words), price=None, hours=None)
    assert found.price == 3.99
    assert found.hours is not None
    assert found.total is not None
    assert found.total.expected == pytest.approx(3.99 * found.hours.expected)
    eight = choice(gpu_type="h100", nodes=2, gpus=4)
    more = cost_of(eight, asked(home, eight, *words), price=2.0, hours=None)
    assert more.hourly == 16.0
    assert more.hours is not None
    # So small a model's step has parts that eight devices do not shorten.
    assert found.hours.expected / 8 < more.hours.expected < 1.2 * found.hours.expected / 8 / 0.8
    odd = choice(gpu_type="h100", nodes=3, gpus=1)
    recipe = asked(home, odd, *words)
    with pytest.raises(UsageError, match="not a multiple"):
        cost_of(odd, recipe, price=None, hours=None)
