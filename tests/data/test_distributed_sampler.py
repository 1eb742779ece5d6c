"""Two real processes share an epoch. Run as a script, this file is one of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).parents[2]
SCENES = [scene for scene in range(23) for _ in range(3)]
EPOCHS = 2


def replica(rank: int, store: str) -> None:
    """Iterates its share, gathers everybody's, and prints [epoch][rank][step][index] as JSON."""
    spec = importlib.util.spec_from_file_location("sampler", ROOT / "omni_lab/data/sampler.py")  # no Lightning
    assert spec is not None and spec.loader is not None
    sampling = sys.modules["sampler"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sampling)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    sampler = sampling.OmniBatchSampler(
        SCENES,
        max_batch_cost=4,
        questions_per_group=2,
        shuffle=True,
        rank=dist.get_rank(),
        replicas=dist.get_world_size(),
    )
    epochs = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        shares = [None] * dist.get_world_size()
        dist.all_gather_object(shares, list(sampler))
        epochs.append(shares)
    dist.destroy_process_group()
    print(json.dumps(epochs))


def test_two_processes_share_every_epoch(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    epochs, other = (json.loads(text) for text in printed)
    assert epochs == other and len(epochs) == EPOCHS
    for one, two in epochs:
        assert len(one) == len(two) == 3, "23 scenes in batches of four, for two"
        mine, theirs = ({SCENES[i] for batch in share for i in batch} for share in (one, two))
        assert not mine & theirs
        assert mine | theirs == set(range(23))
    assert epochs[0] != epochs[1]


if __name__ == "__main__":
    replica(int(sys.argv[1]), sys.argv[2])
