from __future__ import annotations

import warnings
from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from omni_lab import viz
from omni_lab.data.collate import collate
from omni_lab.training.recipes import Recipe
from omni_lab.viz.style import chinese_font

matplotlib.use("Agg")
PICTURE = np.zeros((3, 16, 16), dtype=np.uint8)


@pytest.fixture(autouse=True)
def close_figures() -> object:
    viz.use_style()
    yield
    plt.close("all")


def texts(figure: Figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def test_one_colour_per_modality() -> None:
    assert len(set(viz.MODALITY_COLORS.values())) == 4


def test_pictures_carry_their_captions() -> None:
    figure = viz.show_images([PICTURE] * 3, ["one", "two", "three\nlines"], columns=2)
    assert "three" in texts(figure)
    with pytest.raises(ValueError, match="got 1 images and 2 captions"):
        viz.show_images([PICTURE], ["a", "b"])


def test_attention_is_drawn_as_given() -> None:
    weights = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    figure = viz.attention_over_image(PICTURE, weights, (2, 2), ["is", "it"])
    drawn = [np.asarray(image.get_array()) for axis in figure.axes for image in axis.images]
    assert any(np.allclose(a, weights[0].reshape(2, 2)) for a in drawn if a.shape == (2, 2))
    assert "attention weight" in texts(figure)
    with pytest.raises(ValueError, match=r"must be \[1, 4\]: got \[2, 4\]"):
        viz.attention_over_image(PICTURE, weights, (2, 2), ["is"])


def test_matrices_curves_and_bars_are_labelled() -> None:
    matrix = viz.weight_matrix(
        np.full((2, 2, 3), 0.3), queries=["a", "b"], keys=["x", "y", "z"], titles=["l", "r"], xlabel="key", ylabel="q"
    )
    assert "key" in texts(matrix)
    row = {"train loss": 1.0, "validation loss": 1.0, "validation accuracy": 0.5, "macro F1": 0.5}
    curves = viz.training_curves([{"epoch": 1, **row}, {"epoch": 2, **row}], floor=0.6, floor_label="blind")
    assert "blind" in texts(curves) and "epoch" in texts(curves)
    bars = viz.accuracy_bars([("ours", 0.9, (0.8, 0.95), False), ("blind", 0.6, None, True)], title="t")
    assert "0.900" in texts(bars) and "test accuracy" in texts(bars)


def test_the_confusion_counts() -> None:
    figure = viz.confusion_matrix_plot(np.array([0, 0, 1]), np.array([0, 1, 1]), ["no", "yes"])
    shares = np.asarray(figure.axes[0].images[0].get_array())
    assert shares.tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert "predicted answer" in texts(figure)


def test_the_diagram_shows_the_shapes_that_ran(recipe: Recipe) -> None:
    data = recipe.data_module()
    dataset = data.dataset("train")
    batch = collate([dataset[i] for i in range(4)])
    model = recipe.build_model(data)
    shown = texts(viz.architecture(model, batch, model(batch)))
    assert "[1, 3, 16, 16]" in shown and "[4, 4]" in shown and "text listens to image" in shown


def test_a_scene_has_its_captions_in_chinese_where_a_font_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = {"en": "a drum", "de": "eine Trommel", "zh": "一面鼓"}
    facts = {"objects": [{"box": [0, 0, 8, 8]}], "captions": captions}
    scene = (
        PICTURE,
        facts,
        np.zeros((2, 3, 8, 8), dtype=np.uint8),
        np.ones(1600, dtype=np.float32),
        [("drum", 0, 0.1)],
    )
    for font, shown in ((None, False), ("a font", True)):
        monkeypatch.setattr(viz.worlds, "chinese_font", lambda font=font: font)
        said = texts(viz.show_scene(*scene))
        assert "eine Trommel" in said and ("一面鼓" in said) is shown


@pytest.mark.skipif(chinese_font() is None, reason="needs the optional package mplfonts")
def test_chinese_characters_are_drawn_beside_latin_ones(caplog: pytest.LogCaptureFixture) -> None:
    def drawn(text: str) -> np.ndarray:
        figure = plt.figure(figsize=(2, 1))
        figure.text(0.1, 0.4, text)
        figure.suptitle(text, weight="bold")
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is a warning and an empty box
        pictures = [drawn(text) for text in ("a 鼓", "a 蝶", "a b")]
    assert all((a != b).any() for a, b in combinations(pictures, 2)) and "findfont" not in caplog.text


def test_boxes_are_drawn_where_they_are_with_their_names() -> None:
    boxes = [np.array([[0.25, 0.5, 0.75, 1.0]]), np.empty((0, 4))]
    figure = viz.boxes_in_images([PICTURE, PICTURE], boxes, [["frog"], []], columns=2)
    (box,) = [p for p in figure.axes[0].patches if isinstance(p, matplotlib.patches.Rectangle)]
    assert box.get_bbox().extents.tolist() == [3.5, 7.5, 11.5, 15.5]
    assert "frog" in texts(figure) and not figure.axes[1].patches
    with pytest.raises(ValueError):
        viz.boxes_in_images([PICTURE], boxes[:1], [["frog", "key"]])


def test_before_and_after_stand_in_rows() -> None:
    figure = viz.before_after({"given": [PICTURE, PICTURE], "restored": [PICTURE / 255, PICTURE]}, titles=["a", "b"])
    assert len(figure.axes) == 4 and all(word in texts(figure) for word in ("given", "restored", "a", "b"))
    with pytest.raises(ValueError):
        viz.before_after({"given": [PICTURE]}, titles=["a", "b"])


def test_spectrograms_share_their_scales() -> None:
    rng = np.random.default_rng(0)
    figure = viz.spectrograms({"one": rng.normal(size=(50, 8)), "two": rng.normal(size=(80, 8)) + 3})
    first, second = figure.axes[:2]
    assert first.get_xlim() == second.get_xlim() and first.images[0].get_clim() == second.images[0].get_clim()
    assert second.images[0].get_extent()[1] == pytest.approx(0.8) and "seconds" in texts(figure)
