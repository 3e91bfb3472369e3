import pytest

from zimage.evaluation.wording import cells, quantity, unbroken


@pytest.mark.parametrize(("n", "text"), [(0, "0 pictures"), (1, "1 picture"), (2, "2 pictures")])
def test_one_picture_is_one(n: int, text: str) -> None:
    assert quantity(n, "picture") == text


def test_a_share_of_one_picture_rests_on_one_picture() -> None:
    metrics = {"estimates": {"following": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 1}}}

    assert ("50 %", "of what a prompt asks for is found again in its picture (1 picture)") in cells(metrics)


def test_no_line_of_a_page_breaks_between_a_number_and_its_unit() -> None:
    text = "50 % of 48 pictures of 512 px, 12.5 GB, 100 steps, 3 scores"

    assert unbroken(text) == "50\u00a0% of 48 pictures of 512\u00a0px, 12.5\u00a0GB, 100\u00a0steps, 3 scores"
