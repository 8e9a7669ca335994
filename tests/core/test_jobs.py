"""Requests that are kept, found again, and sent anew where a server has lost them; a real server's part is in tests/remote."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens.core.jobs import Kept, Request, batches_in_request, collect, key_of, submit
from unlock_lens.errors import JobLost
from unlock_lens.hosts import Batch, Edits, Generation, Pass, Pending, Server, backend_of
from unlock_lens.method.reduce import Reduction


@dataclass
class Job:
    """Answers when it is asked for the `rounds`-th time."""

    id: str
    found: dict[str, Tensor]
    rounds: int = 1
    fails: Exception | None = None

    def result(self, wait: bool = True) -> Any:
        self.rounds = 1 if wait else self.rounds
        self.rounds -= 1
        if self.rounds > 0:
            return None
        if self.fails:
            raise self.fails
        return self.found


def fault(found: Any) -> str | None:
    return None if set(found) == {"mean"} and float(found["mean"]) > 0 else "no mean above 0"


@dataclass
class Scripted(Server):
    """A server that does as it is told; it counts what it is sent."""

    remote: ul.Remote | Literal["local"] = field(default_factory=ul.Remote)
    jobs: dict[str, Job] = field(default_factory=dict)
    sent: int = 0

    def request(self, key: str, rounds: int = 1, fails: Exception | None = None) -> Request:
        def send() -> Job:
            self.sent += 1
            job = Job(f"job-{self.sent}", {"mean": torch.tensor([float(self.sent)])}, rounds, fails)
            self.jobs[job.id] = job
            return job

        return Request(self, send, key, fault)

    @property
    def told(self) -> dict[str, Any]:
        return {}

    @property
    def vocabulary(self) -> int:
        return 22

    def reattach(self, job_id: str, sent: float) -> Pending:
        return self.jobs.get(job_id) or Job(job_id, {}, fails=JobLost("the server knows no such request", job_id))

    def reduce(self, passes: Sequence[Pass], layers: Sequence[int], reduction: Reduction) -> Pending:
        raise AssertionError

    def generate(self, batches: Sequence[Batch], edits: Edits, how: Generation) -> Pending:
        raise AssertionError

    def log_probs(self, batch: Batch, edits: Edits, prompt_length: int) -> Tensor:
        raise AssertionError

    def unembed(self, residual: Tensor) -> Tensor:
        raise AssertionError


def test_finished_requests_are_not_asked_again(tmp_path: Path) -> None:
    server = Scripted()
    first = collect([server.request("a"), server.request("b")], tmp_path)
    again = collect([server.request("a"), server.request("b")], tmp_path)
    assert server.sent == 2
    assert [torch.equal(x["mean"], y["mean"]) for x, y in zip(first, again, strict=True)] == [True, True]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_without_a_folder_nothing_is_kept() -> None:
    server = Scripted()
    for _ in range(2):
        collect([server.request("a")], None)
    assert server.sent == 2


def test_what_is_on_its_way_is_found_again(tmp_path: Path) -> None:
    server = Scripted()
    requests = [server.request("a", rounds=2), server.request("b", rounds=9), server.request("c")]
    with pytest.raises(ul.JobsRunning, match="job-1, job-2.*resume") as caught:
        collect(requests, tmp_path, wait=False)
    assert caught.value.ids == ("job-1", "job-2")
    with pytest.raises(ul.JobsRunning) as caught:  # a has finished since
        collect(requests, tmp_path, wait=False)
    assert caught.value.ids == ("job-2",)
    assert len(collect(requests, tmp_path)) == 3
    assert server.sent == 3
    assert not list(tmp_path.glob("*.job.json"))


def test_a_request_that_the_server_has_lost_is_sent_again(tmp_path: Path) -> None:
    server = Scripted()
    Kept.at(tmp_path).remember("a", "job-of-before")
    assert float(collect([server.request("a")], tmp_path)[0]["mean"]) == 1
    assert server.sent == 1


def test_a_damaged_ticket_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.job.json").write_text('{"id": "jo')
    assert float(collect([Scripted().request("a")], tmp_path)[0]["mean"]) == 1


def test_a_failed_request_keeps_those_before_it_and_is_sent_again(tmp_path: Path) -> None:
    server = Scripted()
    requests = [server.request("a"), server.request("b", fails=ul.RemoteFailure("it failed there", "job-2", "Traceback"))]
    with pytest.raises(ul.RemoteFailure, match="failed"):
        collect(requests, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors"]
    collect([server.request("a"), server.request("b")], tmp_path)
    assert server.sent == 3


def test_a_server_that_went_away_leaves_the_ticket(tmp_path: Path) -> None:
    server = Scripted()
    with pytest.raises(ul.ServerUnreachable):
        collect([server.request("a", fails=ul.ServerUnreachable("gone", "job-1"))], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.job.json"]
    server.jobs["job-1"].fails = None
    collect([server.request("a")], tmp_path)
    assert server.sent == 1


def test_a_refused_question_leaves_a_request_that_may_be_running(tmp_path: Path) -> None:
    """Only what the server itself said of the request ends it; a key that expired meanwhile does not."""
    server = Scripted()
    with pytest.raises(ul.RequestRefused):
        collect([server.request("a", fails=ul.RequestRefused("your key was refused", "job-1"))], tmp_path)
    server.jobs["job-1"].fails = None
    collect([server.request("a")], tmp_path)
    assert server.sent == 1


def test_not_waiting_needs_a_folder() -> None:
    with pytest.raises(ul.InvalidInput, match="resume"):
        collect([Scripted().request("a")], None, wait=False)


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server = Scripted()
    for folder in (tmp_path / "file", tmp_path / "no" / "folder"):
        with pytest.raises(ul.InvalidInput, match="folder"):
            collect([server.request("a")], folder)
    assert server.sent == 0


def test_a_kept_result_that_is_damaged_is_asked_for_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"half of it")
    for _ in range(2):
        assert float(collect([Scripted().request("a")], tmp_path)[0]["mean"]) == 1
    assert caplog.text.count("a.safetensors") == 1


def test_a_result_that_does_not_fit_is_neither_kept_nor_used_and_is_asked_again(tmp_path: Path) -> None:
    server = Scripted()
    for folder in (None, tmp_path):
        server.sent = -1  # the first result is 0
        with pytest.raises(ul.RemoteError, match="no mean above 0"):
            collect([server.request("a")], folder)
    assert not list(tmp_path.iterdir())
    assert float(collect([server.request("a")], tmp_path)[0]["mean"]) == 1


def test_a_kept_result_that_does_not_fit_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Kept(tmp_path).keep("a", {"mean": torch.tensor(-1.0)})
    for _ in range(2):
        assert float(collect([Scripted().request("a")], tmp_path)[0]["mean"]) == 1
    assert caplog.text.count("no mean above 0") == 1


@pytest.mark.parametrize(
    "ticket", ["[]", "7", '{"id": 7, "sent": 1}', '{"id": "../x", "sent": 1}', '{"id": "a", "sent": NaN}', '{"id": "a"}']
)
def test_a_ticket_that_is_not_one_is_none(tmp_path: Path, ticket: str) -> None:
    (tmp_path / "a.job.json").write_text(ticket)
    assert Kept(tmp_path).ticket("a") is None


def test_submitting_gives_the_names_of_what_is_running(tmp_path: Path) -> None:
    server = Scripted()

    def call(resume: Path, wait: bool = True) -> list[dict[str, Tensor]]:
        return collect([server.request("a", rounds=9)], resume, wait)

    assert submit(call, resume=tmp_path) == ("job-1",)
    assert len(call(tmp_path)) == 1
    assert submit(call, resume=tmp_path) == ()
    assert server.sent == 1


def test_a_key_hashes_all_that_is_asked() -> None:
    ids = torch.arange(6)
    keys = {
        key_of({"layers": [0]}, [ids]),
        key_of({"layers": [1]}, [ids]),
        key_of({"layers": [0]}, [ids + 1]),
        key_of({"layers": [0]}, [ids.int()]),
        key_of({"layers": [0]}, [ids.reshape(2, 3)]),
    }
    assert len(keys) == 5
    assert key_of({"layers": [0]}, [ids.clone()]) in keys


def test_what_is_kept_of_a_generation_belongs_to_all_that_was_asked(
    small_nnsight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another vector is another request, as is another strength; otherwise another direction's completions would come back."""
    server = Scripted()

    def generate(batches: Sequence[Batch], edits: Edits, how: Generation) -> Pending:
        server.sent += 1
        return Job(f"job-{server.sent}", {"0": torch.full((len(batches[0].ids), 1), server.sent)})

    monkeypatch.setattr(server, "generate", generate)
    monkeypatch.setattr(type(backend_of(small_nnsight)), "on", lambda backend, where: server)
    direction, other = (ul.CapabilityDirection(torch.full((2, 64), value), (0, 2)) for value in (1.0, 2.0))
    plain: dict[str, Any] = {"prompts": ["Q 1 A :"], "steer": ul.SteeringHook(direction, 0.5), "max_new_tokens": 3}
    changes: list[dict[str, Any]] = [
        {},
        {"prompts": ["Q 2 A :"]},
        {"max_new_tokens": 4},
        {"use_cache": False},
        {"steer": None},
        {"steer": [plain["steer"], plain["steer"]]},
        {"steer": ul.SteeringHook(other, 0.5)},
        {"steer": ul.SteeringHook(direction, 0.4)},
        {"steer": ul.SteeringHook(direction, 0.5, "add")},
        {"steer": ul.SteeringHook(direction, 0.5, positions="all")},
        {"steer": ul.SteeringHook(direction, 0.5, layers=[2])},
    ]
    found = [[ul.generate(small_nnsight, **plain | change, remote=True, resume=tmp_path) for change in changes] for _ in "ab"]
    assert server.sent == len(changes) == len({text for (text,) in found[0]})
    assert found[0] == found[1]


def test_how_many_batches_go_into_a_request() -> None:
    assert batches_in_request(ul.Remote(), resumes=False) is None
    assert batches_in_request(ul.Remote(), resumes=True) == 8
    assert batches_in_request(ul.Remote(batches=3), resumes=True) == 3
    assert batches_in_request("local", resumes=False) is None


def test_what_is_not_a_number_of_batches_is_refused() -> None:
    with unchecked(), pytest.raises(ul.InvalidInput, match="batches=0"):
        ul.Remote(batches=0)
    with unchecked(), pytest.raises(ul.InvalidInput, match="batches=2.5"):
        ul.Remote(batches=2.5)  # pyright: ignore[reportArgumentType]


OTHER_MODELS = """
import sys
from pathlib import Path

import torch
import unlock_lens as ul
from unlock_lens import zoo

task, folder = zoo.running_sum(n=4), Path(sys.argv[1])


def vectors(model, resume=None):
    pair = [ul.Variant(model, prompts, remote="local") for prompts in (task.direct, task.think)]
    return ul.CapabilityDirection.extract(*pair, resume=resume).vectors


found, model = [], zoo.load("small-base", "nnsight")
for change in ("none", "weight", "dtype"):
    if change == "weight":
        with torch.no_grad():
            model._module.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(1.5)
    elif change == "dtype":
        model = zoo.load("small-base", "nnsight", "bfloat16")
    found.append(vectors(model, folder))
    kept = len(list(folder.glob("*.safetensors")))
    print(torch.equal(found[-1], vectors(model)), torch.equal(found[-1], vectors(model, folder)))
    print(len(list(folder.glob("*.safetensors"))) == kept)
print(torch.equal(found[0], found[1]), torch.equal(found[0], found[2]))
"""


def test_another_weight_or_dtype_gets_no_result_of_before(tmp_path: Path) -> None:
    """A block's weight that changed, and bfloat16: the embedding is what it was. In a process of its own, as with sweeps."""
    script = tmp_path / "script.py"
    script.write_text(OTHER_MODELS)
    done = subprocess.run([sys.executable, script, tmp_path / "kept"], capture_output=True, text=True, check=False)
    assert done.stdout.split() == 3 * ["True", "True", "True"] + ["False", "False"], done.stderr
