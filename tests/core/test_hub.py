"""Artifacts go to folders and to the hub with a card, and come back bit by bit; what goes wrong is the library's own error.

The client is the real one; the hub is a stand-in on this machine (tests/hub_server.py)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants

import unlock_lens as ul
from tests.hub_server import TOKEN, Hub, serving
from unlock_lens import zoo
from unlock_lens.core import files
from unlock_lens.core.direction import Provenance
from unlock_lens.hosts.identity import ModelIdentity

SOURCE, TARGET = ModelIdentity("lab/large", 5, 16, revision="a1b2"), ModelIdentity("lab/small", 3, 8, fingerprint="f00d")
TAGS = ["unlock-lens", "activation-steering", "interpretability"]


@pytest.fixture
def direction() -> ul.CapabilityDirection:
    made = Provenance("mean", -1, 12, "10cked", "un10cked", SOURCE, SOURCE, 4, ("times 2", "a | b"))
    return ul.CapabilityDirection(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), (0, 2), "raw", TARGET, made)


@pytest.fixture
def aligner() -> ul.SubspaceAligner:
    states = torch.Generator().manual_seed(1)
    source, target = (torch.randn(m.n_layers, 40, m.d_model, generator=states) for m in (SOURCE, TARGET))
    return ul.SubspaceAligner(4).fit_activations(source, target, SOURCE, TARGET, "7ex7")


def points_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which the client reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Hub, None, None]:
    """A stand-in for the Hub; this process is logged in to it and keeps a separate cache."""
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving() as served:
        points_to(served.url, monkeypatch)
        yield served
    huggingface_hub.close_session()


def metadata(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def same(a: ul.CapabilityDirection, b: ul.CapabilityDirection) -> bool:
    return torch.equal(a.vectors, b.vectors) and a.description == b.description


def same_map(a: ul.SubspaceAligner, b: ul.SubspaceAligner) -> bool:
    tensors = a.maps.tensors()
    return repr(a) == repr(b) and all(torch.equal(tensor, tensors[name]) for name, tensor in b.maps.tensors().items())


@pytest.mark.parametrize("order", [(0, 1, 0), (1, 0)])
def test_a_folder_holds_a_direction_and_an_aligner_and_its_card_describes_both(
    direction: ul.CapabilityDirection, aligner: ul.SubspaceAligner, tmp_path: Path, order: tuple[int, ...]
) -> None:
    folder = tmp_path / "made" / "cot"
    for i in order:
        (direction, aligner)[i].save_pretrained(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "aligner.safetensors", "direction.safetensors"]
    assert same(ul.CapabilityDirection.from_pretrained(folder), direction)
    assert same_map(ul.SubspaceAligner.from_pretrained(str(folder)), aligner)
    card = (folder / "README.md").read_text()
    headings = re.findall(r"^##? (.*)$", card, re.MULTILINE)
    assert sorted(headings) == ["aligner.safetensors", "cot", "direction.safetensors"]
    assert metadata(card).pop("tags") == TAGS
    assert set(metadata(card)["base_model"]) == {"lab/small", "lab/large"}
    for row in (
        "| layers | 0, 2 |",
        "| model | name `lab/small`, n_layers 3, d_model 8, basis raw, fingerprint f00d |",
        "| unlocked_hash | un10cked |",
        "| steps | times 2, a \\| b |",
        "| layer_map | 0: 0, 1: 2, 2: 4 |",
        "| prompts_hash | 7ex7 |",
        "| without_mean | False |",
    ):
        assert row in card.splitlines(), row
    assert str(tmp_path) not in card


def test_the_code_in_a_card_runs(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the reader has a model and prompts."""
    ul.CapabilityDirection(torch.ones(3, 64), (0, 1, 2)).save_pretrained(tmp_path / "cot")
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "cot" / "README.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": small, "prompts": zoo.running_sum(n=2).direct}
    exec(code, names)
    assert len(names["completions"]) == 2


@pytest.mark.parametrize("name", ["/home/who/models/mine", r"C:\who\mine", "mine"])
def test_the_card_shows_no_paths_of_models(tmp_path: Path, name: str) -> None:
    ul.CapabilityDirection(torch.ones(1, 8), (0,), model=ModelIdentity(name, 1, 8)).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert ("`mine`" in card, "who" in card, "base_model" in card) == (True, False, False)


def test_the_card_says_what_cross_validation_chose(tmp_path: Path) -> None:
    states = torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(0))
    aligner = ul.SubspaceAligner("cv", method="rrr", ridge="cv").fit_activations(states, states)
    aligner.save_pretrained(tmp_path)
    chosen = rf"\| cross_validation \| .*rank {aligner.maps.rank}, ridge {aligner.ridge_:g} \|"
    assert re.search(chosen, (tmp_path / "README.md").read_text())


@pytest.mark.parametrize(
    "own", ["# Mine\n\nAbove.\n", "---\nlicense: mit\ntags: mine\nbase_model: lab/mine\n---\nAbove.\n", ""]
)
def test_text_and_metadata_of_the_users_own_stay_in_the_card(
    direction: ul.CapabilityDirection, tmp_path: Path, own: str
) -> None:
    card = tmp_path / "README.md"
    card.write_text(own, encoding="utf-8-sig")
    direction.save_pretrained(tmp_path)
    card.write_text(card.read_text() + "\nBelow.")
    for _ in range(2):
        (2.0 * direction).save_pretrained(tmp_path)
        text = card.read_text()
        assert [text.count(part) for part in ("Above.", "Below.", "## direction.safetensors")] == [own.count("Above."), 1, 1]
        assert text.index("## direction.safetensors") < text.index("times 2, a \\| b, times 2") < text.index("Below.")
        found = metadata(text)
        assert ("license" in found, found["library_name"]) == ("license" in own, "unlock-lens")
        assert found["tags"] == ["mine"] * ("mine" in own) + TAGS
        assert found["base_model"] == ["lab/mine"] * ("mine" in own) + ["lab/small", "lab/large"]


@pytest.mark.parametrize(
    "card",
    [
        b"---\ntags: [a\n---\n",
        b"---\n- a\n---\n",
        b"\xff\xfe\x00",
        b"---\ntags: &r [*r]\n---\n",
        b"---\ntags: [[a]]\n---\n",
        b"---\nd: !!timestamp x\n---\n",
        b"---\nlibrary_name: [a]\n---\n",
        b"---\n1: 2\n---\n",
    ],
)
def test_nothing_is_written_beside_a_card_that_cannot_be_read(
    direction: ul.CapabilityDirection, hub: Hub, tmp_path: Path, card: bytes
) -> None:
    (tmp_path / "cot").mkdir()
    (tmp_path / "cot" / "README.md").write_bytes(card)
    hub.create("me/cot", {"README.md": card})
    with pytest.raises(ul.ArtifactError, match=r"README\.md"):
        direction.save_pretrained(tmp_path / "cot")
    with pytest.raises(ul.ArtifactError, match=r"README\.md"):
        direction.push_to_hub("me/cot")
    assert [file.read_bytes() for file in (tmp_path / "cot").iterdir()] == [card]
    assert hub.files("me/cot") == {"README.md": card}


def test_folders_that_cannot_serve_are_refused(direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    direction.save_pretrained(tmp_path / "cot")
    file = tmp_path / "cot" / "direction.safetensors"
    with pytest.raises(ul.InvalidInput, match="is a file.*save"):
        direction.save_pretrained(file)
    with pytest.raises(ul.InvalidInput, match="is a file.*load"):
        ul.CapabilityDirection.from_pretrained(file)
    with pytest.raises(ul.ArtifactError, match=r"aligner\.safetensors"):
        ul.SubspaceAligner.from_pretrained(tmp_path / "cot")
    with pytest.raises(ul.InvalidInput, match="revision"):
        ul.CapabilityDirection.from_pretrained(tmp_path / "cot", revision="v1")
    with pytest.raises(ul.InvalidInput, match="namespace/name"):
        ul.CapabilityDirection.from_pretrained(tmp_path / "nowhere")


def test_an_aligner_that_is_not_fitted_leaves_nothing_behind(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(ul.InvalidInput, match="fitted"):
        ul.SubspaceAligner(4).save_pretrained(tmp_path / "new")
    with pytest.raises(ul.InvalidInput, match="fitted"):
        ul.SubspaceAligner(4).push_to_hub("me/new")
    assert not (tmp_path / "new").exists()
    assert hub.asked == []


def test_a_repository_holds_both_and_keeps_what_is_there(
    direction: ul.CapabilityDirection, aligner: ul.SubspaceAligner, hub: Hub
) -> None:
    hub.create("me/cot", {"README.md": b"---\nlicense: mit\n---\n\n# Mine\n\nAbove.\n", "notes.txt": b"n"})
    assert direction.push_to_hub("me/cot") == f"{hub.url}/me/cot"
    assert aligner.push_to_hub("cot", commit_message="The map", token=f"{TOKEN}\n") == f"{hub.url}/me/cot"
    assert hub.repositories["me/cot"].messages[1:] == ["Upload direction.safetensors", "The map"]
    assert sorted(hub.files("me/cot")) == ["README.md", "aligner.safetensors", "direction.safetensors", "notes.txt"]
    card = hub.files("me/cot")["README.md"].decode()
    assert metadata(card)["license"] == "mit"
    assert [card.count(part) for part in ("Above.", "## direction.", "## aligner.", 'from_pretrained("me/cot")')] == [
        1,
        1,
        1,
        2,
    ]
    hub.asked.clear()
    assert same(ul.CapabilityDirection.from_pretrained("me/cot"), direction)
    assert {asked.split("/")[-1] for asked in hub.asked} == {"direction.safetensors"}
    assert same_map(ul.SubspaceAligner.from_pretrained("me/cot"), aligner)


def test_branches_and_commits_are_revisions(direction: ul.CapabilityDirection, hub: Hub) -> None:
    direction.push_to_hub("me/cot")
    first = hub.repositories["me/cot"].branches["main"]
    for turned in (-direction, -2.0 * direction):
        turned.push_to_hub("me/cot", revision="turned")
    (3.0 * direction).push_to_hub("me/cot")
    read = ul.CapabilityDirection.from_pretrained
    assert same(read("me/cot"), 3.0 * direction)
    assert same(read("me/cot", revision="turned"), -2.0 * direction)
    assert same(read("me/cot", revision=first), direction)


def test_private_repositories_stay_private(direction: ul.CapabilityDirection, hub: Hub, tmp_path: Path) -> None:
    direction.push_to_hub("me/secret", private=True)
    assert hub.repositories["me/secret"].private
    (tmp_path / "token").unlink()
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(ul.ArtifactError, match="private"):
        ul.CapabilityDirection.from_pretrained("me/secret", cache_dir=elsewhere)
    assert same(ul.CapabilityDirection.from_pretrained("me/secret", token=TOKEN, cache_dir=elsewhere), direction)
    assert list(elsewhere.iterdir())
    hub.create("me/open")
    with pytest.raises(ul.InvalidInput, match="public"):
        direction.push_to_hub("me/open", private=True, token=TOKEN)
    assert hub.files("me/open") == {}


REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "read me/nothing": (ul.ArtifactError, "RepositoryNotFound", {}),
    "read me/map": (ul.ArtifactError, "direction.*EntryNotFound", {}),
    "read lab/open": (ul.ArtifactError, "RevisionNotFound", {"revision": "v9"}),
    "read lab/wrong": (ul.ArtifactError, "aligner.*direction", {}),
    "read lab/closed": (ul.RequestRefused, "gated", {}),
    "read a/b/c": (ul.InvalidInput, "namespace/name", {}),
    "push a/b/c": (ul.InvalidInput, "namespace/name", {}),
    "push lab/open": (ul.RequestRefused, "403", {}),
    "push lab/new": (ul.RequestRefused, "403", {}),
    "push me/map": (ul.RequestRefused, "401", {"token": "hf_of_somebody"}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_hub_refuses_is_an_error_of_the_library(
    direction: ul.CapabilityDirection, aligner: ul.SubspaceAligner, hub: Hub, what: str
) -> None:
    aligner.push_to_hub("me/map")
    hub.create("lab/open")
    hub.create("lab/wrong", {"direction.safetensors": hub.files("me/map")["aligner.safetensors"]})
    hub.create("lab/closed", {"direction.safetensors": b"x"}, gated=True)
    before = {name: dict(repository.commits) for name, repository in hub.repositories.items()}
    action, name = what.split()
    error, keyword, asked = REFUSED[what]
    with pytest.raises(error, match=keyword) as caught:
        {"push": direction.push_to_hub, "read": ul.CapabilityDirection.from_pretrained}[action](name, **asked)
    assert "hf_of_somebody" not in f"{caught.value} {caught.value.__cause__!r}"
    assert {name: repository.commits for name, repository in hub.repositories.items()} == before


def test_a_commit_in_between_is_not_undone(
    direction: ul.CapabilityDirection, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.create("me/cot")
    monkeypatch.setattr(files, "_card", lambda *_: repository.commit("main", {"README.md": b"theirs"}, "theirs").encode())
    with pytest.raises(ul.RequestRefused, match="412"):
        direction.push_to_hub("me/cot")
    assert hub.files("me/cot") == {"README.md": b"theirs"}


def test_what_was_fetched_is_read_without_network(
    direction: ul.CapabilityDirection, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ul.CapabilityDirection.from_pretrained
    direction.push_to_hub("me/cot")
    read("me/cot")
    hub.fails = 503
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client's, before it tries again
    refused: list[Callable[[], Any]] = [lambda: read("me/other"), lambda: direction.push_to_hub("me/cot")]
    for error in (ul.RemoteFailure, ul.ServerUnreachable, ul.ServerUnreachable):
        assert same(read("me/cot"), direction)
        for ask in refused:
            with pytest.raises(error, match="me/"):
                ask()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", hub.url != constants.ENDPOINT)
        points_to("http://127.0.0.1:9", monkeypatch)


def test_a_transfer_that_breaks_off_is_a_remote_failure(
    direction: ul.CapabilityDirection, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("connection lost")

    monkeypatch.setattr(HfApi, "create_commit", breaks)
    with pytest.raises(ul.RemoteFailure, match="transfer"):
        direction.push_to_hub("me/new")


@pytest.mark.parametrize("drips", ["headers", "body"])
def test_a_hub_that_drips_is_left_in_time(direction: ul.CapabilityDirection, hub: Hub, tmp_path: Path, drips: str) -> None:
    """Each byte winds up the clock of the HTTP library; ours runs on, and then the cache is free for the next call."""
    direction.push_to_hub("me/cot")
    hub.drips = drips
    began = time.monotonic()
    with pytest.raises(ul.DeadlineExceeded, match="deadline="):
        ul.CapabilityDirection.from_pretrained("me/cot", deadline=1.0)
    with pytest.raises(ul.DeadlineExceeded, match="deadline="):
        direction.push_to_hub("me/cot", deadline=1.0)
    assert time.monotonic() - began < 8
    hub.drips = None
    assert same(ul.CapabilityDirection.from_pretrained("me/cot", deadline=30.0), direction)
