import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.photos.test_decode import wide_gamut_profile
from tests.photos.test_strip import SECRET, telling_profile
from zimage.photos.profile import bare_profile


@pytest.mark.parametrize(
    "profile", [telling_profile(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
)
def test_a_bare_profile_converts_colours_as_the_whole_one_does(profile: bytes) -> None:
    bare = bare_profile(profile)
    assert 0 < len(bare) < len(profile) and SECRET[:4] not in bare
    read = ImageCms.ImageCmsProfile(io.BytesIO(bare)).profile
    assert (read.profile_description, read.copyright, read.manufacturer) == (None, None, None)
    assert bare[24:36] == bytes(12) and bare[84:128] == bytes(44)  # its date, and what identifies it
    wanted = ImageCms.createProfile("sRGB")
    colours = Image.fromarray(np.random.default_rng(1).integers(0, 256, (256, 256, 3), np.uint8))
    both = [ImageCms.ImageCmsProfile(io.BytesIO(each)) for each in (profile, bare)]
    ours, theirs = (ImageCms.profileToProfile(colours, each, wanted) for each in both)
    assert ours is not None and theirs is not None and np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert bare_profile(bare) == bare


@pytest.mark.parametrize(
    "profile",
    [
        b"",
        b"no profile at all" * 20,
        bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
        wide_gamut_profile()[:200],
    ],
)
def test_of_a_profile_that_is_broken_or_a_table_nothing_is_written(profile: bytes) -> None:
    assert bare_profile(profile) == b""
