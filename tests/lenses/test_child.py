"""Child processes: results and progress come back, user errors keep their type, crashes show."""

import os

import pytest

from parallax.lenses.child import ChildError, run_in_child
from parallax.lenses.environment import cpu_environment


def test_results_progress_and_environment():
    def work(x, *, on_progress):
        on_progress("half way")
        print("prints do not disturb the frames")
        return x + 1, os.environ["PARALLAX_TEST"]

    lines = []
    found = run_in_child(work, 1, environment={"PARALLAX_TEST": "here"}, on_progress=lines.append)
    assert found == (2, "here")
    assert lines == ["half way"]


@pytest.mark.parametrize("error", [ValueError, NotImplementedError, ModuleNotFoundError])
def test_user_errors_come_back_as_themselves(error):
    def work(*, on_progress):
        raise error("what the user did")

    with pytest.raises(error, match="^what the user did$"):
        run_in_child(work, environment={})


def test_other_errors_bring_their_traceback():
    def broken(*, on_progress):
        return {}["missing"]

    with pytest.raises(ChildError, match=r"(?s)broken failed.*Traceback.*KeyError: 'missing'"):
        run_in_child(broken, environment={})


def test_a_killed_child_is_reported_with_its_log():
    def die(*, on_progress):
        os.write(2, b"last words")
        os._exit(7)

    with pytest.raises(ChildError, match=r"(?s)status 7.*last words"):
        run_in_child(die, environment={})


def test_a_child_has_its_own_devices():
    def count(*, on_progress):
        import jax

        return jax.device_count(), jax.config.jax_enable_x64

    assert run_in_child(count, environment=cpu_environment(3)) == (3, True)
