"""Sessions of ONNX Runtime over the weights of one library, which all of them share."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort

from omni_lab.engine.decision_graph import decision_graph, first_step_graph, step_graph
from omni_lab.engine.library import ArtifactError, GraphLibrary
from omni_lab.engine.route_graph import (
    Graph,
    RouteSignature,
    encoder_graph,
    gated_graph,
    part_graph,
    route_graph,
)

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)
CPU = "CPUExecutionProvider"  # the only provider known to multiply int8 as int8
KERNELS = ("auto", "vnni", "safe")


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of this processor, as Linux names them; none where that is not known."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def has_vnni(flags: frozenset[str]) -> bool:
    """Whether the processor sums int8 products without overflow."""
    return bool(flags & {"avx512_vnni", "avx_vnni"})


class Session:
    """A graph that is ready to run. Called with arrays by name; returns the outputs by name."""

    def __init__(self, graph: Graph, options: ort.SessionOptions, provider: str) -> None:
        self._session = ort.InferenceSession(graph.model, options, [provider])
        self.inputs = [spec.name for spec in self._session.get_inputs()]
        self.outputs, self.weights = graph.outputs, frozenset(graph.weights.values())

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._session.run(None, {name: feed[name] for name in self.inputs})
        return dict(zip(self.outputs, found, strict=True))


class SessionPool:
    """Builds sessions, ahead or in the background, and drops the least recently used of those that are not kept.

    threads: per session; the graphs are small, and one thread was fastest where it was measured.
    workers: sessions that run at a time, in threads of their own; None: as many as there are cores.
    capacity: sessions of routes that are held at a time.
    packed: so many of them are built with packed weights: a tenth faster, but with a copy of their own; the others use
        the one copy that all share. Encoders are always packed.
    provider: execution provider of ONNX Runtime.
    kernels: of int8 products, "vnni", "safe" (in 16 bits, for processors where sums of 8-bit products overflow), or
        "auto": by the processor.
    Raises ValueError for kernels that this processor does not have, for an unknown provider, and for one without int8
    products.
    """

    def __init__(
        self,
        library: GraphLibrary,
        *,
        threads: int = 1,
        workers: int | None = None,
        capacity: int = 64,
        packed: int = 4,
        provider: str = CPU,
        kernels: str = "auto",
    ) -> None:
        if provider not in ort.get_available_providers():
            raise ValueError(f"provider must be one of {ort.get_available_providers()}: got {provider!r}")
        int8_parts = [name for name, part in library.parts.items() if part.precision == "int8"]
        if int8_parts and provider != CPU:
            raise ValueError(f"{provider} has no int8 products for {int8_parts[0]!r}: use {CPU}")
        self.kernels = choose_kernels(kernels, processor_flags())
        if int8_parts:
            log.info("int8 products: %s kernels", self.kernels)
        self.library = library
        self.threads, self.workers = threads, workers or os.cpu_count() or 1
        self.capacity, self.packed, self.provider = capacity, packed, provider
        self._kept: dict[Hashable, Session] = {}
        self._recent: OrderedDict[Hashable, Session] = OrderedDict()
        self._packed_keys: set[Hashable] = set()
        self._building: dict[Hashable, Future[None]] = {}
        self._weights: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="graphs")
        self._runners = ThreadPoolExecutor(self.workers, thread_name_prefix="answers")

    def keep(self, key: Hashable, build: Callable[[], Graph]) -> Session:
        """The session of that key, which is never dropped; built now if need be."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._session(build(), packed=True)
            return self._kept[key]

    def ready(self, key: Hashable) -> Session | None:
        """The session of a route, if it is built."""
        with self._lock:
            if key in self._recent:
                self._recent.move_to_end(key)
            return self._recent.get(key)

    def build(self, key: Hashable, build: Callable[[], Graph]) -> Session:
        """The session of a route; built now if need be."""
        session = self.ready(key)
        if session is not None:
            return session
        packed = len(self._packed_keys) < self.packed
        session = self._session(build(), packed=packed)
        with self._lock:
            if packed:
                self._packed_keys.add(key)
            self._recent[key] = session
            while len(self._recent) > self.capacity:
                dropped, _ = self._recent.popitem(last=False)
                self._packed_keys.discard(dropped)
        return session

    def build_soon(self, key: Hashable, build: Callable[[], Graph]) -> None:
        """Builds the session of a route in the background, once."""
        with self._lock:
            if key not in self._building and key not in self._recent:
                self._building[key] = self._builder.submit(self._build_and_forget, key, build)

    def wait(self) -> None:
        """Until all that was asked for is built. Raises what went wrong in the background."""
        for future in [*self._building.values()]:
            future.result()

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
        """The results of independent tasks, which run at the same time."""
        if len(tasks) < 2 or self.workers == 1:
            return [function(task) for task in tasks]
        return [*self._runners.map(function, tasks)]

    def release(self, unused: Callable[[Any], bool]) -> int:
        """Drops the sessions whose keys are unused, and the weights that no other session has; returns how many. What
        is asked for again is built again; what runs now runs to its end."""
        with self._lock:
            dropped = [key for key in (*self._kept, *self._recent) if unused(key)]
            for key in dropped:
                self._kept.pop(key, None)
                self._recent.pop(key, None)
                self._packed_keys.discard(key)
            held = {name for s in (*self._kept.values(), *self._recent.values()) for name in s.weights}
            self._weights = {name: weight for name, weight in self._weights.items() if name in held}
        return len(dropped)

    def close(self) -> None:
        """Builds and runs nothing more."""
        self._builder.shutdown(cancel_futures=True)
        self._runners.shutdown(cancel_futures=True)

    @property
    def num_routes(self) -> int:
        """Sessions of routes that are held."""
        return len(self._recent)

    def _build_and_forget(self, key: Hashable, build: Callable[[], Graph]) -> None:
        try:
            self.build(key, build)
        except Exception:  # the route is answered without it; whoever waits is told
            log.exception("the graph of a route could not be built")
            raise
        finally:
            with self._lock:
                self._building.pop(key, None)

    def _session(self, graph: Graph, *, packed: bool) -> Session:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # errors
        # threads that wait for one graph would take the processor from the one that runs
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # without this, sums of int8 products overflow on processors that have AVX2 but no VNNI
        options.add_session_config_entry("session.x64quantprecision", str(int(self.kernels == "safe")))
        options.add_session_config_entry("session.disable_prepacking", str(int(not packed)))
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.library.folder)
        )
        options.enable_cpu_mem_arena = False  # each would keep its own scratch memory
        for name, weight in graph.weights.items():  # in place of what the graph says: one copy for all sessions
            options.add_initializer(name, self._shared(weight))
        try:
            return Session(graph, options, self.provider)
        except Exception as error:  # ONNX Runtime has a dozen of its own, all derived from Exception alone
            raise ArtifactError(f"{self.library.folder}: ONNX Runtime cannot load it ({error})") from error

    def _shared(self, name: str) -> Any:
        with self._lock:
            if name not in self._weights:
                self._weights[name] = ort.OrtValue.ortvalue_from_numpy(self.library.weight(name))
            return self._weights[name]


class ModelSessions(SessionPool):
    """The sessions that a model needs: encoders, routers and the graphs of all routes are kept, routes come and go.

    Modalities and parts by name; given: see `route_graph`.
    """

    def build_ahead(self, *, routed: bool) -> None:
        """What is kept: under a sequential router, what it runs; else every encoder."""
        actions = self.library.model["actions"]
        for question in self.library.model["question_order"]:
            self.gated(question)
            if routed and not actions:
                self.decide(question)
        for modality, level in actions:
            self.step(modality, level)
        for modality, levels in self.library.model["encoders"].items() if not actions else ():
            for level in levels:
                self.encoder(modality, int(level))

    def release_modality(self, modality: str) -> int:
        """Drops its encoders, and the routes that run them; see `release`."""

        def unused(key: Any) -> bool:
            if isinstance(key[0], RouteSignature):
                return modality in dict(key[0].levels)
            return key[0] in ("encoder", "step") and key[1] == modality

        return self.release(unused)

    def gated(self, question: str) -> Session:
        return self.keep(("gated", question), partial(gated_graph, self.library, question))

    def decide(self, question: str) -> Session:
        return self.keep(("decide", question), partial(decision_graph, self.library, question))

    def first_step(self, question: str, media: tuple[str, ...]) -> Session:
        return self.keep(("first step", question, media), partial(first_step_graph, self.library, question, media))

    def step(self, modality: str, level: int) -> Session:
        return self.keep(("step", modality, level), partial(step_graph, self.library, modality, level))

    def encoder(self, modality: str, level: int) -> Session:
        return self.keep(("encoder", modality, level), partial(encoder_graph, self.library, modality, level))

    def part(self, name: str) -> Session:
        return self.keep(("part", name), partial(part_graph, self.library, name))

    def route(self, signature: RouteSignature, given: tuple[str, ...]) -> Session:
        return self.build((signature, given), partial(route_graph, self.library, signature, given))

    def route_soon(self, signature: RouteSignature, given: tuple[str, ...]) -> None:
        self.build_soon((signature, given), partial(route_graph, self.library, signature, given))


def choose_kernels(kernels: str, flags: frozenset[str]) -> str:
    """ "vnni" or "safe". Raises ValueError as `SessionPool` says. flags: see `processor_flags`."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {KERNELS}: got {kernels!r}")
    if kernels == "vnni" and not has_vnni(flags):
        raise ValueError("kernels='vnni': this processor has neither avx512_vnni nor avx_vnni; use 'auto' or 'safe'")
    return kernels if kernels != "auto" else "vnni" if has_vnni(flags) else "safe"
