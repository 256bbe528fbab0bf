"""A box with torch alone can run a trial: an environment that really has neither ray nor mlflow."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = """
import importlib.util, json, sys
assert importlib.util.find_spec("ray") is None and importlib.util.find_spec("mlflow") is None
from pathlib import Path
from sparsefleet.trial.request import TrialRequest
from sparsefleet.trial.run import run_trial
from sparsefleet.trial.spec import TrialSpec
import sparsefleet.measure.estimate
spec = TrialSpec(dataset={"name": "digits"}, model={"name": "mlp", "params": {"hidden": [16]}}, layer={"name": "csr"}, density=0.2,
    method={"rewirer": {"name": "set"}}, optimizer={"kind": "sgd", "lr": 0.1}, train={"epochs": 1})
work = Path(sys.argv[1])
record = run_trial(TrialRequest(spec=spec, trial_key="k", workdir=work, data_root=work))
print(json.dumps({"state": record.state.value, "reason": record.reason, "loaded": [m for m in sys.modules if m.split(".")[0] in ("ray", "mlflow", "click", "rich")]}))
"""


@pytest.fixture
def environment_without_services(tmp_path):
    """A folder of links to everything installed except ray and mlflow, and this checkout's two packages."""
    site = tmp_path / "site"
    site.mkdir()
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for item in Path(folder).iterdir():
            if (
                not item.name.lower().startswith(("ray", "mlflow", "click", "rich", "sparsefleet", "__editable__", "_"))
                and item.suffix != ".pth"
            ):
                link = site / item.name
                if not link.exists():
                    link.symlink_to(item)
    from importlib.metadata import distributions

    (site / "sparsefleet").symlink_to(ROOT / "sparsefleet")
    (site / "sparsefleet_plugins").symlink_to(ROOT / "plugins")
    (info, *_) = (Path(str(dist._path)) for dist in distributions(name="sparsefleet") if dist.read_text("METADATA"))  # no build's .egg-info
    (site / info.name).symlink_to(info)
    return site


@pytest.mark.slow
def test_a_trial_runs_with_neither_ray_nor_mlflow_installed(environment_without_services, tmp_path):
    env = {"PYTHONPATH": str(environment_without_services), "SPARSEFLEET_CACHE": str(tmp_path / "cache"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-S", "-c", CODE, str(tmp_path / "work")], capture_output=True, text=True, env=env, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {"state": "SUCCEEDED", "reason": None, "loaded": []}
