"""The comparison as CSV (RFC 4180): numbers stay numbers, and no text can become a spreadsheet's formula."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sparsefleet.report.plain import plain

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the wide ones are formulas too where such are typed
_UNSEEN = "\u200b\ufeff"
_PAIRS = ("_ci",)
_LEFT_OUT = ("timings",)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row with a heading; an interval is two columns, ``…_low`` and ``…_high``; nested values are JSON text."""
    if not rows:
        return ""
    flat = [_flat(row) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def cell(value: Any) -> Any:
    """The value as it is written: text that starts like a formula is quoted with an apostrophe."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = plain(value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False))
    return f"'{text}" if text.lstrip().lstrip(_UNSEEN).lstrip().startswith(_FORMULA) else text


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name in _LEFT_OUT:
            continue
        if name.endswith(_PAIRS):
            low, high = value or (None, None)
            flat[f"{name}_low"], flat[f"{name}_high"] = low, high
        else:
            flat[cell(name)] = cell(value)
    return flat
