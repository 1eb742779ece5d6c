"""Every notebook runs under the smoke profile, records what it should, and is written as the series demands."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import nbformat
import pytest

from omni_lab.experiments.jobs import list_notebooks, plan_jobs, read_notebook
from omni_lab.experiments.runner import JobResult, run_jobs
from omni_lab.utils.env import RETRAIN_SINCE_ENV_VAR

NOTEBOOKS = [notebook.path for notebook in list_notebooks()]
IDS = [path.stem for path in NOTEBOOKS]
SOLUTIONS = next(path for path in NOTEBOOKS if path.stem == "90_solutions")
LESSONS = [path for path in NOTEBOOKS if path.stem != "90_solutions"]
MAX_WORDS = 120  # of a text
MIN_POINTS = 9.0  # of the smallest text of a figure, on a page
EXPECTED = {
    "00_tour": {"tour/validation_accuracy", "tour/parameters"},
    "01_data_preparation": {
        "data/blind_accuracy",
        "data/read_speedup",
        "data/questions_per_encoded_picture",
        "worlds/scenes_per_second",
        "worlds/open_seconds",
        "worlds/store_mb",
        "worlds/dense_accuracy",
        "worlds/blind_gap",
        "batching/padding_saved",
        "batching/throughput_gain",
    },
    "02_encoders": {
        "encoders/shape_probe_accuracy",
        "encoders/shape_untrained_probe_accuracy",
        "encoders/mel_recall_at_1",
        "encoders/wav2vec2_recall_at_1",
        "alignment/recall_at_1_text_to_image",
        "alignment/recall_at_1_speech_to_image",
        "alignment/recall_at_1_speech_to_text",
        "alignment/chance_at_1",
        "alignment/consistency",
        "latents/bytes_saved",
        "latents/accuracy_kept",
        "latents/fresh_bytes_saved",
        "latents/fresh_accuracy_kept",
        "latents/fresh_fixed_accuracy_kept",
    },
    "03_cross_modal_attention": {"attention/difference_to_torch", "attention/on_object", "attention/uniform_on_object"},
    "04_training": {
        "easy_vqa/test_accuracy",
        "easy_vqa/test_accuracy_yes_no",
        "easy_vqa/test_accuracy_shape",
        "easy_vqa/test_accuracy_colour",
        "easy_vqa/majority_accuracy",
        "easy_vqa/text_only_accuracy",
        "easy_vqa/shuffled_accuracy",
        "training/samples_per_second",
        "training/peak_memory_mb",
        "training/sharing_gain",
        "training/accumulation_gradient_difference",
    },
    "05_routing": {
        "routing/accuracy_kept",
        "routing/total_flops_saved",
        "routing/cross_modal_flops_saved",
        "routing/dense_accuracy",
        "routing/needs_f1",
        "routing/wall_time_saved_b64",
        "routing/wall_time_saved_b1",
        "routing/peak_memory_saved_b64",
    },
    "06_ablation_routing": {
        "routing/accuracy_kept",
        "routing/total_flops_saved",
        "routing/static/total_flops_saved",
        "routing/shuffled_minus_learned",
        "routing/hypervolume_minus_static",
        "routing/hypervolume_minus_gumbel",
        "fusion/early_gain",
        "fusion/late_accuracy",
    },
    "07_heads": {
        "heads/unused_flops",
        "heads/answers_chosen",
        "heads/answers_chosen_blind",
        "heads/answer_facts_accuracy",
        "heads/answer_detector_rule_accuracy",
        "heads/answer_text_prior_accuracy",
        "heads/caption_bleu4",
        "heads/caption_detector_template_bleu4",
        "heads/detection_template_matching_map",
        "boxes/map50",
        "pixels/psnr",
        "pixels/ssim",
        "pixels/telea/psnr",
        "pixels/over_best_fill",
        "pixels/hint_gain_written",
        "text/translation_bleu4",
        "text/translation_bleu_gain",
        "text/disambiguation",
        "text/without_picture/disambiguation",
        "text/transcription_cer_en_10db",
        "text/transcription_cer_mixed_10db",
        "speech/chunked_max_abs_diff",
        "transfer/heads/speak",
    },
    "08_ablation_quantization": {
        "export/max_abs_diff",
        "quantization/ptq_static/size_saved",
        "quantization/ptq_static/zip_size_saved",
        "quantization/ptq_static_routed/accuracy_kept",
        "quantization/ptq_dynamic/speedup_vs_eager_b1",
        "quantization/ptq_static/speedup_vs_same_runtime_fp32_b32",
        "compression/multiplies_latency_b1",
        "engine/speedup_vs_eager_b1",
        "engine/wall_time_of_flops_saved_b1",
        "engine/first_answer_p95_ratio",
    },
    "09_attention_visualization": {
        "maps/same_forward_max_diff",
        "maps/pointing_game/image/attention",
        "maps/pointing_game/audio/attention",
        "maps/deletion_auc/image/integrated_gradients",
        "maps/shuffled_rank_correlation/grad_cam",
        "explorer/latency_ms",
    },
    "10_content_routing": {
        "digits/tiny_image_cost",
        "digits/dense_accuracy",
        "digits/accuracy_kept",
        "digits/total_flops_saved",
        "digits/cross_modal_flops_saved",
        "digits/cascade/total_flops_saved",
        "digits/cost_minus_cascade",
        "digits/within_family_shuffled",
        "digits/oracle_gap_closed",
        "digits/hypervolume_minus_cascade",
        "digits/hypervolume_minus_table",
        "digits/hypervolume_minus_one_shot_expected",
        "digits/hypervolume_minus_fitted_q",
        "digits/wall_time_of_flops_saved_b64",
        "digits/wall_time_of_flops_saved_b1",
    },
    "11_your_own_data": {
        "own/accuracy",
        "own/accuracy_without_image",
        "own/majority_by_question_accuracy",
        "own/routed_flops",
        "own/saved_mb",
    },
    "99_scorecard": {"scorecard/held", "scorecard/did_not_hold", "scorecard/not_measured_yet"},
    "90_solutions": {"solutions/accuracy_without_picture"},
}
BOUNDS = {
    "accuracy": (0.0, 1.0),
    "share": (0.0, 1.0),
    "bytes_saved": (0.0, 1.0),
    "consistency": (0.0, 1.0),
    "difference_to_torch": (0.0, 1e-5),
    "difference_fused_explicit": (0.0, 1e-5),
    "gradient_difference": (0.0, 1e-5),
    "max_abs_diff": (0.0, 1e-4),
    "unused_flops": (0.0, 0.0),
    "disambiguation": (0.0, 1.0),
    "ssim": (-1.0, 1.0),
    "map50": (0.0, 1.0),
    "size_saved": (0.0, 1.0),
}


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, JobResult]:
    output = tmp_path_factory.mktemp("reports")
    jobs = plan_jobs(list_notebooks(), output=output, parameters={"profile": "smoke"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RETRAIN_SINCE_ENV_VAR, str(time.time()))  # models of an earlier test run do not count
        return {outcome.job.notebook.name: outcome for outcome in run_jobs(jobs, workers=min(2, os.cpu_count() or 1))}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_it_runs_and_records(path: Path, outcomes: dict[str, JobResult]) -> None:
    outcome = outcomes[path.stem]
    assert outcome.error is None, outcome.error
    content = json.loads((outcome.job.folder / "metrics.json").read_text())
    assert {*content["parameters"]} <= {*outcome.job.parameters}, "else its recorded command would be refused"
    metrics = {m["name"]: m for m in content["metrics"]}
    assert metrics.keys() >= EXPECTED[path.stem]
    for name, metric in metrics.items():
        for ending, (low, high) in BOUNDS.items():
            if name.endswith(ending):
                assert low <= metric["value"] <= high, name
        if metric["interval"] is not None:
            assert metric["interval"][0] <= metric["interval"][1]
    assert (outcome.job.folder / "notebook.html").stat().st_size > 10_000
    if path.stem != "90_solutions":
        assert list((outcome.job.folder / "figures").glob("*.png"))
        assert not {name: points for name, points in content["smallest_text"].items() if points < MIN_POINTS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_it_is_written_as_the_series_demands(path: Path) -> None:
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    code = [c for c in content.cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in code), "sources carry no outputs"
    assert all(len(c.source.splitlines()) <= 30 for c in code), "cells stay short enough to project"
    first = content.cells[0].source
    assert first.startswith("# ") and "**The question.**" in first and "*Measured*" in first
    assert re.search(r"\bminutes?\b", first), "says how long it takes"
    for name, parameter in read_notebook(path).parameters.items():
        assert parameter.help, f"{name} needs a comment"
    assert content.metadata.kernelspec.name == "omni-lab"
    if path.stem != "90_solutions":
        assert any("## Summary" in cell.source for cell in content.cells)


def text_cells(path: Path) -> list[str]:
    """The text of a notebook, cell by cell, without the comments that name metrics."""
    cells = nbformat.read(path, as_version=4).cells
    return [re.sub(r"<!--.*?-->", "", c.source, flags=re.S) for c in cells if c.cell_type == "markdown"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_no_text_is_a_wall(path: Path) -> None:
    long = {cell[:40]: len(cell.split()) for cell in text_cells(path) if len(cell.split()) > MAX_WORDS}
    assert not long


@pytest.mark.parametrize("path", LESSONS, ids=[path.stem for path in LESSONS])
def test_its_exercises_are_graded_checked_and_solved(path: Path) -> None:
    content = nbformat.read(path, as_version=4)
    start = next(i for i, cell in enumerate(content.cells) if cell.source.startswith("## Exercises"))
    exercises = content.cells[start + 1 :]
    texts, starters = exercises[::2], exercises[1::2]
    for number, (text, starter) in enumerate(zip(texts, starters, strict=True), start=1):
        assert re.match(rf"### Exercise {number} {'★' * number}(: |\n)", text.source)
        assert starter.cell_type == "code" and re.search(r"^answer = \.\.\.", starter.source, re.M)
        assert "check_answer(" in starter.source
    assert len(texts) == 3
    solutions = nbformat.read(SOLUTIONS, as_version=4).cells
    headings = [
        line for cell in solutions for line in cell.source.splitlines() if line.startswith(f"## {path.stem[:2]}, ")
    ]
    assert [re.match(r"## \d\d, exercise (\d): \S", line)[1] for line in headings] == [  # type: ignore[index]
        str(number + 1) for number in range(len(texts))
    ]


def test_every_solution_is_checked() -> None:
    cells = nbformat.read(SOLUTIONS, as_version=4).cells
    headings = sum(
        cell.source.count("\n## ") + cell.source.startswith("## ") for cell in cells if cell.cell_type == "markdown"
    )
    checks = sum(len(re.findall(r"^assert check_answer\(", cell.source, re.M)) for cell in cells)
    assert checks == headings - 1, "all sections but the first, which says what the notebook is"


def test_terms_are_linked_where_they_are_first_used() -> None:
    """In the order of the series: the first text that uses a term of the glossary links it, or an earlier one does."""
    glossary = (LESSONS[0].parent / "GLOSSARY.md").read_text(encoding="utf-8")
    terms = re.findall(r"^### (.+)$", glossary, re.M)
    assert terms == sorted(terms, key=str.lower)
    anchors = {term: re.sub(r"[^a-z0-9 -]", "", term.lower()).replace(" ", "-") for term in terms}
    texts = [text for path in LESSONS for text in text_cells(path)[1:]]
    links = [set(re.findall(r"GLOSSARY\.md#([^)\s]+)\)", text)) for text in texts]
    assert set().union(*links) <= {*anchors.values()}, "a link to no term"
    plain = [re.sub(r"`[^`]*`|\$[^$]*\$|^#[^\n]*$|\[[^]]*\]\([^)]*\)", " ", text, flags=re.M) for text in texts]
    late = []
    for term, anchor in anchors.items():
        written = term if any(letter.isupper() for letter in term[1:]) else rf"(?i:{term})"
        used = next((i for i, text in enumerate(plain) if re.search(rf"\b{written}s?\b", text)), len(plain))
        linked = next((i for i, found in enumerate(links) if anchor in found), None)
        late += [term] if linked is None or linked > used else []
    assert not late
