"""A Ray of our own starts less than Ray's default; afterwards Ray is as it was, for others in this process."""

import pytest

ray = pytest.importorskip("ray")

from sparsefleet.fleet.own_ray import small_ray  # noqa: E402


def settings():
    node = ray._private.node.Node
    methods = [node.start_api_server, node.start_monitor, node.start_log_monitor]
    return [*methods, ray._private.utils.get_dashboard_dependency_error, ray._private.ray_constants.ENABLE_RAY_CLUSTER]


def test_what_ray_leaves_out_is_there_again_afterwards_also_where_it_did_not_start():
    before = settings()
    try:
        with small_ray():
            assert all(now != then for now, then in zip(settings()[:4], before[:4], strict=True))
            assert ray._private.ray_constants.ENABLE_RAY_CLUSTER is False
            raise TimeoutError
    except TimeoutError:
        assert settings() == before
    else:
        pytest.fail("the error was lost")
