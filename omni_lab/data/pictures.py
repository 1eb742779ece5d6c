"""Reading picture files, strictly or leniently, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


class PictureError(ValueError):
    """A picture file that is missing, corrupt, or not of the expected mode or size."""


def read_picture(path: Path, *, size: int, exact: bool) -> np.ndarray:
    """The picture as [3, size, size] uint8.

    exact: the file must already be RGB and size x size (a set of fixed format: anything else means damage).
    Otherwise it is converted to RGB, transparency laid on white, and resized (bicubic, aspect not kept).
    """
    try:
        with Image.open(path) as file:
            file.load()
            picture: Image.Image = file
    except FileNotFoundError as error:
        raise PictureError(f"{path}: no such picture file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise PictureError(f"{path}: not a readable picture ({error})") from error
    if exact:
        if picture.mode != "RGB" or picture.size != (size, size):
            raise PictureError(f"{path}: got mode {picture.mode}, size {picture.size}: expected RGB, ({size}, {size})")
        return np.asarray(picture).transpose(2, 0, 1)
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    rgb = picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(rgb).transpose(2, 0, 1)
