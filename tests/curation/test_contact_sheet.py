from zimage.curation.contact_sheet import Tile, contact_sheet
from zimage.photos.rows import FaceRow, ManifestRow

ROW = ManifestRow(
    photo="0123456789abcdef", sha256=None, name="a.jpg", decision="reject", reason="not_an_image",
    detail="It is a text.",
    override=None, engine_id="dlib", width=None, height=None, faces=[], subject_face=None, attempt=None, distance=None,
    face_side_px=None, sharpness=None, face_luma=None, clipped=None, occlusion=None, yaw_deg=None, roll_deg=None,
    quality=None, dhash=None, burst=None, shot=None, session=None, duplicate_of=None, aligned=None, crops=[],
)  # fmt: skip


def sheet(*tiles: Tile) -> str:
    return contact_sheet(list(tiles), engine="dlib", unused_overrides=[])


def test_names_from_strangers_cannot_become_markup() -> None:
    html = sheet(Tile(ROW.model_copy(update={"name": "<script>alert(1)</script>.jpg"}), None, []))
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_a_file_without_a_picture_still_has_a_tile() -> None:
    html = sheet(Tile(ROW, None, []))
    assert "nothing to show" in html and "not an image" in html and "It is a text." in html


def test_boxes_lie_over_the_photo_in_percent_and_stay_on_it() -> None:
    face = FaceRow(box_xyxy=(-20, 30, 100, 90), score=1, distance=0.1)
    numbers = {"width": 200, "height": 300, "faces": [face], "subject_face": 0, "distance": 0.1, "face_side_px": 80}
    numbers |= {"sharpness": 12.0, "face_luma": 0.5, "decision": "train", "reason": "kept", "detail": ""}
    html = sheet(Tile(ROW.model_copy(update=numbers), (80, 120), [(0, 0, 200, 150)]))
    assert '<img src="thumbnails/0123456789abcdef.jpg" width="80" height="120" alt="a.jpg" loading="lazy">' in html
    assert 'class="face subject" style="left:0.00%;top:10.00%;width:50.00%;height:20.00%"' in html
    assert 'class="crop" style="left:0.00%;top:0.00%;width:100.00%;height:50.00%"' in html


def test_groups_come_in_the_order_of_decisions_and_rejections_by_reason() -> None:
    rows = [
        ROW.model_copy(update={"name": "c.jpg", "reason": "truncated"}),
        ROW.model_copy(update={"name": "b.jpg", "reason": "blurred"}),
        ROW.model_copy(update={"name": "a.jpg", "decision": "review", "reason": "doubtful_person"}),
        ROW.model_copy(update={"name": "d.jpg", "decision": "holdout", "reason": "holdout"}),
    ]
    html = sheet(*(Tile(row, None, []) for row in rows))
    places = [html.index(name) for name in ("d.jpg", "a.jpg", "b.jpg", "c.jpg")]
    assert places == sorted(places)
