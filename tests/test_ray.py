"""Ray: the numbers of one process on two nodes, workers that die, drivers that are killed, data that is not seen."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_batch import ROOT, Sometimes, check_deaths, check_killed_batch

from benchmarks import engine, plan
from benchmarks.__main__ import main
from benchmarks.layouts import open_folder
from benchmarks.remote import local_copy
from benchmarks.results import read_csv
from sam2_keyframe.app import workers
from sam2_keyframe.app.workers import Engine

os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # before Ray is imported: a busy machine needs longer

SMALL = ["--image-size", "64", "--clips", "1", "--frames", "8", "--size", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine, of a core each."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path  # of the nodes, and so of their workers
    system = {"worker_niceness": 0, "agent_register_timeout_ms": 300_000}  # they start, and work, beside other work
    found = Cluster(
        initialize_head=True, head_node_args={**node(), "include_dashboard": False, "_system_config": system}
    )
    found.add_node(**node())
    ray.init(found.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def node() -> dict[str, Any]:
    """Return a node's arguments; with ports given it does not wait for its agents to choose them."""
    ports = {}
    for name in ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port"):
        with socket.socket() as free:
            free.bind(("", 0))
            ports[name] = free.getsockname()[1]
    return {"num_cpus": 1, "object_store_memory": 100 * 2**20, **ports}


def numbers(out: Path) -> dict[str, Any]:
    """Return all rows of all runs, but times."""
    found = {}
    for path in sorted(out.glob("*/*.csv")):
        rows = read_csv(path)
        found[f"{path.parent.name}/{path.name}"] = [
            {key: value for key, value in row.items() if "millisecond" not in key and "time" not in key} for row in rows
        ]
    for path in sorted(out.glob("*/videos/*/masks.npz")):
        with np.load(path) as masks:
            found["/".join(path.parts[-4:])] = {name: masks[name].tobytes() for name in masks.files}
    return found


class Where:
    """Tells on which node a worker is, once there are two."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> Any:
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        (self.folder / f"worker-{os.getpid()}").touch()

        def work(task: int) -> str:
            while len(list(self.folder.glob("worker-*"))) < 2:
                time.sleep(0.05)
            return node

        return work


@pytest.mark.slow
def test_two_nodes_have_the_numbers_of_one_process(cluster: Any, tmp_path: Path) -> None:
    found = dict(Engine("ray", workers=2).run(range(6), Where(tmp_path)))
    assert len(set(found.values())) == 2
    arguments = ["sweep", *SMALL, "--challenges", "occlusion,scale,fast", "--grid", "keyframes=1,2"]
    assert main([*arguments, "--out", str(tmp_path / "serial")]) == 0
    assert main([*arguments, "--engine", "ray", "--workers", "2", "--out", str(tmp_path / "ray")]) == 0
    serial = numbers(tmp_path / "serial")
    assert len(serial) == 6 * (2 + 3)
    assert numbers(tmp_path / "ray") == serial
    files = [sorted(p.relative_to(tmp_path / out) for p in (tmp_path / out).rglob("*")) for out in ("serial", "ray")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_worker_of_ray_that_dies_is_made_anew(cluster: Any, tmp_path: Path) -> None:
    check_deaths(Engine("ray", workers=2), tmp_path)


@pytest.mark.slow
def test_a_killed_sweep_on_ray_goes_on(cluster: Any, tmp_path: Path) -> None:
    """Two methods on six clips, killed once a video is there."""
    arguments = ["sweep", *SMALL, "--frames", "12", "--challenges", "static,scale,fast,occlusion,look_alike"]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    killed = tmp_path / "killed"
    on_ray = [*arguments, "--engine", "ray", "--workers", "2", "--out", str(killed)]
    command = [sys.executable, "-m", "benchmarks", *on_ray, "--address", cluster.address]
    environment = {**os.environ, "PYTHONPATH": os.environ["PYTHONPATH"]}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(killed.glob("*/videos/*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("*/videos/*/frames.csv")}
    assert 1 <= len(kept) < 4 * 5
    assert main(on_ray) == 0
    assert numbers(killed) == numbers(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(killed.glob("*/.tmp-*"))


@pytest.mark.slow
def test_a_killed_batch_on_ray_goes_on(cluster: Any, tmp_path: Path) -> None:
    check_killed_batch(tmp_path, "--engine", "ray", "--workers", "2", "--address", cluster.address)


@pytest.mark.slow
def test_what_workers_do_not_see_or_cannot_open(cluster: Any, tmp_path: Path) -> None:
    data = write_davis(tmp_path / "DAVIS")
    parser = argparse.ArgumentParser()
    plan.add_run_arguments(parser)
    options = parser.parse_args(
        ["--data", str(data), "--image-size", "64", "--device", "cpu", "--out", str(tmp_path / "out")]
    )
    made = plan.make_plan(options, [("stock", []), ("first", [])], share=True)
    on_ray = functools.partial(engine.on_ray, workers=Engine("ray"))
    moved = Path(shutil.move(data, tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=r"does not see the data folder .*DAVIS: give a folder"):
        engine.carry_out(made, engine=on_ray)
    shutil.move(moved, data)
    (data / "JPEGImages" / "480p" / "broken" / "00001.jpg").write_bytes(b"no picture")
    assert engine.carry_out(made, engine=on_ray) == 1  # one video fails, and is told of; the other is whole
    for run, _ in made.runs:
        assert list(run.failures()) == ["broken"]
        assert "cannot identify image file" in run.failures()["broken"]
        assert run.done("whole")


def write_davis(root: Path) -> Path:
    from PIL import Image

    from sam2_keyframe.synthetic import make_clip

    for name, seed in (("whole", 1), ("broken", 2)):
        clip = make_clip("occlusion", seed=seed, frames=5, size=64, objects=1)
        for kind, pictures, ending in (("JPEGImages", clip.frames, "jpg"), ("Annotations", clip.masks, "png")):
            folder = root / kind / "480p" / name
            folder.mkdir(parents=True)
            for t, picture in enumerate(pictures):
                Image.fromarray(picture.astype(np.uint8)).save(folder / f"{t:05d}.{ending}")
    return root


def test_data_at_an_address_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr("benchmarks.remote.CACHE", tmp_path / "cache")
    data, files = write_davis(tmp_path / "DAVIS"), fsspec.filesystem("memory")
    files.put(str(data), "/bucket/DAVIS", recursive=True)
    try:
        place = local_copy("memory://bucket/DAVIS")
        assert place.name == "DAVIS"
        here, there = (sorted(p.relative_to(root) for p in root.rglob("*")) for root in (place, data))
        assert here == there
        assert open_folder(place, None, ()).names == open_folder(data, None, ()).names == ("broken", "whole")
        times = [path.stat().st_mtime_ns for path in sorted(place.rglob("*"))]
        assert local_copy("memory://bucket/DAVIS") == place
        assert [path.stat().st_mtime_ns for path in sorted(place.rglob("*"))] == times
        files.pipe("/bucket/DAVIS/more.txt", b"changed")
        assert local_copy("memory://bucket/DAVIS") != place
    finally:
        files.rm("/bucket", recursive=True)
    with pytest.raises(ValueError, match="nothing is there"):
        local_copy("memory://bucket/nowhere")
    with pytest.raises(ValueError, match="cannot be read"):
        local_copy("nothing-of-the-kind://bucket/DAVIS")


def test_without_ray_local_processes_are_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(Engine().run(["a"], Sometimes(tmp_path))) == [("a", "a 1")]
    arguments = ["run", *SMALL, "--challenges", "static", "--method", "stock", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--engine", "ray"]) == 2
    assert "Ray is not installed: pip install 'sam2-keyframe[ray]'" in capsys.readouterr().err
    assert main(arguments) == 0


def test_no_cluster_at_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def refuse(*given: Any, **options: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConnectionError, match="--address auto: there is no Ray cluster"):
        workers.connect(Engine("ray", address="auto"))
