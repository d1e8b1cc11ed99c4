"""Folders of image files: decoding, forms, the cache, streaming, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.core.errors import DataError
from understudy.data import Data, Split, StreamedSplit, images


def picture(seed: int, *, grey: bool = False, size: tuple[int, int] = (6, 5)) -> Image.Image:
    shape = size if grey else (*size, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def make_folder(path: Path, *, grey: bool = False, parts: tuple[str, ...] = ("train", "test"), each: int = 5) -> Path:
    for i, part in enumerate(parts):
        for j, name in enumerate(("cat", "dog", "eel")):
            folder = path / part / name
            folder.mkdir(parents=True)
            for k in range(each):
                picture(100 * i + 10 * j + k, grey=grey).save(folder / f"{k}.png")
    return path


def opened(path: Path, **settings: object) -> Data:
    return Data.from_folder(path, cache=path.parent / "cache", progress=False, **settings)  # type: ignore[arg-type]


def pixels(split: object) -> torch.Tensor:
    assert isinstance(split, Split)
    return split.images


@pytest.mark.parametrize("grey", [False, True])
def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path, grey: bool) -> None:
    data = opened(make_folder(tmp_path / "x", grey=grey, parts=("train", "val", "test")))
    assert data.classes == ("cat", "dog", "eel")
    assert data.shape == (1 if grey else 3, 6, 5)
    for i, split in enumerate((data.train, data.val, data.test)):
        assert split is not None and split.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
        for at, seed in enumerate(100 * i + 10 * j + k for j in range(3) for k in range(5)):
            expected = torch.from_numpy(np.array(picture(seed, grey=grey)))
            assert torch.equal(pixels(split)[at], expected[None] if grey else expected.permute(2, 0, 1))


def test_other_files_are_passed_over_and_many_chunks_come_out_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = opened(make_folder(tmp_path / "plain"), workers=1)
    path = make_folder(tmp_path / "x")
    (path / "train" / "cat" / "Thumbs.db").write_text("x")
    (path / "train" / "dog" / ".hidden.png").write_text("x")
    (path / "train" / "labels.csv").write_text("x")
    (path / "train" / ".git").mkdir()
    monkeypatch.setattr(images, "_CHUNK", 2)
    assert opened(path, workers=3).digest == plain.digest


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_taken(tmp_path: Path, name: str) -> None:
    data = opened(make_folder(tmp_path / "x", parts=("train", name)))
    assert (len(data.train), len(data.val), data.test) == (15, 15, None)


def test_decoded_images_come_from_the_cache_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_folder(tmp_path / "x", parts=("train",))
    decoded: list[int] = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda x, *a, **b: decoded.append(len(x.names)) or decode(x, *a, **b))
    first = opened(path)
    assert opened(path).digest == first.digest
    assert opened(path, seed=1, val_fraction=0.3).digest != first.digest  # another cut of the same images
    assert decoded == [15]
    opened(path, grey=True)
    opened(path, size=4)
    assert decoded == [15] * 3
    file = path / "train" / "cat" / "0.png"
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert opened(path).digest == first.digest
    assert decoded == [15] * 4
    picture(77).save(path / "train" / "cat" / "9.png")
    assert len(opened(path, val_fraction=0.25).train) == 12
    assert decoded == [15, 15, 15, 15, 16]
    assert not list((tmp_path / "cache").glob("*.part"))


def test_other_images_of_the_same_names_sizes_and_times_are_not_those_of_the_cache(tmp_path: Path) -> None:
    def filled(place: Path, value: int) -> Path:
        for name in ("cat", "dog"):
            (place / "train" / name).mkdir(parents=True, exist_ok=True)
            for number in range(5):
                file = place / "train" / name / f"{number}.bmp"
                Image.new("RGB", (4, 4), (value + number, 0, 0)).save(file)
                os.utime(file, ns=(0, 0))  # as archives do that are made to be the same each time
        return place

    digests = [opened(filled(tmp_path / place, value)).digest for place, value in (("x", 0), ("y", 9), ("x", 50))]
    assert len(set(digests)) == 3


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(images.Path, "home", home)
    assert images.cache_folder().name == f"understudy-{os.getuid()}"


def test_a_cache_file_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "x", parts=("train",))
    digest = opened(path).digest
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    for broken in (whole[:200], whole[:50], b"", b"something else"):
        file.write_bytes(broken)
        assert opened(path).digest == digest
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "x", parts=("train",))
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="decoded images could not be cached"):
        data = Data.from_folder(path, cache=tmp_path / "file" / "cache", progress=False)
    assert data.digest == opened(path).digest


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(images.np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        images.write_atomically(tmp_path / "cache" / "x.npy", np.zeros(3, np.uint8))
    assert not list((tmp_path / "cache").iterdir())


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    Data.from_folder(make_folder(tmp_path / "x", parts=("train",)), progress=False)
    assert len(list((tmp_path / "c" / "understudy").iterdir())) == 1


def test_images_too_many_to_hold_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_folder(tmp_path / "x")
    held, streamed = opened(path), opened(path, memory_gb=0.0, workers=2)
    assert isinstance(streamed.train, StreamedSplit)
    again = pickle.loads(pickle.dumps(streamed))
    for one, two in ((held.train, streamed.train), (held.val, again.val), (held.test, streamed.test)):
        assert one is not None and two is not None
        assert torch.equal(pixels(one), two.batch(torch.arange(len(two)))[0])
        assert torch.equal(one.labels, two.labels)
    assert (streamed.mean, streamed.std) == (held.mean, held.std)
    monkeypatch.chdir(tmp_path)
    named = opened(Path("x"), memory_gb=0.0)
    monkeypatch.chdir("/")
    assert torch.equal(named.train.batch(torch.arange(3))[0], streamed.train.batch(torch.arange(3))[0])
    (path / "train" / "cat" / "3.png").write_bytes(b"")
    whole = StreamedSplit(streamed.train.read, torch.arange(15), torch.zeros(15).long(), streamed.shape, torch.uint8)
    with pytest.raises(DataError, match=r"cat/3\.png is not an image that can be read"):
        whole.batch(torch.arange(15))


def test_size_scales_the_shorter_side_and_cuts_the_middle_out(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "x", parts=("train",))
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    Image.fromarray(wide).save(path / "train" / "cat" / "0.png")
    data = opened(path, size=4)
    assert data.shape == (3, 4, 4)
    both = torch.cat([pixels(data.train), pixels(data.val)])
    assert bool((both[:, :, :, 1:3] == 200).flatten(1).all(1).any())


def test_large_jpeg_files_are_decoded_smaller(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "x.jpg", quality=95)
    form = images.Form(grey=False, height=32, width=32, resized=True, guessed=True)
    expected = np.arange(32) * 8 + 3.5
    assert np.abs(images.read_file(tmp_path / "x.jpg", form).astype(float) - expected[None, :, None]).max() < 4


def test_grey_follows_the_files_unless_it_is_asked_for(tmp_path: Path) -> None:
    mixed = make_folder(tmp_path / "x", grey=True, parts=("train",))
    picture(0).save(mixed / "train" / "dog" / "0.png")
    assert opened(mixed).shape == (3, 6, 5)
    assert opened(mixed, grey=True).shape == (1, 6, 5)
    grey = pixels(opened(make_folder(tmp_path / "y", grey=True, parts=("train",)), grey=False).train)
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_a_colour_image_among_grey_ones_is_a_mistake_where_grey_was_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_SAMPLED", 1)
    path = make_folder(tmp_path / "x", grey=True, parts=("train",))
    picture(0).save(path / "train" / "dog" / "0.png")
    with pytest.raises(DataError, match=r"0\.png is in colour where the first are grey: give grey=True or grey=False"):
        opened(path)


def test_sixteen_bits_are_brought_to_eight(tmp_path: Path) -> None:
    levels = (np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)
    Image.fromarray(levels).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        form = images.Form.of(image, grey=None, size=None)
    assert images.read_file(tmp_path / "x.png", form).tolist() == [(np.arange(16) * 17).reshape(4, 4).tolist()]
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif has floating-point pixels"):
        images.read_file(tmp_path / "x.tif", form)


def test_palettes_and_transparency_come_out_in_colour(tmp_path: Path) -> None:
    colour = picture(0)
    colour.convert("RGBA").save(tmp_path / "a.png")
    colour.quantize(256).save(tmp_path / "p.png")
    form = images.Form(grey=False, height=6, width=5, resized=False, guessed=True)
    expected = np.array(colour).transpose(2, 0, 1)
    assert np.array_equal(images.read_file(tmp_path / "a.png", form), expected)
    assert images.read_file(tmp_path / "p.png", form).shape == (3, 6, 5)


def test_a_bar_is_shown_if_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_folder(tmp_path / "x", parts=("train",))
    opened(path)
    Data.from_folder(path, cache=tmp_path / "file", progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    Data.from_folder(path, cache=tmp_path / "terminal", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Decoding train" in shown.err


# What is refused.


def test_broken_images_are_named_the_first_five_of_them(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "x", parts=("train",))
    whole = (path / "train" / "cat" / "0.png").read_bytes()
    broken = [path / "train" / name / f"{k}.png" for name in ("cat", "dog") for k in (0, 1, 3)]
    for k, file in enumerate(broken):
        file.write_bytes(whole[: 30 + 10 * k] if k % 2 else b"no image")
    with pytest.raises(DataError) as error:
        opened(path)
    message = str(error.value)
    assert message.startswith("images must be readable and of one form: ")
    assert [str(file) in message for file in broken] == [True] * 5 + [False]
    assert message.endswith("; and 1 more")
    for file in path.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat/0\.png is not an image that can be read .*; and 10 more"):
        opened(path)


def test_links_to_nowhere_are_no_fewer_images(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "x")
    (path / "train" / "cat" / "9.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match=r"cat/9\.png cannot be read: No such file or directory"):
        opened(path)
    (path / "train" / "cat" / "9.png").unlink()
    (path / "train" / "circle").symlink_to(path / "train" / "circle")
    (path / "train" / "gone").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"train/(circle|gone) is a link that leads nowhere; .* is a link that leads"):
        opened(path)


def test_empty_files_and_classes_are_named_together(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "x")
    (path / "train" / "cat" / "2.png").write_bytes(b"")
    (path / "train" / "fox").mkdir()
    (path / "test" / "eel").rename(path / "test" / "emu")
    with pytest.raises(DataError) as error:
        opened(path)
    assert str(error.value) == (
        f"every class of every split must have images: {path}/train/cat/2.png is empty (0 bytes); "
        f"class 'fox' has no images in {path}/train/fox; the classes of {path}/test must be those of train, "
        f"but it lacks ['eel', 'fox'] and has ['emu'] besides"
    )


def test_images_in_folders_of_a_class_are_not_left_out_in_silence(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "x")
    for name in ("more", "@eaDir", "notes"):
        (path / "train" / "cat" / name).mkdir()
    (path / "train" / "cat" / "notes" / "why.txt").write_text("")
    (path / "train" / "cat" / "@eaDir" / "0.png").write_bytes((path / "train" / "cat" / "0.png").read_bytes())
    assert opened(path)
    (path / "train" / "cat" / "0.png").rename(path / "train" / "cat" / "more" / "0.png")
    with pytest.raises(DataError, match=r"cat/more holds images as well: they must lie in .*/cat itself$"):
        opened(path)


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, float("nan")])
def test_a_share_of_validation_images_leaves_some(share: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="val_fraction must leave at least one example to train and one to validate on"):
        opened(make_folder(tmp_path / "x", parts=("train",)), val_fraction=share)


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "x" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="x/train has no class folders"):
        opened(tmp_path / "x")


def test_a_folder_without_train(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "x" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=r"must hold a folder 'train' .*, but it holds \['cat', 'dog'\]"):
        opened(tmp_path / "x")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"photo does not \(did you mean '.*/photos'\?\)"):
        opened(tmp_path / "photo")


def test_images_of_different_sizes(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "x", parts=("train",))
    picture(0, size=(7, 5)).save(path / "train" / "eel" / "4.png")
    with pytest.raises(DataError, match=r"4\.png has 5x7 pixels where the first has 5x6: give size= to bring"):
        opened(path)
    assert opened(path, size=5).shape == (3, 5, 5)
    with pytest.raises(DataError, match="size must be at least 1 pixel, but got 0"):
        opened(path, size=0)


def test_an_image_that_claims_too_many_pixels_is_one_error(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "0.png").write_bytes(bomb)
    with pytest.raises(DataError, match=r"0\.png is not an image that can be read \(DecompressionBombError"):
        Data.from_folder(tmp_path, progress=False)
