"""What must not be kept, and what must not be mistaken for it."""

from __future__ import annotations

import time
from urllib.parse import unquote

import pytest

from sparsefleet.redact import is_secret_name, longest_secret, redacted, redacted_json, secret_in, without_user
from sparsefleet.track.server import unreachable


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-abcdef-1")
    monkeypatch.setenv("DB_PASSWORD", "p/w d@é")
    monkeypatch.setenv("SHORT_KEY", "digit")
    monkeypatch.setenv("SOME_PWD", "/etc")
    monkeypatch.setenv("PEM_SECRET", "-----BEGIN-----\nMIIEvQIBADANBgkqhkiG9w0\n-----END-----")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a canary-abcdef-1 b", "a [redacted: HF_TOKEN] b"),
        ("?p=p%2Fw%20d%40%C3%A9", "?p=[redacted: DB_PASSWORD]"),
        ('{"x": "p/w d@\\u00e9"}', '{"x": "[redacted: DB_PASSWORD]"}'),
        ("line MIIEvQIBADANBgkqhkiG9w0 line", "line [redacted: PEM_SECRET] line"),
        ("postgresql://bob:x@host:5432/db", "postgresql://[redacted]@host:5432/db"),
        ("password='hunter22' next", "password='[redacted]' next"),
        ('{"api_key": "0123456789"}', '{"api_key": "[redacted]"}'),
        ("Bearer abc.def-ghi", "Bearer [redacted]"),
        ("postgresql://mlflow:pa/ssw0rd@db/runs", "postgresql://[redacted]@db/runs"),
        ("postgresql://mlflow:p#ss?w0rd@db/runs", "postgresql://[redacted]@db/runs"),
        ("at postgresql://mlflow:p@ssw0rd@db/runs now", "at postgresql://[redacted]@db/runs now"),
        ("https://t0ken@host/a/b@v1", "https://[redacted]@host/a/b@v1"),
        ("password=p&ssw0rdsecret next", "password=[redacted] next"),
        ("password=abcdef&GHIJ", "password=[redacted]"),
        ('password="ab,cd EFGHijkl", 1', 'password="[redacted]", 1'),
        ('{"token": "ab\\"cd,ef", "n": 1}', '{"token": "[redacted]", "n": 1}'),
        ('{\\"password\\": \\"ab,cd ef\\", \\"n\\": 1}', '{\\"password\\": \\"[redacted]\\", \\"n\\": 1}'),
        ("PWD=hunter22;Server=x", "PWD=[redacted];Server=x"),
        ("passphrase=hunter22", "passphrase=[redacted]"),
        ("x --password hunter2hunter2 -v", "x --password [redacted] -v"),
        ("['--password', 'hunter2hunter2', '-v']", "['--password', '[redacted]', '-v']"),
        ("Authorization: Token 9944b09199c6", "Authorization: [redacted]"),
        ("authorization: ApiKey 9944b0, x=9199c6\nnext", "authorization: [redacted]\nnext"),
        ("{'Authorization': 'Token 9944b0 9199c6', 'n': 1}", "{'Authorization': '[redacted]', 'n': 1}"),
        ("http://10.0.0.1:5000/,postgresql://me:s3cret@db/x", "http://10.0.0.1:5000/,postgresql://[redacted]@db/x"),
        ("https://host/to?url=https://user:s3cret@host/x", "https://host/to?url=https://[redacted]@host/x"),
        ("zip://in/f.csv::https://user:s3cret@host/a.zip", "zip://in/f.csv::https://[redacted]@host/a.zip"),
        ("file:///data/x;s3://AKIA:s3cret@minio/b", "file:///data/x;s3://[redacted]@minio/b"),
        ("SECRET_KEY: abcdef123", "SECRET_KEY: [redacted]"),
        ("AccountKey=abcdef123==;Name=x", "AccountKey=[redacted];Name=x"),
        ("a -----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY----- b", "a [redacted] b"),
        ('{"private_key": "-----BEGIN PRIVATE KEY-----\\nMIIE', '{"private_key": "[redacted]'),
    ],
)
def test_secrets_are_taken_out(text, kept):
    assert redacted(text) == kept
    assert redacted(kept) == kept


@pytest.mark.parametrize(
    "text",
    [
        "digit 12345",  # shorter than six characters
        "reads /etc",  # a path, as PWD is
        "trial_key=0123456789abcdef config_key: 0123456789",
        "n_tokens=123456789 tokens per second",
        "    token = os.environ['HF_TOKEN']\n    self.password = load_password(path)",
        "see https://docs.example.org/a@b",
        "http://localhost:5000/x@y https://[::1]:5000/x@y https://host?mail=a@b sqlite:////tmp/a@b/mlflow.db",
        "mail bob@example.org, see http://example.org",
        "--token TEXT  the token\n--password PASSWORD\n--token-file /some/where per-token latency",
        "authorization = get_authorization(path)",
        "secret = load(\n    path)",
        "names = ('password:', 'something')",
        "def f(token: Optional[str] = None)",
    ],
)
def test_ordinary_text_stays(text):
    assert redacted(text) == text


@pytest.mark.parametrize("word", ["robotics", "minioadmin", "test-bucket", "Production", "DIGITS"])
def test_a_word_is_no_secret_of_its_own_but_is_after_a_name_and_in_a_url(monkeypatch, word):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", word)
    assert redacted(f"{word} ran {word}-1a2b") == f"{word} ran {word}-1a2b"
    assert secret_in(f"name: {word}") == ""
    assert redacted(f"password={word} s3://{word}:x@host/") == "password=[redacted] s3://[redacted]@host/"


@pytest.mark.parametrize(
    "secret", ["sparsefleet1", "sparse+fleet", "xkqzjvwpbnmt", "aBcDeFgHiJkL", "correct-horse-battery", "hunter22", "AKIAIOSFODNN7EXAMPLE"]
)
def test_what_no_text_holds_by_chance_is_one(monkeypatch, secret):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", secret)
    assert redacted(f"a {secret} b") == "a [redacted: AWS_ACCESS_KEY_ID] b"
    assert secret_in(f"name: {secret}") == "the value of the environment variable AWS_ACCESS_KEY_ID"


@pytest.mark.parametrize("secret", ["kemorabe", "abcd efgh ijkl mnop", "red-fox-sun-hat", "weights"])
def test_a_password_is_one_whatever_its_letters(monkeypatch, secret):
    monkeypatch.setenv("DB_PASSWORD", secret)
    assert redacted(f"a {secret}, b") == "a [redacted: DB_PASSWORD], b"


def test_a_password_that_is_a_word_leaves_the_longer_names_that_hold_it(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "weights")
    assert redacted_json({"nnz_weights": 3, "weights": 1}) == {"nnz_weights": 3, "[redacted: DB_PASSWORD]": 1}


@pytest.mark.parametrize("like", ["test-bucket", "testXbucket", "test bucket"])
def test_the_dot_of_a_password_is_a_dot(monkeypatch, like):
    monkeypatch.setenv("DB_PASSWORD", "test.bucket")
    assert redacted(f"test.bucket {like}") == f"[redacted: DB_PASSWORD] {like}"


@pytest.mark.parametrize("known", ["default", "postgres", "sparsefleet"])
def test_what_stands_in_every_manual_is_no_secret(monkeypatch, known):
    monkeypatch.setenv("PGPASSWORD", known)
    assert redacted(f"a {known} b") == f"a {known} b"


@pytest.mark.parametrize(
    "line",
    [
        *(f"password=abcdefg{end * 65536}" for end in ("}", ",", "\\", "},a", ",a ")),
        *("token=f(" * 8000, "token=a(b " * 6500, 'password="' * 6500, "://a" * 16000, "--" + "a-" * 32000 + " token"),
    ],
    ids=lambda line: line[:24],
)
def test_a_line_of_64_kib_takes_no_second(line):
    begun = time.process_time()
    redacted(line)
    assert time.process_time() - begun < 1.0


def test_json_is_redacted_by_value_and_by_name_but_for_what_is_left():
    found = redacted_json(
        {"spec": {"token": "canary-abcdef-1"}, "w": ["canary-abcdef-1"], "hf_token": "unknown-value", "n": 3}, leave=frozenset({"spec"})
    )
    assert found == {"spec": {"token": "canary-abcdef-1"}, "w": ["[redacted: HF_TOKEN]"], "hf_token": "[redacted]", "n": 3}
    assert list(redacted_json({"canary-abcdef-1": 1})) == ["[redacted: HF_TOKEN]"]


def test_a_secret_is_named_without_its_value():
    assert secret_in("x canary-abcdef-1") == "the value of the environment variable HF_TOKEN"
    assert secret_in("https://a:b@c/") == "a URL with a user or password"
    assert secret_in("nothing") == ""
    assert longest_secret() >= len("canary-abcdef-1")


def test_the_password_in_a_url_of_the_environment_is_known_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://mlflow:pa/ss%40w0rd@db/runs?x=a@b")
    monkeypatch.setenv("BACKUP", "mysql://u:s3cret@word@db/runs")
    assert redacted("pa/ss%40w0rd@db/runs?x=a") == "[redacted: MLFLOW_TRACKING_URI]"
    assert redacted("no s3cret@word here, s3cret stays") == "no [redacted: BACKUP] here, s3cret stays"


def test_a_value_that_python_writes_with_backslashes_is_known(monkeypatch):
    monkeypatch.setenv("VAULT_SECRET", "one'two\"three")
    assert redacted(repr("one'two\"three")) == "'[redacted: VAULT_SECRET]'"


@pytest.mark.parametrize("password", ["pa/ssw0rd", "p#ss?w0rd", "p@ssw0rd", "p%40ssw0rd"])
def test_a_server_that_cannot_be_reached_is_named_without_its_password(password):
    uri = f"postgresql://mlflow:{password}@db/runs"
    error = unreachable(uri, OSError(f"{'x' * 250} {uri}, of {unquote(password)}\nmore"))
    assert without_user(uri) == "postgresql://db/runs"
    assert "postgresql://db/runs" in error.what
    assert "w0rd" not in f"{error.what}{error.cause}"


def test_names_of_secrets():
    assert all(map(is_secret_name, ("api_key", "HF_TOKEN", "password", "secret", "db-pwd", "secret_key", "AccountKey")))
    assert not any(map(is_secret_name, ("key", "n_tokens", "trial_key", "token_dim")))
