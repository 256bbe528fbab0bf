"""Takes secrets out of text before it is kept: reasons, logs, records, tags. Imports nothing of the product.

A secret is the value of an environment variable whose name holds TOKEN, KEY, SECRET, PASSWORD, PASSPHRASE or PWD, at the moment of asking, and the
password in a variable that is a URL; what follows such a name in a text (``password=…``, ``"api_key": "…"``, ``--password …``, ``Bearer …``, all
that follows ``Authorization:``); the user and password of a URL; and a private key in PEM. Left alone are values of fewer than six characters, the
path of something that exists, switches and words of manuals (``default``, ``postgres``), and in a variable that is only called a KEY, as that of a
bucket's user, one or two words of together 19 letters that can be pronounced: they name things, and a text would be lost with each of them.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

SHORTEST = 6
_VARIABLE = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|PWD", re.IGNORECASE)
_NO_VALUES = frozenset(
    {
        *("default", "disabled", "enabled", "optional", "required"),
        *("sparsefleet", "mlflow", "postgres", "minioadmin", "testing", "password"),
    }
)
"""Switches, and what stands in every manual: who knows the manual knows it."""
_WORDS = r"token|secret|passw(?:or)?d|passphrase|pwd|credentials?|(?:api|access|private|secret|account|encryption|signing|ssh)[_-]?key"
_NAME = re.compile(rf"(?:{_WORDS}|authorization)$", re.IGNORECASE)
_HINTS = (
    *("token", "secret", "pass", "pwd", "api", "access", "private", "account", "encryption", "signing", "ssh"),
    *("credential", "authorization", "bearer", "basic", "://"),
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL)
# up to the closing quote; JSON within JSON has backslashes before both
_QUOTED = rf"""(?P<quote>\\*["'])(?!\s|\[redacted)(?:(?!(?<!\\)(?P=quote)).){{{SHORTEST},8192}}(?<!\\)(?P=quote)"""
_WORD = re.compile(r"[a-z]{2,}(?:[-_. ][a-z]{2,})?", re.IGNORECASE)
_NO_WORDS = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PWD", re.IGNORECASE)
_MOST_LETTERS = 19
_VOWELS, _CONSONANTS = re.compile("[aeiouy]", re.IGNORECASE), re.compile("[b-df-hj-np-tv-xz]{5}", re.IGNORECASE)
# a value that goes on to a call or an index is a line of source, not a secret
_NO_SOURCE = r"(?![a-z_][\w.]{0,200}[(\[](?:[ \t]{0,200}$|.{0,200}[)\]]))"
_NO_END = r"""(?![,;)\]}]{1,16}(?:\s|$|["'<>\\]|[\w.-]{1,64}["']?\s{0,8}[:=])|\\{1,16}["'])"""
_BARE = rf"""(?P<open>\\*["']?)(?!\[redacted){_NO_SOURCE}(?:{_NO_END}[^\s"'<>]){{{SHORTEST},}}"""
_NO_METAVAR = r"(?!-|(?-i:[A-Z_]*(?:TEXT|FILE|PATH|NAME|VALUE|TOKEN|KEY|SECRET|PASSWORD))\b)"
_NAMED = rf"""(?:{_WORDS})(?:\\*["'])?\s*[:=]\s*|(?<![\w-])--?[\w-]*(?:{_WORDS})["']?,?[ \t]+{_NO_METAVAR}"""
_PAIR = re.compile(rf"(?P<head>{_NAMED})(?:{_QUOTED}|{_BARE})", re.IGNORECASE | re.MULTILINE)
_HEADER = re.compile(
    rf"""(?P<head>authorization(?:\\*["'])?\s*[:=]\s*)(?:{_QUOTED}|(?P<open>\\*["']?)(?![\s"'\\]|\[redacted\](?:["'\\]|$)){_NO_SOURCE}[^\r\n]{{{SHORTEST},}})""",
    re.IGNORECASE | re.MULTILINE,
)
_BEARER = re.compile(rf"\b((?:bearer|basic)\s+)([\w.~+/=-]{{{SHORTEST},}})", re.IGNORECASE)
_IS_URL = re.compile(r"[A-Za-z][\w+.-]*://\S+@\S+")
_USER = re.compile(r"(?<=://)(?:(?!://)[^\s\"'<>]){1,2000}@")  # up to the next URL, which may stand right behind or within this one
_WEB = ("http://", "https://", "ws://", "wss://")
_GONE = "[redacted]"


def redacted(text: str) -> str:
    """``text`` with every secret replaced by ``[redacted]``, or ``[redacted: NAME]`` for the value of the variable NAME."""
    known = _known()
    if _holds_value(text, known):
        pattern, names = known
        text = pattern.sub(lambda match: f"[redacted: {names[match[0]]}]", text)
    if not _hints(text):
        return text
    text = _PRIVATE_KEY.sub(_GONE, text)
    text = _USER.sub(lambda match: f"{_GONE}@{match[0][n:]}" if (n := _user_length(match[0], _is_web(match))) else match[0], text)
    text = _HEADER.sub(_without_value, text)
    text = _BEARER.sub(rf"\1{_GONE}", text)
    return _PAIR.sub(_without_value, text)


def without_user(url: str) -> str:
    """A URL without user and password, for messages."""
    scheme, sign, rest = url.partition("://")
    return scheme + sign + rest[len(_user_of(url)) :]


def passwords_of(url: str) -> list[str]:
    """What may be the password of a URL, as it stands there and decoded, the longest first: readers differ over where one with ``@`` ends."""
    rest = url.partition("://")[2]
    users = (_user_of(url), rest[: rest.rfind("@", 0, len(re.split("[/?#]", rest, maxsplit=1)[0])) + 1])
    found = {user.partition(":")[2][:-1] for user in users}
    return sorted((found | {unquote(one) for one in found}) - {""}, key=len, reverse=True)


def redacted_json(value: Any, leave: frozenset[str] = frozenset()) -> Any:
    """Plain JSON values with every text redacted, names included, and texts under a name such as ``api_key`` gone.

    Args:
        leave: names at the top whose values stay as they are.
    """
    if isinstance(value, Mapping):
        kept = {name: inner for name, inner in value.items() if name in leave}
        rest = {name: inner for name, inner in value.items() if name not in leave}
        return {**_walked(rest), **kept} if _may_hold_any(rest) else dict(value)
    return _walked(value) if _may_hold_any(value) else value


def is_secret_name(name: str) -> bool:
    """True for the name of something that nobody writes into a file that is kept: ``api_key``, ``hf_token``; not ``n_tokens``."""
    return _NAME.search(name) is not None


def secret_in(text: str) -> str:
    """What secret ``text`` holds, in words and without its value: that of a variable of this environment, or a URL's user; empty if none."""
    pattern, names = _known()
    found = pattern.search(text) if any(value in text for value in names) else None
    if found:
        return f"the value of the environment variable {names[found[0]]}"
    users = _USER.finditer(text) if "://" in text else ()
    return "a URL with a user or password" if any(_user_length(match[0], _is_web(match)) for match in users) else ""


class RedactedFormatter(logging.Formatter):
    """For handlers whose output is kept in a file."""

    def format(self, record: logging.LogRecord) -> str:
        """As logging's own, without secrets."""
        return redacted(super().format(record))


def longest_secret() -> int:
    """Characters of the longest known value, for whoever redacts a stream piece by piece; 0 if there is none."""
    return max(map(len, _known()[1]), default=0)


def _without_value(match: re.Match[str]) -> str:
    quote_before = match["quote"] or match["open"] or ""
    return f"{match['head']}{quote_before}{_GONE}{match['quote'] or ''}"


def _is_web(match: re.Match[str]) -> bool:
    return match.string.lower().endswith(_WEB, max(0, match.start() - 8), match.start())


def _user_of(url: str) -> str:
    """User, password and ``@`` of what is a URL as a whole."""
    rest = url.partition("://")[2]
    user = rest[: rest.rfind("@") + 1]
    return user[: _user_length(user, url.lower().startswith(_WEB))]


def _user_length(text: str, is_web: bool) -> int:
    """How much of ``text``, which stands after ``://`` and ends with an ``@``, is user and password: databases take passwords with / ? # @ in them."""
    if re.match(r"[^/?#@:\[]*:", text) and not (is_web and re.match(r"[^/?#@:]*:\d{1,5}[/?#]", text)):
        return len(text)
    return re.split("[/?#]", text, maxsplit=1)[0].rfind("@") + 1


def _may_hold_any(value: Any) -> bool:
    """A quick look at all of it at once: a record is some 50 kB, and hardly any holds a secret."""
    text = json.dumps(value, ensure_ascii=False)
    return _holds_value(text, _known()) or _hints(text)


def _holds_value(text: str, known: tuple[re.Pattern[str], dict[str, str]]) -> bool:
    return any(value in text for value in known[1])


def _hints(text: str) -> bool:
    """A look for fixed words, a hundred times faster than the expressions."""
    low = text.lower()
    return any(hint in low for hint in _HINTS)


def _walked(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {
            redacted(str(name)): _GONE
            if isinstance(inner, str) and len(inner) >= SHORTEST and is_secret_name(str(name))
            else _walked(inner)
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_walked(inner) for inner in value]
    return value


def _known() -> tuple[re.Pattern[str], dict[str, str]]:
    """The values of this moment's environment as one pattern, and the variable of each."""
    long = [(name, value) for name, value in os.environ.items() if len(value) >= SHORTEST]
    return _compiled(tuple((name, value) for name, value in long if _VARIABLE.search(name) or _IS_URL.fullmatch(value)))


@lru_cache(maxsize=8)
def _compiled(variables: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    names: dict[str, str] = {}
    for name, value in variables:
        whole = [value] if _VARIABLE.search(name) else []
        for one in (*whole, *(password for password in passwords_of(value) if len(password) >= SHORTEST)):
            is_name = _is_word(one) and one == value and not _NO_WORDS.search(name)
            if one.lower() not in _NO_VALUES and not (one.startswith("/") and os.path.exists(one)) and not is_name:
                for form in _forms(one):
                    names.setdefault(form, name)
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(rf"\b{re.escape(one)}\b" if _is_word(one) else re.escape(one) for one in longest_first)), names


def _is_word(value: str) -> bool:
    """True for one or two words that people might say. Nearly half of all eight letters drawn at random can be said too: no proof that it is none."""
    letters = re.sub("[-_. ]", "", value)
    if len(letters) > _MOST_LETTERS or not _WORD.fullmatch(value) or not (value.islower() or value.isupper() or value.istitle()):
        return False
    return 0.25 <= len(_VOWELS.findall(letters)) / len(letters) <= 0.7 and _CONSONANTS.search(letters) is None


def _forms(value: str) -> Iterator[str]:
    """The value as it may stand in a text: as it is, in a URL, in JSON, in Python; of several lines each one that is long enough."""
    lines = [line.strip() for line in value.splitlines()] if "\n" in value else []
    for one in (value, *(line for line in lines if len(line) >= 16)):
        yield one
        yield quote(one, safe="")
        yield json.dumps(one)[1:-1]
        yield repr(one)[1:-1]
