from tasks.prefect_api.stage_numbers import number_rows

DETECTED = {
    "bursts": 17,
    "crops": {"holdout_head": 4, "train_head": 17},
    "against": {"blurred": 1, "near_duplicate": 4, "no_face": 2},
    "engine": {"id": "dlib"},
    "face_px_median": 150.4991,
    "holdout": 4,
    "overrides_unused": [],
    "train": 17,
    "something_new": 1,
}


def test_numbers_are_told_in_words_with_the_most_important_first() -> None:
    rows = [tuple(row.values()) for row in number_rows("detect", DETECTED)]

    assert rows == [
        ("photos to train on", 17),
        ("photos held out, to score with", 4),
        ("why photos were left out", "near duplicate: 4, no face: 2, blurred: 1"),
        ("crops made", "train head: 17, holdout head: 4"),
        ("series of shots that belong together", 17),
        ("median width of the face, px", 150.5),
        ("decisions that fit no photo", "none"),
        ("something new", 1),
    ]


def test_an_evaluation_begins_with_the_verdict_and_its_reason() -> None:
    found = {
        "verdict": "fail",
        "why": "too few faces",
        "advice": ["Train longer."],
        "estimates": {"face_found": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 48}},
        "chosen": {"file": "lora.safetensors", "strength": 0.8},
    }
    rows = [tuple(row.values()) for row in number_rows("evaluate", found)]

    assert rows[:3] == [("verdict", "fail"), ("why", "too few faces"), ("what to do next", "Train longer.")]
    assert ("of the pictures show a face (24 of 48)", "50 %") in rows
    assert ("strength to use it at", 0.8) in rows
