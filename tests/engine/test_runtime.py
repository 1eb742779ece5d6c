"""What is exported answers as the model does, under every route, whether its graph is built or not."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_lab.batch import ComputeLevel, Modality, OmniBatch
from omni_lab.compression.export import route_signatures
from omni_lab.compression.parts import ModelPart
from omni_lab.engine.decisions import Decision
from omni_lab.engine.library import GraphLibrary
from omni_lab.engine.route_graph import RouteSignature, route_graph
from omni_lab.engine.runtime import ExportedOmniModel
from omni_lab.engine.sessions import Session
from omni_lab.model import OmniModel
from omni_lab.routing.route import Route
from omni_lab.routing.router import Router
from tests.routing.conftest import MakeBatch

TEXT, IMAGE, AUDIO, VIDEO = Modality
FULL = ComputeLevel.FULL


def as_decision(model: OmniModel, route: Route) -> Decision:
    return Decision(route.encoder_levels.numpy(), model.space.path_mask(route).numpy(), {})


def answers(model: OmniModel, batch: OmniBatch, route: Route | None = None) -> np.ndarray:
    with torch.inference_mode():
        return model(batch, heads=["answer"], route=route).head_outputs["answer"].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("background", [False, True])
def test_in_floats_it_says_the_same(
    routed: OmniModel, router: Router, written: dict[str, Path], make_batch: MakeBatch, seed: int, background: bool
) -> None:
    exported = ExportedOmniModel.from_folder(written["fp32"], source="abc", background=background)
    batch = make_batch(9, seed=seed, share=seed % 2 == 1, missing=0.3 * (seed > 1), lengths=True)
    assert np.allclose(exported.run(batch.inputs), answers(routed, batch), atol=1e-4)
    route = routed.space.sample(batch.present, generator=torch.Generator().manual_seed(seed))
    for _ in range(2):  # by the graph of all routes first, then by their own
        found = exported.run(batch.inputs, as_decision(routed, route))
        assert np.allclose(found, answers(routed, batch, route), atol=1e-4)
        exported.pool.wait()
    assert exported.pool.num_routes >= route.num_distinct
    with torch.inference_mode():
        decided, question = routed.select_route(router, batch, budget=0.5)
    again = exported.select_route(batch.inputs, budget=0.5)
    assert (again.levels == decided.encoder_levels.numpy()).all()
    assert (again.paths == routed.space.path_mask(decided).numpy()).all()
    for m, tokens in question.items():
        rows = batch.inputs[m].entry_index[tokens.entry_index >= 0]
        expected = tokens.values[tokens.entry_index[tokens.entry_index >= 0]]
        assert np.allclose(again.tokens[m, FULL, True][0][rows], expected.numpy(), atol=1e-4)
    assert np.allclose(exported.answer(batch.inputs, budget=0.5), answers(routed, batch, decided), atol=1e-4)
    exported.pool.close()


@pytest.mark.slow
def test_single_questions_take_one_call_to_decide_and_one_to_answer(
    routed: OmniModel, router: Router, written: dict[str, Path], make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = ExportedOmniModel.from_folder(written["fp32"], background=False, whole=True)
    batch = make_batch(12, missing=0.3, lengths=True)
    calls: list[int] = []
    run = Session.__call__
    monkeypatch.setattr(Session, "__call__", lambda self, feed: (calls.append(1), run(self, feed))[1])
    for i in range(len(batch)):
        one = batch.select(torch.tensor([i]))
        calls.clear()
        found = exported.answer(one.inputs, budget=0.4)
        assert len(calls) == 2
        with torch.inference_mode():
            route = routed.select_route(router, one, budget=0.4)[0]
        assert np.allclose(found, answers(routed, one, route), atol=1e-4)


@pytest.mark.slow
def test_a_route_runs_nothing_that_it_skips(routed: OmniModel, written: dict[str, Path], make_batch: MakeBatch) -> None:
    library = GraphLibrary(written["fp32"])
    some = RouteSignature((("text", 3), ("image", 2)), ((1, "text", "image"),))
    graph = route_graph(library, some, context=True)
    used = {library.parts[n].function for n in ("encoder.text", "encoder.image.early_exit", "block.0.text")}
    assert all(name.encode() in graph.model for name in used)
    for skipped in ("encoder.image", "encoder.audio", "encoder.video"):
        assert library.parts[skipped].function.encode() not in graph.model
    assert {n.split(".")[0] for n in graph.outputs} == {"answer", "text", "image"}
    everything = RouteSignature.from_json(
        [[["text", 3], ["image", 3], ["audio", 3], ["video", 3]], library.model["paths"]]
    )
    assert len(graph.model) < 0.6 * len(route_graph(library, everything).model)
    assert RouteSignature.from_json(some.to_json()) == some
    batch = make_batch(3)
    assert set(route_signatures(routed.space.dense(batch.present), routed.space)) == {everything}


@pytest.mark.slow
def test_the_fused_context_is_that_of_the_model(
    routed: OmniModel, written: dict[str, Path], make_batch: MakeBatch
) -> None:
    exported, batch = ExportedOmniModel.from_folder(written["fp32"]), make_batch(4, lengths=True)
    signature = route_signatures(routed.space.dense(batch.present), routed.space)[0]
    library = exported.library
    session = exported.pool.keep("context", lambda: route_graph(library, signature, context=True))
    feed = {}
    for m, media in exported._arrays(batch.inputs).items():
        feed |= {f"{m}.values": media.values, f"{m}.mask": media.mask, f"{m}.entry": media.entry_index}
    found = session(feed)
    with torch.inference_mode():
        fused = routed(batch, heads=["answer"]).fusion.tokens
    for m, tokens in fused.items():
        real = tokens.mask.numpy()
        assert (found[f"{m}.token_mask"] == real).all()
        assert np.allclose(found[f"{m}.tokens"][real], tokens.values.numpy()[real], atol=1e-4)


@pytest.mark.slow
def test_every_part_alone_is_as_it_was(parts: list[ModelPart], written: dict[str, Path]) -> None:
    exported = ExportedOmniModel.from_folder(written["fp32"])
    for part in parts:
        with torch.inference_mode():
            expected = part.module(*part.example)
        for found, output in zip(exported.run_part(part.name, *part.example), expected, strict=True):
            assert np.allclose(found, output.numpy(), atol=1e-4), part.name


@pytest.mark.slow
def test_few_bits_change_little(routed: OmniModel, written: dict[str, Path], make_batch: MakeBatch) -> None:
    batch = make_batch(16, lengths=True)
    expected = answers(routed, batch)
    off = {
        name: float(np.abs(ExportedOmniModel.from_folder(folder).run(batch.inputs) - expected).mean())
        for name, folder in written.items()
    }
    spread = float(expected.std())
    assert off["fp32"] < 1e-4 and off["fp16"] < 0.01 * spread
    assert off["fp16"] < off["int8"] < 0.25 * spread and off["int8"] < off["int4"]


@pytest.mark.slow
def test_the_least_recently_used_graph_is_dropped(written: dict[str, Path], make_batch: MakeBatch) -> None:
    exported = ExportedOmniModel.from_folder(written["fp16"], background=False, capacity=2, packed=1)
    paths = [[(0, "text", "image")], [(1, "text", "image")], []]
    routes = [RouteSignature((("text", 3), ("image", 3)), tuple(p)) for p in paths]
    for signature in routes:
        exported.prepare(signature)
    keys = [(signature, ("text", "image")) for signature in routes]
    assert exported.pool.num_routes == 2
    assert exported.pool.ready(keys[0]) is None and exported.pool.ready(keys[2]) is not None
    exported.prepare(routes[0])
    assert exported.pool.ready(keys[1]) is None


@pytest.mark.slow
def test_threads_that_want_the_same_graph_get_the_same_answers(
    routed: OmniModel, written: dict[str, Path], make_batch: MakeBatch
) -> None:
    exported, batch = ExportedOmniModel.from_folder(written["fp32"]), make_batch(6, lengths=True)
    decision = as_decision(routed, routed.space.sample(batch.present, generator=torch.Generator().manual_seed(3)))
    expected = exported.run(batch.inputs, decision)
    with ThreadPoolExecutor(4) as threads:
        found = [f.result() for f in [threads.submit(exported.run, batch.inputs, decision) for _ in range(12)]]
    assert all(np.allclose(each, expected, atol=1e-4) for each in found)
    exported.pool.wait()


@pytest.mark.slow
def test_what_cannot_be_answered_is_refused(written: dict[str, Path], make_batch: MakeBatch) -> None:
    exported = ExportedOmniModel.from_folder(written["fp32"])
    batch = make_batch(2)
    with pytest.raises(ValueError, match="no penalty meets a budget of 0.01 of the dense cost: the least is 0.100"):
        exported.answer(batch.inputs, budget=0.01)
    with pytest.raises(ValueError, match="pass a budget"):
        exported.answer(batch.inputs)
    with pytest.raises(ValueError, match="got neither"):
        exported.ask(budget=0.5)
    with pytest.raises(ValueError, match=r"image must have 3 axes: got an array of shape \(64, 64\)"):
        exported.ask(image=np.zeros((64, 64), np.uint8), budget=0.5)
    with pytest.raises(ValueError, match="image must be uint8: got float64"):
        exported.ask(image=np.zeros((3, 64, 64)), budget=0.5)
    silent = dict(batch.inputs)
    silent[AUDIO] = replace(silent[AUDIO], mask=torch.zeros_like(silent[AUDIO].mask))
    with pytest.raises(ValueError, match="audio 0 is empty"):
        exported.run(silent)
    with pytest.raises(ValueError, match="a medium must be one of .*: got 'smell'"):
        exported.ask(smell=np.zeros(3), budget=0.5)
    answer = exported.ask(audio=np.random.default_rng(0).normal(size=5000), budget=0.5)
    assert answer.text.startswith("answer ") and 0 < answer.confidence <= 1 and answer.route.levels[0][0] == "audio"


BARE = """
import sys
allowed = {"numpy", "onnxruntime", "tokenizers", "omni_lab", "google", "flatbuffers"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in allowed and not top.startswith("_"):
            raise ImportError(f"not in a bare environment: {name}")
        if top == "omni_lab" and not name.startswith(("omni_lab.engine", "omni_lab.utils")) and name != "omni_lab":
            raise ImportError(f"not in a bare environment: {name}")
sys.meta_path.insert(0, Refuse())
import numpy as np
from omni_lab.engine.runtime import ExportedOmniModel
model = ExportedOmniModel.from_folder(sys.argv[1])
answer = model.ask(image=np.full((3, 64, 64), 7, np.uint8), audio=np.ones(4000), budget=0.5)
print(answer.text, "torch" in sys.modules)
"""


@pytest.mark.slow
def test_it_runs_without_torch(written: dict[str, Path]) -> None:
    command = [sys.executable, "-c", BARE, str(written["int8"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("answer ") and done.stdout.strip().endswith("False")
