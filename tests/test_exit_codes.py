"""The exit codes of the pages, of the code and of the batch scripts are the same."""

import re
import signal
import subprocess

import pytest

from jaxtrain.errors import ProcessEnded
from jaxtrain.training.signals import ENDING, exit_code
from tests.test_readme import ROOT

KILLED = {128 + signal.SIGABRT, 128 + signal.SIGKILL}
PAGE = (ROOT / "docs" / "scaling.md").read_text()
SCRIPTS = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) if "#SBATCH" in block]


def restarted() -> set[int]:
    """The codes of the table in docs/reliability.md after which a run is started again."""
    table = (ROOT / "docs" / "reliability.md").read_text().split("| exit code |")[1].split("\n\n")[0]
    found = re.findall(r"^\| ([\d, ]+) \|.*\| (.*) \|$", table, re.M)
    return {int(code) for codes, again in found if again.startswith("yes") for code in codes.split(",")}


def test_the_page_has_a_script_for_an_array_and_one_for_processes():
    assert ["--array" in script for script in SCRIPTS] == [True, False]


def test_the_table_has_the_codes_that_runs_give():
    own = {exit_code(number.name) for number in ENDING}
    assert restarted() == own | {ProcessEnded.exit_code} | KILLED
    commands = (ROOT / "docs" / "command_line.md").read_text()
    assert f"\n| {ProcessEnded.exit_code} | " in commands


@pytest.mark.parametrize("script", SCRIPTS, ids=["array", "processes"])
@pytest.mark.parametrize("restarts", ["", "19", "20"])
def test_the_scripts_requeue_after_these_codes_only(script, restarts, tmp_path):
    """Run by bash, with an srun that gives each code and an scontrol that prints its arguments."""
    names = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "HOME": str(tmp_path)}
    expected = "requeue 9_3\n" if "--array" in script else "requeue 12\n"
    tools = 'source() { :; }\nsrun() { return "$CODE"; }\nscontrol() { echo "$@"; }\n'
    for code in sorted({0, 1, 2, *restarted()}):
        environment = {**names, "CODE": str(code), "SLURM_RESTART_COUNT": restarts, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(["bash", "-c", tools + script], env=environment, capture_output=True, text=True)
        again = code in restarted() and restarts != "20"
        assert (done.returncode, done.stdout, done.stderr) == (code, expected if again else "", ""), code
