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
from omni_lab.viz.style import chinese_font, smallest_text

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
    picture, *panels = figure.axes
    assert all(np.array_equal(p.images[0].get_array(), PICTURE.transpose(1, 2, 0)) for p in (picture, *panels))
    levels = [axis.collections[-1].levels.tolist() for axis in panels]
    assert levels == [pytest.approx([0.175, 0.35, 0.525])] * 2, "one scale for all"
    assert "attention weight above 0.17, 0.35, 0.52" in texts(figure)
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
    truth, predicted = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])
    figure = viz.confusion_matrix_plot(truth, predicted, ["yes", "red", "no"], families=["b", "a", "b"])
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None and np.ma.filled(shown, 0).tolist() == [[0, 0, 0], [0, 0, 0], [0.5, 0, 0]], (
        "mistakes alone"
    )
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["red", "no", "yes"], "by family"
    assert len(figure.axes[0].lines) == 2, "a line each way between the families"
    assert "predicted answer" in texts(figure) and "1 of 4 answers are wrong" in texts(figure)


def test_a_flow_chart_has_its_boxes_from_left_to_right() -> None:
    boxes = {"a": (0, 0, "tokens", "blue"), "b": (1, 0, "keys", "red"), "c": (2, 0.5, "weights", "grey")}
    figure = viz.flow_chart(boxes, [("a", "b", "W"), ("b", "c", "")], title="how")
    assert all(word in texts(figure) for word in ("tokens", "keys", "weights", "W", "how"))
    left = {t.get_text(): t.get_position()[0] for t in figure.axes[0].texts}
    assert left["tokens"] < left["W"] < left["keys"] < left["weights"] < figure.axes[0].get_xlim()[1]


def test_the_diagram_shows_the_shapes_that_ran(recipe: Recipe) -> None:
    data = recipe.data_module()
    dataset = data.dataset("train")
    batch = collate([dataset[i] for i in range(4)])
    model = recipe.build_model(data)
    shown = texts(viz.architecture(model, batch, model(batch)))
    assert "[1, 3, 16, 16]" in shown and "[4, 4]" in shown and "image → text" in shown


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


def test_before_and_after_stand_side_by_side() -> None:
    figure = viz.before_after({"given": [PICTURE, PICTURE], "restored": [PICTURE / 255, PICTURE]}, titles=["a", "b"])
    assert len(figure.axes) == 4 and [axis.get_title() for axis in figure.axes] == ["given", "restored", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["a", "", "b", ""]
    with pytest.raises(ValueError):
        viz.before_after({"given": [PICTURE]}, titles=["a", "b"])


def test_spectrograms_share_their_scales() -> None:
    rng = np.random.default_rng(0)
    figure = viz.spectrograms({"one": rng.normal(size=(50, 8)), "two": rng.normal(size=(80, 8)) + 3})
    first, second = figure.axes[:2]
    assert first.get_xlim() == second.get_xlim() and first.images[0].get_clim() == second.images[0].get_clim()
    assert second.images[0].get_extent()[1] == pytest.approx(0.8) and "seconds" in texts(figure)


def test_the_smallest_text_is_measured_as_a_page_shows_it() -> None:
    figure = Figure(figsize=(9.28, 2), dpi=100)
    figure.text(0, 0, "large", fontsize=14)
    figure.text(0, 0, "small", fontsize=9.6)
    figure.text(0, 0, " ", fontsize=1)
    figure.text(0, 0, "hidden", fontsize=1, visible=False)
    assert smallest_text(figure) == pytest.approx(10)
    assert smallest_text(figure, page_width=464) == pytest.approx(5), "shrunk to a page of half the width"
    assert smallest_text(Figure()) == float("inf")
