import pytest
from prefect import flow

from tasks.dvc import StageFailedError
from tasks.elsewhere import refuse_if_lost_too_often
from tasks.policy import PARENT_LOST


def test_a_run_that_is_lost_again_and_again_is_given_up(prefect_server: None) -> None:
    began = 0

    @flow(name="personalize", retries=PARENT_LOST + 1, retry_delay_seconds=0)
    def lost() -> None:
        nonlocal began
        refuse_if_lost_too_often()
        began += 1
        raise RuntimeError("the worker was lost")

    with pytest.raises(StageFailedError, match=f"was lost with its worker {PARENT_LOST + 1} times; it is given up"):
        lost()

    assert began == 1 + PARENT_LOST
