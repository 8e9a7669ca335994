"""Which tokenizer a TransformerLens model was opened with. The host holds one that it loaded itself, which adds BOS.

Two of its functions are watched from when this package is imported; they do what they did before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any
from weakref import WeakKeyDictionary

from unlock_lens.errors import caution

Function = Callable[..., Any]
_made_from: WeakKeyDictionary[Any, Callable[[], Any]] = WeakKeyDictionary()
"""For each tokenizer that TransformerLens made, what gives the one that was meant: the user's, or the published one."""
_kept: WeakKeyDictionary[Any, None] = WeakKeyDictionary()
"""Tokenizers of users that TransformerLens kept, because they add BOS."""


def meant_by(held: Any) -> Any:
    """The tokenizer that the user gave, or the published one where none was given, of one that TransformerLens holds.

    Of a model that was opened before this package was imported, only the name of the tokenizer is known.
    """
    if held in _made_from:
        return _made_from[held]()
    if held in _kept or not adds_bos(held):
        return held
    name = str(held.name_or_path)
    published = _published(name)
    if published is None or adds_bos(published):
        return held
    caution(
        f"the model with the tokenizer {name} was opened before unlock_lens was imported, and TransformerLens added BOS to its "
        "tokenizer; the published one, which does not add BOS, is used. To use your own tokenizer, import unlock_lens first"
    )
    return published


def adds_bos(tokenizer: Any) -> bool:
    """Whether a text's ids begin with BOS."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _published(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError):
        return None


def _loading(load: Function) -> Function:
    """TransformerLens loads a tokenizer where none is given."""

    @wraps(load)
    def watched(name: str, *args: Any, **how: Any) -> Any:
        held = load(name, *args, **how)
        if how.pop("add_bos_token", False):
            _made_from[held] = partial(load, name, *args, **how)
        return held

    return watched


def _reloading(reload: Function) -> Function:
    """TransformerLens loads a tokenizer again that was given and adds no BOS."""

    @wraps(reload)
    def watched(tokenizer: Any) -> Any:
        held = reload(tokenizer)
        if held is not tokenizer:
            _made_from[held] = lambda: tokenizer
        elif held not in _made_from:
            _kept[held] = None
        return held

    return watched


_WATCHED: dict[str, tuple[str, Callable[[Function], Function]]] = {
    "transformer_lens.utilities.hf_utils": ("autotokenizer_with_special_token_compat", _loading),
    "transformer_lens.utilities.tokenize_utils": ("get_tokenizer_with_bos", _reloading),
}


def _watch(defining: str) -> None:
    """Replace the function in every module that has it."""
    name, watching = _WATCHED[defining]
    function = getattr(sys.modules[defining], name, None)
    if function is None:
        return
    watched = watching(function)
    for path, module in list(sys.modules.items()):
        if path.startswith("transformer_lens") and getattr(module, name, None) is function:
            setattr(module, name, watched)


class _Watcher(MetaPathFinder):
    """Watches a module's function as soon as the module was imported."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname in _WATCHED else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            _watch(fullname)

        spec.loader.exec_module = exec_module
        return spec


def watch() -> None:
    """Watch TransformerLens, whether it was imported already or is imported later."""
    for defining in _WATCHED.keys() & sys.modules.keys():
        _watch(defining)
    sys.meta_path.insert(0, _Watcher())
