"""fvlight.pictures: files of all sorts as a network's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fvlight import FvlightError, InputSpace
from fvlight.pictures import Pictures, collate, conversion, fitted, picture_files


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (10, 8)) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def test_files_of_a_folder_and_one_file(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    first, second = save(tmp_path / "b.png"), save(tmp_path / "below" / "a.png")
    assert picture_files(tmp_path) == {"b.png": first, "below/a.png": second}
    assert picture_files(str(first)) == {"b.png": first}


def test_the_middle_of_a_resized_picture() -> None:
    ramp = torch.linspace(0, 1, 40).expand(3, 10, 40).contiguous()
    assert fitted("ramp", ramp, (10, 40)) is ramp
    middle = fitted("ramp", ramp, (10, 10))  # heights are equal: nothing is resized, 15 pixels are cut on each side
    torch.testing.assert_close(middle, ramp[:, :, 15:25])
    halved = fitted("ramp", ramp, (5, 6))
    torch.testing.assert_close(halved.mean(), torch.tensor(0.5), atol=1e-3, rtol=0)
    with pytest.raises(FvlightError, match="10 x 40 pixels, 5 x 5 are needed"):
        fitted("ramp", ramp, (5, 5), resize=False)


@pytest.mark.parametrize(
    ("mode", "words"), [("RGB", ""), ("L", "greyscale"), ("RGBA", "with transparency"), ("P", ""), ("1", "greyscale")]
)
def test_what_is_changed_is_said(tmp_path: Path, mode: str, words: str) -> None:
    said = conversion(save(tmp_path / "picture.png", mode))
    assert said.startswith(words)
    assert bool(said) == bool(words)


def test_what_can_not_be_read_is_no_batch(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    Image.new("RGB", (10, 8), (7, 7, 7)).save(tmp_path / "one_colour.png")
    files = [save(tmp_path / "a.png"), tmp_path / "bad.png", save(tmp_path / "c.png", "L"), tmp_path / "one_colour.png"]
    space = InputSpace(3, 255.0, (100.0, 110.0, 120.0), (2.0, 2.0, 2.0))
    dataset = Pictures(files, space, (8, 10))
    batch, unread = collate([dataset[i] for i in range(len(dataset))])
    assert batch is not None
    assert batch.rows.tolist() == [0, 2]
    rgb = torch.from_numpy(np.array(Image.open(files[0]))).permute(2, 0, 1).float()
    torch.testing.assert_close(batch.images[0], (rgb - torch.tensor([100.0, 110, 120]).view(3, 1, 1)) / 2)
    assert [row for row, _ in unread] == [1, 3]
    assert "bad.png" in unread[0][1]
    assert "one colour" in unread[1][1]
    assert collate([dataset[1]])[0] is None
