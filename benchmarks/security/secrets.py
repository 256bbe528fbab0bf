"""SE-04: thirty secrets that a plugin prints, raises, reports and is given; none of them is found in anything that a sweep leaves behind.

Each is two random halves around what passwords have between letters; either half is a leak wherever it is found.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.chaos.stored import Stored
from benchmarks.figures import Figure, Run
from benchmarks.security.small import SmallHome
from sparsefleet.ledger import read_ledger
from sparsefleet.spawn import module_command

VARIABLES = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "VAULT_PWD", "MY_SECRET", "Github_Token", "DB_PASSWORD_2")
PAIRS = (
    "token={0}",
    'x {{"api_key": "{0}"}}',
    "password: {0}",
    "aws_secret_access_key = {0}",
    "--db-pwd={0}",
    "credentials='{0}'",
    "private_key={0};",
    "PWD={0};Server=x",
    "login --password {0} --verbose",
    "['--api-key', '{0}', '--verbose']",
    "passphrase={0}",
    '{{\\"password\\": \\"{0}\\", \\"n\\": 1}}',
    "{{'Authorization': 'Token {0}', 'n': 1}}",
    "Authorization: Bearer {0}",
    "Authorization: ApiKey {0}",
    "authorization: Digest user, response={0}",
)
URLS = (
    "https://{0}@git.example.org/x.git",
    "postgresql://bob:{0}@db:5432/runs",
    "s3://AKIAEXAMPLE:{0}@bucket/key",
    "redis://:{0}@cache:6379/0",
    "http://admin:{0}@127.0.0.1:5000/",
    "mongodb+srv://u:{0}@c.example.org/?w=1",
)
BETWEEN_ENV = ("", "/", "@", "#?&", "','", '"', "\\", " é%")
BETWEEN_PAIR = ("&", "/", "@", "#?", ",", "=", "%2F", ":&")
BETWEEN_URL = ("", "/", "#?", "@", "%40", "/@?#&")
BETWEEN_GRID = ("/", "", "@", "&", "/", "@", "/", "&")
PLUGIN = '''"""Says whatever it knows, wherever it can."""
import os, sys
from pathlib import Path
from pydantic import Field
from sparsefleet import Pruner, hookimpl

SAID = Path(os.environ["LEAKY_FILE"]).read_text().splitlines()

def tell():
    for line in SAID:
        print("out", line)
        print("err", line, file=sys.stderr)
    sys.stdout.write("no end of line " + SAID[0])

class Leaky(Pruner):
    """Magnitude, told aloud."""
    name = "leaky"
    fails: bool = Field(False, description="whether it raises")
    def score(self, conn):
        tell()
        if self.fails:
            raise RuntimeError(" | ".join(SAID))
        return conn.weight.abs()

@hookimpl
def sparsefleet_pruners():
    return [Leaky]

@hookimpl
def sparsefleet_before_trial(trial):
    raise ValueError(" | ".join(SAID))

@hookimpl
def sparsefleet_measure(trial, model, batch, step):
    return {line: 1.0 for line in SAID[:3]}

@hookimpl
def sparsefleet_doctor():
    yield " | ".join(SAID), False, SAID[0]
'''


def figures(run: Run) -> list[Figure]:
    """Secrets found in the ledger, MLflow's database and files, logs, bundles, caches and every command's output."""
    between = [*BETWEEN_ENV, *BETWEEN_PAIR, *BETWEEN_URL, *BETWEEN_GRID]
    halves = [(f"sfc{number:02}{secrets.token_hex(8)}", f"z{secrets.token_hex(8)}") for number in range(len(between))]
    canaries = [f"{a}{middle}{b}" for (a, b), middle in zip(halves, between, strict=True)]
    of_env, of_pairs, of_urls, of_grids = canaries[:8], canaries[8:16], canaries[16:22], canaries[22:]
    with tempfile.TemporaryDirectory(prefix="sparsefleet-secrets-") as folder, tempfile.TemporaryDirectory() as outside:
        said = Path(outside) / "said.txt"  # what a plugin would have from a vault: nothing of it is in its own source
        urls = [text.format(c) for text, c in zip(URLS, of_urls, strict=True)]
        said.write_text("\n".join([*of_env, *urls, *(text.format(of_pairs[n % 8]) for n, text in enumerate(PAIRS))]))
        here = SmallHome(Path(folder), {**dict(zip(VARIABLES, of_env, strict=True)), "LEAKY_FILE": str(said)})
        here.environment.pop("MLFLOW_TRACKING_URI", None)  # the home's own database is what is searched
        outputs = _sweep(here, of_urls) | _refused(here, of_grids)
        ends, n_runs = _ends(here), _runs(here)
        texts = {**outputs, **dict(_kept(here))}
        found = [
            f"{place}: {number}"
            for place, text in texts.items()
            for number, both in enumerate(halves)
            if any(h.encode() in text for h in both)
        ]
        redactions = sum(text.count(b"[redacted") for text in texts.values())
    run.keep({"found": found, "places": len(texts), "redactions": redactions, "ends": ends})
    n_refused = sum(name.startswith("grid ") and code == 2 for name, (code, _) in _CODES.items())
    return [
        Figure(
            "secrets that were kept",
            "places",
            len(found),
            target=0,
            at_least=False,
            note="; ".join(found[:4]) or f"{len(texts)} files and outputs",
        ),
        Figure("grids with a secret, refused", "grids", n_refused, target=len(of_grids)),
        Figure("secrets that were met and taken out", "times", redactions, target=100),
        Figure("trials that ended as they should", "trials", sum(ends.get(k) == v for k, v in ENDS.items()), target=3, note=str(ends)),
        Figure("runs in the database that was searched", "runs", n_runs, target=len(ENDS) + 1, note="one of the sweep, one of every trial"),
    ]


ENDS = {"dense": "SUCCEEDED", "leaky, fails: False": "SUCCEEDED", "leaky, fails: True": "PLUGIN_ERROR"}
_CODES: dict[str, tuple[int, str]] = {}


def _said(here: SmallHome, *arguments: str, name: str = "", **environment: str) -> tuple[str, bytes]:
    done = here.command(*arguments, **environment)
    name = name or " ".join(arguments[:2])
    _CODES[name] = (done.returncode, done.stderr)
    return f"output of {name}", (done.stdout + done.stderr).encode()


def _sweep(here: SmallHome, of_urls: list[str]) -> dict[str, bytes]:
    """What commands say of a sweep whose plugin tells everything."""
    plugin = here.folder / "leaky.py"
    plugin.write_text(PLUGIN)
    methods = "axes:\n  method:\n    - {pruner: leaky}\n    - {pruner: {leaky: {fails: true}}}"
    grid = str(here.grid("leaky", methods))
    outputs = dict([_said(here, "submit", "grid", grid, "--plugin", str(plugin))])
    code, text = _CODES["submit grid"]
    if code != 5:
        raise RuntimeError(f"the sweep ended with {code}: {text[-2000:]}")
    with sqlite3.connect(here.home / "ledger.db") as db:
        sweep = str(db.execute("SELECT sweep FROM sweeps").fetchone()[0])
        ids = [str(row[0]) for row in db.execute("SELECT spec_id FROM trials")]
    for command in (
        ["status", sweep, "--trials"],
        ["compare", sweep, "--csv"],
        ["compare", sweep, "--json"],
        *(["logs", one] for one in ids),
    ):
        outputs |= dict([_said(here, *command, name=" ".join(command))])
    away = {"SPARSEFLEET_PLUGINS": str(plugin), "MLFLOW_TRACKING_URI": f"http://admin:{of_urls[1]}@127.0.0.1:9/"}
    outputs |= dict([_said(here, "doctor", **away)])
    for kind, canary, end in (("http", of_urls[3], 4), ("postgresql", of_urls[5], 2)):  # whoever says that nothing answers there says where
        url = f"{kind}://bob:{canary}@127.0.0.1:9/runs"
        outputs |= dict([_said(here, "ui", sweep, name=f"ui {kind}", MLFLOW_TRACKING_URI=url)])
        code, text = _CODES[f"ui {kind}"]
        if code != end or "127.0.0.1:9" not in text:
            raise RuntimeError(f"ui ended with {code} where no server is: {text[-1000:]}")
    return outputs


def _refused(here: SmallHome, canaries: list[str]) -> dict[str, bytes]:
    """What is said of grids that hold a secret in a comment, a name, a parameter, a URL or an option."""
    c = iter(canaries)
    grids = {
        "comment": (f"# {next(c)}\n", []),
        "value": (f"dataset.digits.note: {next(c)}\n", []),
        "name": ("", ["--set", f"name={next(c)}"]),
        "api_key": (f"method: {{pruner: {{magnitude: {{api_key: {next(c)}}}}}}}\n", []),
        "password": (f"model.mlp.password: '{next(c)}'\n", []),
        "url": (f"dataset.digits.root: https://bob:{next(c)}@host/x\n", []),
        "set url": ("", ["--set", f"dataset.digits.root=ftp://{next(c)}@host/x"]),
        "list": (f"model.mlp.hf_token: [{next(c)}]\n", []),
    }
    outputs = {}
    for number, (name, (text, more)) in enumerate(grids.items()):
        path = here.grid(f"held-{number}", text)
        name = f"grid with {name}"
        given = {f"GRID_{number}_SECRET": canaries[number]} if name in ("grid with comment", "grid with value", "grid with name") else {}
        place, said = _said(here, "submit", "grid", str(path), *more, name=name, **given)
        path.unlink()
        outputs[place] = said
    return outputs


def _ends(here: SmallHome) -> dict[str, str]:
    """State by method."""
    with read_ledger(here.home) as ledger:
        rows = list(ledger.trials(ledger.sweeps()[0].sweep))
    return {_method(row.spec, row.arm): row.state for row in rows}


def _method(spec: Mapping[str, Any], arm: str) -> str:
    fails = '"fails": true' in json.dumps(spec)
    return arm if arm == "dense" else f"leaky, fails: {fails}"


def _runs(here: SmallHome) -> int:
    """How many runs MLflow's database of the home holds, once all are uploaded."""
    upload = module_command("sparsefleet.report.upload", "--home", str(here.home), "--until-empty")
    done = subprocess.run(upload, env=here.environment, cwd=here.folder, check=False, capture_output=True, text=True)
    if done.returncode:
        log = "".join(path.read_text() for path in here.home.rglob("uploader*.log"))
        raise RuntimeError(f"the upload ended with {done.returncode}: {done.stdout}{done.stderr}{log[-3000:]}")
    with closing(sqlite3.connect(here.home / "mlflow.db")) as db:
        return int(db.execute("SELECT count(*) FROM runs").fetchone()[0])


def _kept(here: SmallHome) -> Iterator[tuple[str, bytes]]:
    """Every file, archives opened."""
    for path in here.everything():
        if not path.is_file():
            continue
        name = str(path.relative_to(here.folder))
        yield name, path.read_bytes() + name.encode()
        if path.name == "ledger.db":
            with closing(sqlite3.connect(path)) as db:
                for number, text in enumerate(Stored(db).every_text()):
                    yield f"{name}:{number}", text.encode()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for inner in archive.namelist():
                    yield f"{name}:{inner}", archive.read(inner)
