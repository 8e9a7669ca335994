"""Artifacts go to folders and to the hub with a card, and come back bit by bit; what is not there is told, and no token is.

The client is the real one; the hub is a stand-in on this machine (tests/hub_server.py)."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants
from safetensors.torch import save as to_bytes

import unlock_lens as ul
from tests.hub_server import TOKEN, Hub, serving
from unlock_lens import zoo
from unlock_lens.core import artifact
from unlock_lens.core.card import BEGIN, END
from unlock_lens.core.direction import Provenance
from unlock_lens.hosts.identity import ModelIdentity

SOURCE, TARGET = ModelIdentity("lab/large", 5, 16, revision="a1b2"), ModelIdentity("lab/small", 3, 8, fingerprint="f00d")
STRANGER = "hf_of_somebody"


@pytest.fixture
def direction() -> ul.CapabilityDirection:
    told = Provenance("mean", -1, 12, "10cked", "un10cked", SOURCE, SOURCE, 4, ("times 2", "a | b"))
    return ul.CapabilityDirection(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), (0, 2), "raw", TARGET, told)


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
    """The stand-in, and this process as a user's who is logged in there, with a cache of its own."""
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
    told = [(d.layers, d.basis, d.model, d.provenance) for d in (a, b)]
    return torch.equal(a.vectors, b.vectors) and told[0] == told[1]


def test_a_direction_comes_back_from_a_folder_bit_by_bit_with_its_history(
    direction: ul.CapabilityDirection, tmp_path: Path
) -> None:
    direction.save_pretrained(tmp_path / "made" / "cot")
    assert sorted(file.name for file in (tmp_path / "made" / "cot").iterdir()) == ["README.md", "direction.safetensors"]
    assert same(ul.CapabilityDirection.from_pretrained(tmp_path / "made" / "cot"), direction)
    assert same(ul.CapabilityDirection.from_pretrained(str(tmp_path / "made" / "cot")), direction)


def test_the_card_tells_everything_of_a_direction(direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    direction.save_pretrained(tmp_path / "cot")
    card = (tmp_path / "cot" / "README.md").read_text()
    assert metadata(card) == {
        "library_name": "unlock-lens",
        "tags": ["unlock-lens", "activation-steering", "interpretability"],
        "base_model": ["lab/small", "lab/large"],
    }
    for row in (
        "| model | `lab/small`, 3 layers, d_model 8, raw, weights f00d |",
        "| layers | 0, 2 |",
        "| aggregate | mean |",
        "| token of the prompt | -1 |",
        "| prompts | 12; hash of the locked 10cked, of the unlocked un10cked |",
        "| transported from | `lab/large`, 5 layers, d_model 16, raw, revision a1b2 |",
        "| rank of the map | 4 |",
        "| then (2) | a \\| b |",
    ):
        assert row in card.splitlines(), row
    assert 'ul.CapabilityDirection.from_pretrained("cot")' in card
    assert "proves no transfer" in card
    assert "https://arxiv.org/abs/2604.06377" in card
    assert str(tmp_path) not in card


def test_the_code_in_a_card_runs(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the reader has a model and prompts."""
    ul.CapabilityDirection(torch.ones(3, 64), (0, 1, 2)).save_pretrained(tmp_path / "cot")
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "cot" / "README.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": small, "prompts": zoo.running_sum(n=2).direct}
    exec(code, names)
    assert len(names["completions"]) == 2


def test_models_without_a_hub_id_are_named_without_their_paths(tmp_path: Path) -> None:
    for name, shown in (("/home/who/models/mine", "`mine`"), (r"C:\who\mine", "`mine`"), ("mine", "`mine`")):
        ul.CapabilityDirection(torch.ones(1, 8), (0,), model=ModelIdentity(name, 1, 8)).save_pretrained(tmp_path / "cot")
        card = (tmp_path / "cot" / "README.md").read_text()
        assert shown in card
        assert "who" not in card
        assert "base_model" not in metadata(card)


def test_one_folder_holds_a_direction_and_an_aligner_and_its_card_tells_both(
    direction: ul.CapabilityDirection, aligner: ul.SubspaceAligner, tmp_path: Path
) -> None:
    """Whichever is written first, and however often."""
    for folder, things in (("a", (direction, aligner, aligner)), ("b", (aligner, direction))):
        for thing in things:
            thing.save_pretrained(tmp_path / folder)
        card = (tmp_path / folder / "README.md").read_text()
        assert re.findall(r"^##? (.*)$", card, re.MULTILINE) == [
            folder,
            "direction.safetensors: a capability direction",
            "aligner.safetensors: a map between two models",
            "Before you rely on it",
        ]
        assert "| calibration | 40 tokens; hash of the texts 7ex7 |" in card
        assert "| target layer from source layer | 0 from 0, 1 from 2, 2 from 4 |" in card
        for row in (
            "| method | unlock |",
            "| rank | 4 |",
            "| positions | last |",
            "| sinks | keep |",
            "| without_mean | False |",
        ):
            assert row in card.splitlines(), row
        assert "layer_map" not in card
        back = ul.SubspaceAligner.from_pretrained(tmp_path / folder)
        assert repr(back) == repr(aligner)
        assert all(torch.equal(back.maps.tensors()[name], tensor) for name, tensor in aligner.maps.tensors().items())
        assert same(ul.CapabilityDirection.from_pretrained(tmp_path / folder), direction)


def test_the_card_of_a_chosen_aligner_tells_the_choice(tmp_path: Path) -> None:
    states = torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(0))
    aligner = ul.SubspaceAligner("cv", method="rrr", ridge="cv").fit_activations(states, states)
    aligner.save_pretrained(tmp_path)
    rank, ridge = aligner.maps.rank, aligner.ridge_in_use
    assert f"| chosen by cross-validation | rank {rank}, ridge {ridge:g} |" in (tmp_path / "README.md").read_text()


def test_what_a_user_wrote_into_the_card_stays(direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    direction.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    fresh = card.read_text()
    own = fresh.replace("---\n\n", "license: mit\n---\n\n", 1).replace(BEGIN, f"Above.\n\n{BEGIN}") + "\nBelow.\n"
    card.write_text(own.replace("- interpretability", "- arithmetic"))
    for _ in range(2):
        (2.0 * direction).save_pretrained(tmp_path)
        now = card.read_text()
        assert metadata(now)["license"] == "mit"
        assert metadata(now)["tags"] == ["unlock-lens", "activation-steering", "arithmetic", "interpretability"]
        assert now.count("Above.") == now.count("Below.") == now.count(BEGIN) == now.count(END) == 1
        assert now.index("Above.") < now.index(BEGIN) < now.index("times 2") < now.index(END) < now.index("Below.")


@pytest.mark.parametrize("own", ["# My project\n\nAll of it.\n", f"{BEGIN}\n\nAll of it.\n", f"All of it.\n{END}\n", ""])
def test_a_readme_of_ones_own_is_added_to_and_never_lost(direction: ul.CapabilityDirection, tmp_path: Path, own: str) -> None:
    (tmp_path / "README.md").write_text(own)
    for _ in range(2):
        direction.save_pretrained(tmp_path)
        now = (tmp_path / "README.md").read_text()
        assert now.count("All of it.") == own.count("All of it.")
        assert now.count("## direction.safetensors") == 1
        assert metadata(now)["library_name"] == "unlock-lens"


@pytest.mark.parametrize("own", ["lab/mine", ["lab/mine", "lab/large"]], ids=["one", "several"])
def test_metadata_of_ones_own_stays_where_ours_would_stand(
    direction: ul.CapabilityDirection, tmp_path: Path, own: str | list[str]
) -> None:
    """Of one base model and of several, library and one tag; ours come after, once."""
    stated = {"library_name": "transformers", "base_model": own, "tags": "arithmetic"}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(stated)}---\n\n# Mine\n")
    models = ["lab/mine", "lab/small", "lab/large"] if isinstance(own, str) else [*own, "lab/small"]
    for _ in range(2):
        direction.save_pretrained(tmp_path)
        assert metadata((tmp_path / "README.md").read_text()) == {
            "library_name": "transformers",
            "base_model": models,
            "tags": ["arithmetic", "unlock-lens", "activation-steering", "interpretability"],
        }


def test_a_byte_order_mark_hides_no_metadata(direction: ul.CapabilityDirection, hub: Hub, tmp_path: Path) -> None:
    own = "---\nlicense: mit\n---\n\n# Mine\n".encode("utf-8-sig")
    (tmp_path / "README.md").write_bytes(own)
    hub.create("me/cot", {"README.md": own})
    direction.save_pretrained(tmp_path)
    direction.push_to_hub("me/cot")
    for card in ((tmp_path / "README.md").read_bytes(), hub.files("me/cot")["README.md"]):
        told = metadata(card.decode())
        assert card.startswith(b"---\nlicense: mit\n")
        assert (told["license"], told["library_name"]) == ("mit", "unlock-lens")
        assert card.count(b"license: mit") == 1


def test_saving_again_changes_no_byte_of_the_card_but_the_time(
    direction: ul.CapabilityDirection, aligner: ul.SubspaceAligner, tmp_path: Path
) -> None:
    aligner.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    card.write_text(card.read_text().replace(BEGIN, f"Above.\n\n{BEGIN}") + "\nBelow.\n")
    cards: list[bytes] = []
    for _ in range(3):
        direction.save_pretrained(tmp_path)
        cards.append(re.sub(rb"\| written \| [^,]*,", b"| written | then,", card.read_bytes()))
    assert cards[0].count(b"| written | then,") == 2
    assert cards[0] == cards[1] == cards[2]


def broken_card(folder: Path) -> None:
    (folder / "README.md").write_text("---\ntags: [a\n---\n")


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a card whose metadata is no YAML": (broken_card, "metadata at the top of .*README.md cannot be read; mend it, or remove"),
    "a card that is no mapping": (
        lambda folder: (folder / "README.md").write_text("---\n- a\n---\n"),
        "metadata at the top of .* cannot be read",
    ),
    "a card whose metadata are nested without end": (
        lambda folder: (folder / "README.md").write_text(f"---\ntags: {'[' * 2000}\n---\n"),
        "metadata at the top of .* cannot be read",
    ),
    "a card that is no text": (
        lambda folder: (folder / "README.md").write_bytes(b"\xff\xfe\x00"),
        r"README.md is not a readable .*utf-8",
    ),
    "a damaged neighbour": (
        lambda folder: (folder / "aligner.safetensors").write_text("hello"),
        "aligner.safetensors is not a readable unlock-lens artifact",
    ),
    "a neighbour of another kind": (
        lambda folder: (folder / "aligner.safetensors").write_bytes((folder / "direction.safetensors").read_bytes()),
        "aligner.safetensors holds: direction; expected: aligner",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_nothing_is_written_where_the_card_cannot_be_made(direction: ul.CapabilityDirection, tmp_path: Path, name: str) -> None:
    direction.save_pretrained(tmp_path)
    spoil, message = SPOILED[name]
    spoil(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ul.ArtifactError, match=message):
        (2.0 * direction).save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_interrupted_save_leaves_folder_and_card_as_they_were(
    direction: ul.CapabilityDirection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direction.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fails(self: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(OSError, match="no space left"):
        (2.0 * direction).save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_aligner_that_is_not_fitted_makes_no_folder(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(ul.InvalidInput, match="not fitted yet"):
        ul.SubspaceAligner(4).save_pretrained(tmp_path / "new")
    with pytest.raises(ul.InvalidInput, match="not fitted yet"):
        ul.SubspaceAligner(4).push_to_hub("me/new")
    assert not (tmp_path / "new").exists()
    assert hub.asked == []


def test_folders_that_will_not_do_are_told(
    direction: ul.CapabilityDirection, aligner: ul.SubspaceAligner, tmp_path: Path
) -> None:
    aligner.save_pretrained(tmp_path / "map")
    file = tmp_path / "d.safetensors"
    direction.save(file)
    with pytest.raises(ul.InvalidInput, match=r"d.safetensors is a file, or in one; give a folder, or write one"):
        direction.save_pretrained(file)
    with pytest.raises(ul.InvalidInput, match=r"d.safetensors.below is a file, or in one; give a folder"):
        direction.save_pretrained(file / "below")
    with pytest.raises(ul.InvalidInput, match=r"d.safetensors is a file; read it with CapabilityDirection.load\(\)"):
        ul.CapabilityDirection.from_pretrained(file)
    with pytest.raises(ul.ArtifactError, match=r"map has no direction.safetensors; it has: README.md, aligner.safetensors$"):
        ul.CapabilityDirection.from_pretrained(tmp_path / "map")
    with pytest.raises(ul.InvalidInput, match="map is a folder here, which has no revision 'v1'; leave revision= out"):
        ul.SubspaceAligner.from_pretrained(tmp_path / "map", revision="v1")
    with pytest.raises(ul.InvalidInput, match="nowhere' is neither a folder here nor a hub id; a hub id is namespace/name"):
        ul.SubspaceAligner.from_pretrained(tmp_path / "nowhere")


def test_a_home_folder_is_meant_by_its_sign(
    direction: ul.CapabilityDirection, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In folders to write, to read, and to keep what was fetched."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    direction.save_pretrained("~/cot")
    assert (tmp_path / "home" / "cot" / "direction.safetensors").is_file()
    assert same(ul.CapabilityDirection.from_pretrained("~/cot"), direction)
    direction.push_to_hub("me/cot")
    assert same(ul.CapabilityDirection.from_pretrained("me/cot", cache_dir="~/kept"), direction)
    assert list((tmp_path / "home" / "kept").iterdir())


def test_names_that_lead_to_no_folder_are_told(direction: ul.CapabilityDirection, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    nobody, unknown = "~nobodyhere/x", "'~nobodyhere/x' starts with a user's folder that is not known here; give the whole path"
    read = ul.CapabilityDirection.from_pretrained
    for ask in (direction.save_pretrained, read, lambda name: read("me/cot", cache_dir=name)):
        with pytest.raises(ul.InvalidInput, match=unknown):
            ask(nobody)
        with pytest.raises(ul.InvalidInput, match="'' names no folder and no repository; '.' is the current folder"):
            ask("")
    for cache in (tmp_path / "file", str(tmp_path / "file" / "below")):
        with pytest.raises(ul.InvalidInput, match=r"cache_dir=.*file.* is a file, or in one; give a folder"):
            read("me/cot", cache_dir=cache)
    assert hub.asked == []


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # the client's own, of its HTTP library
@pytest.mark.parametrize("large", [False, True])
def test_a_direction_comes_back_from_the_hub_bit_by_bit_with_its_history(
    direction: ul.CapabilityDirection, hub: Hub, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the protocol for small files, and by that for large ones, which the hub itself uses for safetensors."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.large = large
    assert direction.push_to_hub("me/cot") == f"{hub.url}/me/cot"
    assert bool(hub.blobs) == large
    assert sorted(hub.files("me/cot")) == [".gitattributes", "README.md", "direction.safetensors"]
    assert not hub.repositories["me/cot"].private
    assert hub.repositories["me/cot"].messages[1:] == ["Upload direction.safetensors"]
    assert 'from_pretrained("me/cot")' in hub.files("me/cot")["README.md"].decode()
    assert same(ul.CapabilityDirection.from_pretrained("me/cot"), direction)


def test_a_second_push_updates_and_the_first_is_still_there(direction: ul.CapabilityDirection, hub: Hub) -> None:
    direction.push_to_hub("me/cot")
    first = hub.repositories["me/cot"].branches["main"]
    assert same(ul.CapabilityDirection.from_pretrained("me/cot"), direction)
    (2.0 * direction).push_to_hub("me/cot", commit_message="Twice as strong")
    assert hub.repositories["me/cot"].messages[-1] == "Twice as strong"
    assert same(ul.CapabilityDirection.from_pretrained("me/cot"), 2.0 * direction)
    assert same(ul.CapabilityDirection.from_pretrained("me/cot", revision=first), direction)


def test_a_branch_is_made_and_main_stays(direction: ul.CapabilityDirection, hub: Hub) -> None:
    direction.push_to_hub("me/cot")
    for _ in range(2):
        (-direction).push_to_hub("me/cot", revision="turned")
    assert same(ul.CapabilityDirection.from_pretrained("me/cot"), direction)
    assert same(ul.CapabilityDirection.from_pretrained("me/cot", revision="turned"), -direction)


def test_a_branch_of_its_own_content_is_added_to_and_not_mains(
    direction: ul.CapabilityDirection, aligner: ul.SubspaceAligner, hub: Hub
) -> None:
    """Card and neighbour are the branch's, though main has others of the names."""
    aligner.push_to_hub("me/cot")
    repository = hub.repositories["me/cot"]
    aligner.at_rank(2).push_to_hub("me/cot", revision="turned")
    files = hub.files("me/cot", "turned")
    card = files["README.md"].decode().replace(BEGIN, f"Of the branch.\n\n{BEGIN}").encode()
    repository.commit("turned", {**files, "README.md": card}, "own words")
    main = repository.branches["main"]
    direction.push_to_hub("me/cot", revision="turned")
    card = hub.files("me/cot", "turned")["README.md"].decode()
    assert card.count("Of the branch.") == 1
    assert "| rank | 2 |" in card
    assert "| rank | 4 |" not in card
    assert repository.branches["main"] == main


def test_a_reference_of_the_hubs_own_is_written_to_and_not_made(direction: ul.CapabilityDirection, hub: Hub) -> None:
    """A pull request is there as refs/pr/1 or not at all."""
    repository = hub.create("me/cot")
    with pytest.raises(ul.ArtifactError, match="me/cot has no revision 'refs/pr/1'"):
        direction.push_to_hub("me/cot", revision="refs/pr/1")
    repository.branches["refs/pr/1"] = repository.branches["main"]
    direction.push_to_hub("me/cot", revision="refs/pr/1")
    assert not [asked for asked in hub.asked if "/branch/" in asked]
    assert set(repository.branches) == {"main", "refs/pr/1"}
    assert "direction.safetensors" in hub.files("me/cot", "refs/pr/1")
    assert "direction.safetensors" not in hub.files("me/cot")


def test_a_commit_is_no_place_to_write_to(direction: ul.CapabilityDirection, hub: Hub) -> None:
    commit = hub.create("me/cot").branches["main"]
    for revision in (commit, commit.upper()):
        with pytest.raises(ul.InvalidInput, match=f"revision {revision} is a commit, which stays as it is; give a branch"):
            direction.push_to_hub("me/cot", revision=revision)
    assert hub.asked == []
    direction.push_to_hub("me/cot", revision=commit[:39])
    assert set(hub.repositories["me/cot"].branches) == {"main", commit[:39]}


def test_a_push_keeps_what_others_are_there_and_tells_it(
    direction: ul.CapabilityDirection, aligner: ul.SubspaceAligner, hub: Hub
) -> None:
    hub.create("me/cot", {"README.md": b"---\nlicense: mit\n---\n\n# Mine\n\nAbove.\n", "notes.txt": b"n"})
    aligner.push_to_hub("me/cot")
    hub.asked.clear()
    direction.push_to_hub("me/cot")
    files = hub.files("me/cot")
    card = files["README.md"].decode()
    assert sorted(files) == [".gitattributes", "README.md", "aligner.safetensors", "direction.safetensors", "notes.txt"]
    assert metadata(card)["license"] == "mit"
    assert [card.count(part) for part in ("Above.", "## direction.safetensors", "## aligner.safetensors")] == [1, 1, 1]
    assert not [asked for asked in hub.asked if "notes.txt" in asked]
    assert repr(ul.SubspaceAligner.from_pretrained("me/cot")) == repr(aligner)


def test_reading_fetches_one_file_and_nothing_else(direction: ul.CapabilityDirection, hub: Hub) -> None:
    direction.push_to_hub("me/cot")
    hub.files("me/cot").update({"pytorch_model.bin": b"never", "direction.py": b"never"})
    hub.asked.clear()
    ul.CapabilityDirection.from_pretrained("me/cot")
    fetched = {asked.split("/")[-1] for asked in hub.asked if "/resolve/" in asked}
    assert fetched == {"direction.safetensors"}


def test_private_repositories_are_for_those_who_may(direction: ul.CapabilityDirection, hub: Hub, tmp_path: Path) -> None:
    direction.push_to_hub("me/secret", private=True)
    assert hub.repositories["me/secret"].private
    assert same(ul.CapabilityDirection.from_pretrained("me/secret"), direction)
    (tmp_path / "token").unlink()
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(
        ul.ArtifactError, match=r"has no repository me/secret that you may see.*if it is private log in \(hf auth login\)"
    ):
        ul.CapabilityDirection.from_pretrained("me/secret", cache_dir=elsewhere)
    assert same(ul.CapabilityDirection.from_pretrained("me/secret", token=TOKEN, cache_dir=elsewhere), direction)
    assert list(elsewhere.iterdir())


def test_a_public_repository_is_no_place_for_what_is_private(direction: ul.CapabilityDirection, hub: Hub) -> None:
    hub.create("me/open")
    with pytest.raises(ul.InvalidInput, match="me/open is there and public; make it private on the hub first, or take another"):
        direction.push_to_hub("me/open", private=True)
    assert sorted(hub.files("me/open")) == [".gitattributes"]


def test_what_was_fetched_is_read_without_network(
    direction: ul.CapabilityDirection, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By HF_HUB_OFFLINE, by a hub that fails, and by one that does not answer."""
    direction.push_to_hub("me/cot")
    ul.CapabilityDirection.from_pretrained("me/cot")
    hub.fails = 503
    assert same(ul.CapabilityDirection.from_pretrained("me/cot"), direction)
    points_to("http://127.0.0.1:9", monkeypatch)
    assert same(ul.CapabilityDirection.from_pretrained("me/cot"), direction)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(ul.CapabilityDirection.from_pretrained("me/cot"), direction)
    with pytest.raises(
        ul.ServerUnreachable, match="no answer on me/other .OfflineModeIsEnabled., and there is no earlier copy"
    ):
        ul.CapabilityDirection.from_pretrained("me/other")


def test_what_was_withdrawn_is_not_served_from_the_cache(direction: ul.CapabilityDirection, hub: Hub) -> None:
    direction.push_to_hub("me/cot")
    ul.CapabilityDirection.from_pretrained("me/cot")
    del hub.repositories["me/cot"]
    with pytest.raises(ul.ArtifactError, match="has no repository me/cot that you may see"):
        ul.CapabilityDirection.from_pretrained("me/cot")


def test_what_is_not_on_the_hub_is_told(direction: ul.CapabilityDirection, aligner: ul.SubspaceAligner, hub: Hub) -> None:
    aligner.push_to_hub("me/map")
    hub.create("lab/closed", {"direction.safetensors": b"x"}, gated=True)
    hub.create("lab/bad", {"direction.safetensors": hub.files("me/map")["aligner.safetensors"]})
    hub.create("lab/many", {f"{i}.bin": b"" for i in range(30)})
    read = ul.CapabilityDirection.from_pretrained
    with pytest.raises(
        ul.ArtifactError, match=f"{hub.url} has no repository me/nothing that you may see, and .*no such folder"
    ):
        read("me/nothing")
    with pytest.raises(ul.ArtifactError, match="me/map has no revision 'v9'; give a branch, a tag or a commit of it"):
        read("me/map", revision="v9")
    with pytest.raises(ul.ArtifactError, match=r"me/map has no direction.safetensors; it has: README.md, aligner.safetensors$"):
        read("me/map")
    with pytest.raises(ul.ArtifactError, match=r"it has: 0.bin, 1.bin, .* and 20 more$"):
        read("lab/many")
    with pytest.raises(ul.ArtifactError, match="holds: aligner; expected: direction"):
        read("lab/bad")
    with pytest.raises(ul.RequestRefused, match=f"lab/closed is gated: ask for access at {hub.url}/lab/closed, then log in"):
        read("lab/closed")
    for name in ("two words", "a/b/c", "-a/b"):
        with pytest.raises(ul.InvalidInput, match=f"'{name}' is neither a folder here nor a hub id"):
            read(name)


def test_who_may_not_write_is_told_and_nothing_is_written(direction: ul.CapabilityDirection, hub: Hub, tmp_path: Path) -> None:
    hub.create("lab/theirs")
    with pytest.raises(ul.RequestRefused, match=r"refuses lab/theirs with the token that it got \(status 403\)"):
        direction.push_to_hub("lab/theirs")
    with pytest.raises(ul.RequestRefused, match=r"refuses lab/new with the token that it got \(status 403\)"):
        direction.push_to_hub("lab/new")
    with pytest.raises(ul.InvalidInput, match="'cot' names no namespace; give namespace/name"):
        direction.push_to_hub("cot")
    (tmp_path / "token").unlink()
    with pytest.raises(ul.RequestRefused, match=r"refuses me/cot with the token that it got \(status 401\)"):
        direction.push_to_hub("me/cot")
    with pytest.raises(ul.RequestRefused, match="token=True is the token of hf auth login, and there is none"):
        direction.push_to_hub("me/cot", token=True)
    assert set(hub.repositories) == {"lab/theirs"}
    assert sorted(hub.files("lab/theirs")) == [".gitattributes"]


def test_no_message_tells_a_token(direction: ul.CapabilityDirection, hub: Hub) -> None:
    for token, message in (
        (STRANGER, r"status 401"),
        (f"{STRANGER}\n", "blanks or signs"),
        (f"{STRANGER} é", "blanks or signs"),
        (f"{STRANGER}é", "blanks or signs"),
    ):
        for ask in (
            lambda token=token: direction.push_to_hub("me/cot", token=token),
            lambda token=token: ul.CapabilityDirection.from_pretrained("me/cot", token=token),
        ):
            with pytest.raises(ul.UnlockLensError, match=message) as caught:
                ask()
            error: BaseException | None = caught.value
            while error:
                assert STRANGER not in f"{error} {error!r}"
                error = error.__cause__ or error.__context__
    assert hub.repositories == {}


@pytest.mark.parametrize("held", ["", "variable", "file"])
def test_a_token_that_cannot_be_one_is_told_before_anything_is_asked(
    direction: ul.CapabilityDirection, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """Whether it is given, stands in HF_TOKEN, or was kept at log-in; where none is to be sent, none is looked at."""
    token = "" if held == "" else None
    if held == "variable":
        monkeypatch.setenv("HF_TOKEN", f"{STRANGER}é")
    if held == "file":
        (tmp_path / "token").write_text(f"{STRANGER} {STRANGER}")
    for ask in (direction.push_to_hub, ul.CapabilityDirection.from_pretrained):
        with pytest.raises(ul.InvalidInput, match="HF_TOKEN or hf auth login. is empty, or holds blanks or signs") as caught:
            ask("me/cot", token=token)
        assert STRANGER not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert hub.asked == []
    with pytest.raises(ul.ArtifactError, match="has no repository me/cot that you may see"):
        ul.CapabilityDirection.from_pretrained("me/cot", token=False)


@pytest.mark.parametrize("broken", [RuntimeError, ConnectionResetError])
def test_a_transfer_that_breaks_off_is_told_for_what_it_was(
    direction: ul.CapabilityDirection, hub: Hub, monkeypatch: pytest.MonkeyPatch, broken: type[Exception]
) -> None:
    direction.push_to_hub("me/cot")

    def breaks(*args: Any, **kwargs: Any) -> None:
        raise broken("connection lost")

    monkeypatch.setattr(HfApi, "hf_hub_download", breaks)
    monkeypatch.setattr(HfApi, "create_commit", breaks)
    with pytest.raises(ul.RemoteFailure, match=rf"^reading me/cot broke off; call again \({broken.__name__}\)$"):
        ul.CapabilityDirection.from_pretrained("me/cot")
    with pytest.raises(ul.RemoteFailure, match=rf"^sending to me/new broke off; nothing was committed \({broken.__name__}\)$"):
        direction.push_to_hub("me/new")


def test_a_hub_that_fails_or_is_not_there_is_told(
    direction: ul.CapabilityDirection, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fails = 500
    with pytest.raises(ul.RemoteFailure, match=r"failed at me/cot \(status 500\)"):
        direction.push_to_hub("me/cot")
    hub.fails = 200
    with pytest.raises(ul.RemoteFailure, match="asking .* for me/cot came to nothing"):
        ul.CapabilityDirection.from_pretrained("me/cot")
    points_to("http://127.0.0.1:9", monkeypatch)
    for ask in (lambda: direction.push_to_hub("me/cot"), lambda: ul.CapabilityDirection.from_pretrained("me/cot")):
        with pytest.raises(
            ul.ServerUnreachable, match=r"127.0.0.1:9 gives no answer on me/cot \(ConnectError\).*set HF_ENDPOINT"
        ):
            ask()


def test_a_hub_that_stays_silent_is_left(direction: ul.CapabilityDirection, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that HF_HUB_ETAG_TIMEOUT sets."""
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        points_to(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        for ask in (lambda: direction.push_to_hub("me/cot"), lambda: ul.CapabilityDirection.from_pretrained("me/cot")):
            with pytest.raises(ul.ServerUnreachable, match=r"gives no answer on me/cot \(ReadTimeout\)"):
                ask()


def test_writing_at_the_same_time_loses_nothing(
    direction: ul.CapabilityDirection, aligner: ul.SubspaceAligner, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another commit comes between reading the card and writing it: the push is refused, not the other's work undone."""
    repository = hub.create("me/cot")
    hub_answers = type(repository).at

    def at(self: Any, revision: str) -> str:
        if any("/preupload/" in asked for asked in hub.asked) and len(self.commits) == 1:
            self.commit("main", {**self.commits[self.branches["main"]], "theirs.txt": b"t"}, "theirs")
        return hub_answers(self, revision)

    monkeypatch.setattr(type(repository), "at", at)
    with pytest.raises(ul.RequestRefused, match="somebody else wrote to me/cot meanwhile; nothing was committed, call again"):
        direction.push_to_hub("me/cot")
    direction.push_to_hub("me/cot")
    assert {"theirs.txt", "direction.safetensors"} <= set(hub.files("me/cot"))


def test_a_foreign_file_of_the_name_is_not_written_over_in_the_card(
    direction: ul.CapabilityDirection, hub: Hub, tmp_path: Path
) -> None:
    hub.create("me/cot", {"aligner.safetensors": b"hello, this is no safetensors file"})
    with pytest.raises(ul.ArtifactError, match="aligner.safetensors of me/cot is no unlock-lens artifact; rename or remove it"):
        direction.push_to_hub("me/cot")
    artifact.save(tmp_path / "a", "aligner", {"x": torch.ones(1)}, {})
    hub.create("me/cot", {"aligner.safetensors": (tmp_path / "a").read_bytes()})
    with pytest.raises(ul.ArtifactError, match="beside me/cot's README.md is not a readable unlock-lens artifact"):
        direction.push_to_hub("me/cot")
    hub.create("me/cot", {"README.md": b"\xff\xfe\x00"})
    with pytest.raises(ul.ArtifactError, match="README.md of me/cot is not a readable"):
        direction.push_to_hub("me/cot")
    assert "direction.safetensors" not in hub.files("me/cot")


def headed(header: bytes) -> bytes:
    """A safetensors file of that header and no tensor."""
    return len(header).to_bytes(8, "little") + header


NEIGHBOURS = {
    "metadata nested without end": to_bytes({"x": torch.ones(1)}, {"unlock_lens": "[" * 100_000}),
    "a header nested without end": headed(b"[" * 100_000),
    "a header that is a list": headed(b"[]"),
    "metadata that are no mapping": headed(b'{"__metadata__": "unlock_lens"}'),
    "tensors that are none": headed(b'{"x": 1}'),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_hostile_file_of_the_name_is_told(direction: ul.CapabilityDirection, hub: Hub, name: str) -> None:
    hub.create("me/cot", {"aligner.safetensors": NEIGHBOURS[name]})
    with pytest.raises(ul.ArtifactError, match="aligner.safetensors of me/cot is no unlock-lens artifact; rename or remove it"):
        direction.push_to_hub("me/cot")
    assert "direction.safetensors" not in hub.files("me/cot")


def test_the_hub_judges_the_metadata_of_a_card(direction: ul.CapabilityDirection, hub: Hub) -> None:
    hub.create("me/cot", {"README.md": b"---\nlicense: none-of-these\n---\n"})
    with pytest.raises(ul.RemoteFailure, match="came to nothing: Invalid metadata in README.md.*\n- license none-of-these"):
        direction.push_to_hub("me/cot")
    assert "direction.safetensors" not in hub.files("me/cot")


def test_importing_the_library_does_not_import_the_client() -> None:
    code = "import sys, unlock_lens; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_as_users_do_it_in_processes_of_their_own(hub: Hub, tmp_path: Path) -> None:
    """One pushes, one reads elsewhere; nothing is set but the environment."""
    push = (
        "import torch, unlock_lens as ul\n"
        "print(ul.CapabilityDirection(torch.eye(2, 8), (0, 1)).push_to_hub('me/cot', private=True))"
    )
    pull = "import unlock_lens as ul\nprint(ul.CapabilityDirection.from_pretrained('me/cot').vectors.sum())"
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    printed: list[str] = []
    for code, home in ((push, "one"), (pull, "other")):
        settings = {**own, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / home), "HF_TOKEN": TOKEN}
        done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed == [f"{hub.url}/me/cot\n", "tensor(2.)\n"]
