"""What the pixels of a mask mean: class numbers, soft edges, noise, palettes, transparency, orientation."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from aprilcli.errors import InputError
from aprilcli.io import masks
from aprilcli.io.datasets import LabeledImage
from aprilcli.io.masks import read_mask

BLANK = np.zeros((4, 6), np.uint8)


def save(path, pixels, mode=None):
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image if mode is None else image.convert(mode)).save(path)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_every_kind(tmp_path, mode):
    pixels = BLANK.copy()
    pixels[1, 2:4] = 255
    path = tmp_path / "mask.png"
    if mode == "P":  # class numbers, as in VisA; the palette's colors do not matter
        image = Image.fromarray(pixels // 255 * 3).convert("P")
        image.putpalette([255, 255, 255, 9, 9, 9, 0, 0, 0, 0, 0, 0])
        image.save(path)
    elif mode == "I;16":
        Image.fromarray(pixels.astype(np.uint16) * 100).save(path)
    else:
        save(path, pixels, mode)
    mask = read_mask(LabeledImage(tmp_path / "image.png", "bent", 1, (path,)), (4, 6))
    assert mask.dtype == bool
    assert np.array_equal(mask, pixels > 0)


def test_every_class_number_counts(tmp_path):
    path = save(tmp_path / "mask.png", [[0, 1, 2], [7, 0, 255]])
    mask = read_mask(LabeledImage(tmp_path / "image.png", "bad", 1, (path,)), (2, 3))
    assert mask.tolist() == [[False, True, True], [True, False, True]]


def test_masks_that_do_not_fit_are_refused(tmp_path):
    image = tmp_path / "image.png"
    some, none = save(tmp_path / "some.png", BLANK + 1), save(tmp_path / "none.png", BLANK)
    (tmp_path / "torn.png").write_bytes(some.read_bytes()[:50])
    cases = [
        ((1, (some,)), (6, 4), r"some\.png: mask of 6 by 4 pixels for .*image\.png of 4 by 6"),
        ((1, (none,)), (4, 6), r"none\.png: empty mask, but .*image\.png is labeled bent"),
        ((0, (some,)), (4, 6), r"some\.png: marks a defect, but .*image\.png is labeled good"),
        ((1, ()), (4, 6), r"image\.png: labeled bent but without a mask"),
        ((1, (tmp_path / "torn.png",)), (4, 6), r"torn\.png: cannot read the mask of .*image\.png"),
        ((1, (tmp_path / "gone.png",)), (4, 6), r"gone\.png: cannot read the mask of .*image\.png"),
    ]
    for (label, paths), size_hw, message in cases:
        with pytest.raises(InputError, match=message) as raised:
            read_mask(LabeledImage(image, "bent" if label else "good", label, paths), size_hw)
        assert "\n" not in str(raised.value)


def test_good_images_have_an_empty_mask(tmp_path):
    image = LabeledImage(tmp_path / "image.png", "good", 0)
    assert image.has_mask
    assert not LabeledImage(tmp_path / "image.png", "bent", 1).has_mask
    mask = read_mask(image, (3, 5))
    assert mask.shape == (3, 5)
    assert not mask.any()
    empty = save(tmp_path / "empty.png", BLANK)
    assert not read_mask(LabeledImage(tmp_path / "image.png", "good", 0, (empty,)), (4, 6)).any()


def draw_disk(size=(96, 64), value=255):
    """Return a gray mask with a disk and a line, and its pixels."""
    image = Image.new("L", size)
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 12, 50, 42), fill=value)
    draw.line((60, 8, 80, 40), fill=value, width=2)
    return image, np.asarray(image) > 0


def read(path, size_hw=(64, 96), image="image.png"):
    """Read a mask of an anomalous image; return its pixels and the notes."""
    notes = []
    return read_mask(LabeledImage(path.parent / image, "bent", 1, (path,)), size_hw, notes.append), notes


@pytest.mark.parametrize("value", [255, 150])
@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_noise_of_jpeg_masks_is_cut(tmp_path, value, quality, mode):
    image, expected = draw_disk(value=value)
    image.convert(mode).save(tmp_path / "m.jpg", quality=quality)
    mask, notes = read(tmp_path / "m.jpg")
    assert (mask != expected).mean() < 0.01
    assert notes == [masks.NOTE_CUT]
    Image.open(tmp_path / "m.jpg").save(tmp_path / "m.png")  # the noise is now in a lossless file
    again, notes = read(tmp_path / "m.png")
    assert np.array_equal(again, mask)
    assert notes == [masks.NOTE_CUT]


def test_lossless_webp_and_fractions(tmp_path):
    pixels = np.zeros((64, 96), np.uint8)
    pixels[5:20, 5:20], pixels[30:50, 30:50] = 1, 2
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "m.webp", lossless=True)
    mask, notes = read(tmp_path / "m.webp")
    assert np.array_equal(mask, pixels > 0)
    assert notes == []
    soft = np.asarray(draw_disk((384, 256))[0].resize((96, 64), Image.Resampling.BOX)).astype(np.float32) / 255
    Image.fromarray(soft).save(tmp_path / "m.tif")
    mask, notes = read(tmp_path / "m.tif")
    assert np.array_equal(mask, soft > 0.5)
    assert notes == [masks.NOTE_CUT]


def test_class_numbers_in_jpeg_masks_are_noted(tmp_path):
    draw_disk(value=2)[0].save(tmp_path / "m.jpg", quality=95)
    assert masks.NOTE_DARK in read(tmp_path / "m.jpg")[1]


def test_soft_edges_are_cut_at_half(tmp_path):
    large, _ = draw_disk((384, 256))
    large = large.resize((96, 64), Image.Resampling.BOX)
    large.save(tmp_path / "m.png")
    mask, notes = read(tmp_path / "m.png")
    assert np.array_equal(mask, np.asarray(large) > 127.5)
    assert notes == [masks.NOTE_CUT]
    blurred = draw_disk()[0].filter(ImageFilter.GaussianBlur(4))
    blurred.save(tmp_path / "b.png")
    mask, notes = read(tmp_path / "b.png")
    assert np.array_equal(mask, np.asarray(blurred) > np.asarray(blurred).max() / 2)
    assert notes == [masks.NOTE_CUT]


@pytest.mark.parametrize("numbers", [(1, 2, 3), (1, 30), (1, 255), (60, 120, 255), (85, 170, 255), (100, 1000, 40000)])
def test_areas_of_a_lower_value_are_classes(tmp_path, numbers):
    pixels = np.zeros((64, 96), np.uint16 if max(numbers) > 255 else np.uint8)
    for position, number in enumerate(numbers):
        pixels[10:30, 5 + 30 * position : 20 + 30 * position] = number
    Image.fromarray(pixels).save(tmp_path / "m.png")
    mask, notes = read(tmp_path / "m.png")
    assert np.array_equal(mask, pixels > 0)
    assert notes == []


def test_gray_areas_of_jpeg_masks_are_classes(tmp_path):
    pixels = np.zeros((64, 96), np.uint8)
    pixels[8:40, 8:32], pixels[8:40, 56:88] = 90, 255
    Image.fromarray(pixels).save(tmp_path / "m.jpg", quality=90)
    mask, notes = read(tmp_path / "m.jpg")
    assert (mask != (pixels > 0)).mean() < 0.02
    assert len(notes) == 1


@pytest.mark.parametrize("palette", [(255, 255, 255, 0, 0, 0), (200, 0, 0, 0, 0, 0), (0, 0, 0, 255, 255, 255)])
def test_the_background_of_a_palette_is_what_is_drawn(tmp_path, palette):
    _, expected = draw_disk()
    black_first = palette[:3] == (0, 0, 0)
    image = Image.fromarray((expected if black_first else ~expected).astype(np.uint8)).convert("P")
    image.putdata((expected if black_first else ~expected).astype(np.uint8).ravel().tolist())
    image.putpalette(palette)
    image.save(tmp_path / "m.png")
    mask, notes = read(tmp_path / "m.png")
    assert np.array_equal(mask, expected)
    assert notes == ([] if black_first else [masks.NOTE_PALETTE])


def test_class_numbers_with_a_palette_of_colors(tmp_path):
    image = Image.new("P", (96, 64))
    ImageDraw.Draw(image).rectangle((10, 10, 30, 30), fill=2)
    ImageDraw.Draw(image).rectangle((50, 10, 70, 30), fill=1)
    image.putpalette([255, 255, 255, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "m.png")
    mask, _ = read(tmp_path / "m.png")
    assert np.array_equal(mask, np.asarray(image) > 0)


def test_transparency_decides_if_there_is_one_color(tmp_path):
    _, expected = draw_disk()
    alpha = Image.fromarray(expected.astype(np.uint8) * 255)
    for name, color in (("red", (255, 0, 0)), ("black", (0, 0, 0))):
        image = Image.new("RGB", (96, 64), color)
        image.putalpha(alpha)
        image.save(tmp_path / f"{name}.png")
        mask, notes = read(tmp_path / f"{name}.png")
        assert np.array_equal(mask, expected)
        assert notes == [masks.NOTE_ALPHA]


@pytest.mark.parametrize("inverted", [False, True])
def test_masks_that_mark_nearly_everything_are_noted(tmp_path, inverted):
    pixels = ~draw_disk()[1] if inverted else np.ones((64, 96), bool)
    Image.fromarray(pixels.astype(np.uint8) * 255).save(tmp_path / "m.png")
    mask, notes = read(tmp_path / "m.png")
    assert np.array_equal(mask, pixels)
    assert notes == [masks.NOTE_LARGE]


def test_a_colored_border_is_background(tmp_path):
    marked = draw_disk()[1]
    Image.fromarray(np.where(marked[..., None], [250, 0, 0], [0, 0, 200]).astype(np.uint8)).save(tmp_path / "m.png")
    mask, notes = read(tmp_path / "m.png")
    assert np.array_equal(mask, marked)
    assert notes == [masks.NOTE_BACKGROUND]


def rotated(image, path, orientation):
    """Save an image with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif.tobytes())


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_the_rotation_of_a_mask_is_applied(tmp_path, orientation):
    image, expected = draw_disk()
    back = {2: 0, 3: 3, 6: 2, 8: 4}[orientation]  # Image.Transpose: undoes the orientation
    rotated(image.transpose(Image.Transpose(back)), tmp_path / "m.png", orientation)
    mask, notes = read(tmp_path / "m.png")
    assert np.array_equal(mask, expected)
    assert notes == []


def test_a_mask_before_the_rotation_of_its_image(tmp_path):
    image, expected = draw_disk()
    raw = image.transpose(Image.Transpose.ROTATE_90)
    rotated(raw.convert("RGB"), tmp_path / "i.jpg", 6)
    raw.save(tmp_path / "raw.png")
    image.save(tmp_path / "upright.png")
    assert read(tmp_path / "upright.png", image="i.jpg")[1] == []
    mask, notes = read(tmp_path / "raw.png", image="i.jpg")
    assert np.array_equal(mask, expected)
    assert notes == [masks.NOTE_ROTATED]
    square = image.resize((64, 64), Image.Resampling.NEAREST)
    rotated(square.convert("RGB"), tmp_path / "s.jpg", 6)
    rotated(image.convert("RGB"), tmp_path / "flat.jpg", 3)
    square.save(tmp_path / "square.png")
    assert read(tmp_path / "square.png", (64, 64), "s.jpg")[1] == [masks.NOTE_ORIENTATION]
    assert read(tmp_path / "upright.png", image="flat.jpg")[1] == [masks.NOTE_ORIENTATION]
