"""What a node would run is compared with what the trial keys promise, and every difference is told at once."""

import pytest

from sparsefleet.cli.talk import report_error
from sparsefleet.errors import VersionSkew
from sparsefleet.fleet.preflight import check_nodes
from sparsefleet.ledger import TrialRow

A, B = "a" * 64, "b" * 64


def row(**code):
    request = {"code": {"core": A, "torch": "2.15.0", **code}, "versions": {"core": "sparsefleet 0.1.0", "pruner/mine": "sf-mine 1.0"}}
    fields = dict.fromkeys(TrialRow.__dataclass_fields__)
    return TrialRow(**{**fields, "request": request})


def node(name, *, core=A, torch="2.15.0", plugins=(), unusable=()):
    return {"node": name, "sparsefleet": "0.1.0", "core": core, "torch": torch, "plugins": list(plugins), "unusable": list(unusable)}


MINE = ["pruner", "mine", "sf-mine", "1.0", A, {"numpy": "2.1"}]


def test_equal_code_passes_whatever_else_is_installed():
    other = ["rewirer", "theirs", "sf-theirs", "3.0", B, {}]
    check_nodes([node("one", plugins=[MINE, other]), node("two", plugins=[MINE])], [row(**{"pruner/mine": A, "library/numpy": "2.1"})])


def test_all_differences_of_all_nodes_come_in_one_table(capsys):
    newer = ["pruner", "mine", "sf-mine", "1.1", B, {"numpy": "2.2"}]
    nodes = [node("one", plugins=[newer], core=B), node("two", plugins=[MINE]), node("three", torch="2.14.0")]
    with pytest.raises(VersionSkew) as caught:
        check_nodes(nodes, [row(**{"pruner/mine": A, "library/numpy": "2.1"}), row()])
    found = caught.value.differences
    assert found["pruner/mine"] == (f"sf-mine 1.0 ({A[:12]})", {"one": f"sf-mine 1.1 ({B[:12]})", "three": "not there"})
    assert found["library/numpy"] == ("2.1", {"one": "2.2", "three": "not there"})
    assert found["torch"] == ("2.15.0", {"three": "2.14.0"})
    assert found["core"] == (f"sparsefleet 0.1.0 ({A[:12]})", {"one": f"sparsefleet 0.1.0 ({B[:12]})"})
    assert report_error(caught.value, debug=False) == 3
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error: one, three run other code")
    assert said[1].split() == ["what", "submitted", "one", "three"]
    assert [line.split()[0] for line in said[2:6]] == ["core", "library/numpy", "pruner/mine", "torch"]
    assert said[5].split()[1:] == ["2.15.0", "the", "same", "2.14.0"]


def test_code_that_times_differently_is_refused_where_it_matters():
    there = node("late") | {"harness": B}
    check_nodes([there], [row()])
    check_nodes([there], [row()], harness=B)
    with pytest.raises(VersionSkew) as caught:
        check_nodes([there, node("old")], [row()], harness=A)
    ((wanted, found),) = [caught.value.differences["harness"]]
    assert wanted.endswith(f"({A[:12]})")
    assert found == {"late": f"sparsefleet 0.1.0 ({B[:12]})", "old": "not there"}


def test_a_plugin_that_a_node_may_not_import_says_why():
    refused = ["sf-mine", "1.0", "unlisted", "sf-mine is not in the allow-list /etc/allow.toml"]
    with pytest.raises(VersionSkew) as caught:
        check_nodes([node("one", unusable=[refused])], [row(**{"pruner/mine": A})])
    assert "unlisted: sf-mine is not in the allow-list /etc/allow.toml" in caught.value.differences["pruner/mine"][1]["one"]
