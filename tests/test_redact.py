"""What must not be kept, and what must not be mistaken for it."""

from __future__ import annotations

import pytest

from sparsefleet.redact import is_secret_name, longest_secret, redacted, redacted_json, secret_in


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
    ],
)
def test_secrets_are_taken_out(text, kept):
    assert redacted(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "digit 12345",  # shorter than six characters
        "reads /etc",  # a path, as PWD is
        "trial_key=0123456789abcdef config_key: 0123456789",
        "n_tokens=123456789 tokens per second",
        "    token = os.environ['HF_TOKEN']\n    self.password = load_password(path)",
        "see https://docs.example.org/a@b",
    ],
)
def test_ordinary_text_stays(text):
    assert redacted(text) == text


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


def test_names_of_secrets():
    assert all(map(is_secret_name, ("api_key", "HF_TOKEN", "password", "secret", "db-pwd")))
    assert not any(map(is_secret_name, ("key", "n_tokens", "trial_key", "token_dim")))
