"""lm-evaluation-harness: its model class `unlock-lens`, which runs the exact hook (docs/evaluate.md).

The prompt is what the harness calls the context, so an edit at the last prompt token falls on the context's last token:

    generate_until           the context
    loglikelihood            the context without the spaces at its end, which the harness counts to the continuation;
                             where it is empty, the BOS token (EOS, for a tokenizer without one)
    loglikelihood_rolling    that same token before the first window; before later ones, the tokens that the harness repeats
"""
# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# The harness is an extra of its own, and need not be installed where this is checked.

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from unlock_lens.core.generation import complete
from unlock_lens.core.steering import check_template, edits_for
from unlock_lens.core.tokens import check_last_token
from unlock_lens.core.variant import Variant, padded
from unlock_lens.errors import InvalidInput, caution, require
from unlock_lens.evidence._keys import Key, hooks_of
from unlock_lens.evidence._pairs import Pairs
from unlock_lens.hosts import backend_of, open_model

require("lm-eval", "lm_eval")

from lm_eval.api.model import TemplateLM  # noqa: E402  it is asked for above
from lm_eval.api.registry import model_registry, register_model  # noqa: E402
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs, resolve_max_length  # noqa: E402
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402

NAME = "unlock-lens"
_NEUTRAL: dict[str, tuple[Any, ...]] = {"top_p": (None, 1, 1.0), "top_k": (None, 0), "num_beams": (None, 1)}
"""Settings of generation that change nothing at these values; greedy decoding ignores the first two altogether."""
Ids = list[int]
Request = tuple[Any, Ids, Ids]
"""What the harness calls it, the ids of its context, and those of its continuation."""


class SteeredLM(TemplateLM):
    """A steered model for lm-evaluation-harness.

    Args:
        pretrained: folder or hub id; or a model that is open in TransformerLens or nnsight.
        key: a saved hook: file, folder or hub id; or a `SteeringHook`, or several. None evaluates the unsteered model.
        backend: which framework opens it by name.
        dtype: in which its weights are opened by name.
        batch_size: requests in one forward pass.
        max_length: tokens of context and continuation; None asks the model's config.
        device: where a model opens by name, by default on the GPU where there is one; checked against the device of an open
            model. Without a GPU "cuda" means the CPU, as in the harness' own models.
        max_batch_size: for batch_size="auto", which is not served.

    Raises:
        InvalidInput: no such model, a batch size that is not a number, another device than the model's, a tokenizer that ends
            every prompt with a special token.
        IncompatibleModel: the key was made for a different model.
        ArtifactError: a file that is not a key.

    Example:
        >>> from lm_eval import simple_evaluate
        >>> from unlock_lens.evidence.harness import SteeredLM
        >>> lm = SteeredLM("org/small", key="cot.key.safetensors", backend="nnsight", batch_size=8)
        >>> simple_evaluate(lm, tasks=["ifeval"], apply_chat_template=True)  # doctest: +SKIP
    """

    def __init__(
        self,
        pretrained: Any,
        key: Key = None,
        backend: str = "transformer_lens",
        dtype: str = "float32",
        batch_size: int | str = 8,
        max_length: int | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InvalidInput(f"batch_size={batch_size!r} was given; give a number, such as 8")
        self.batch_size = int(batch_size)
        self.hooks = hooks_of(key)
        if device and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # the harness' own default
        named = isinstance(pretrained, str)
        self.model = open_model(pretrained, backend, dtype, device=device) if named else pretrained
        self.adapter = backend_of(self.model)
        self.tokenizer = self.adapter.tokenizer
        check_last_token(Variant(self.model, ["A"]))
        self._edits = edits_for(self.adapter, self.hooks)  # a key of another model is refused before any task is read
        config = getattr(self.adapter.root, "config", None) or self.model.cfg
        self.max_length = max_length or resolve_max_length(config, self.tokenizer)
        self._device = next(self.adapter.root.parameters()).device
        if device is not None and torch.device(device).type != self._device.type:
            raise InvalidInput(
                f"device={device!r} was given, and the model is on {self._device}; open the model there and give it as "
                "pretrained=, or hide the GPU (CUDA_VISIBLE_DEVICES=)"
            )
        self._chat = self._checked = False

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context, and is then the prompt.

        Raises:
            InvalidInput: the tokenizer has neither BOS nor EOS.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise InvalidInput(
            f"a context is empty, and the tokenizer of {self.adapter.identity.name} has neither a BOS nor an EOS token to "
            "stand for it; set tokenizer.bos_token"
        )

    @property
    def tokenizer_name(self) -> str:
        """For the harness' caches of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What is kept with the results: which model this was, and what steered it."""
        return {
            "model_identity": str(self.adapter.identity),
            "steering": [{**hook.description, "direction": str(hook.direction.model)} for hook in self.hooks],
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> Ids:
        """Ids of a text, as the harness' own `hf` reads it: BOS is not put before one that begins with it."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.bos_token)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat template of the model's tokenizer.

        Raises:
            InvalidInput: there is none.
        """
        template = self.adapter.chat_template
        if not template:
            raise InvalidInput(
                f"the tokenizer of {self.adapter.identity.name} has no chat template; set tokenizer.chat_template, or leave "
                "--apply_chat_template out"
            )
        self._chat = True
        return self.tokenizer.apply_chat_template(
            chat_history,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `apply_chat_template` will use; None where none was asked for."""
        return self.adapter.chat_template if chat_template else None

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Completions, which end before the first of the strings `until`.

        Raises:
            InvalidInput: settings of generation that are not served, or no room for a prompt.
        """
        self._check()
        found = [""] * len(requests)
        settings = [_generation(request.args[1]) for request in requests]
        hooks = [replace(hook, chat_template_hash=None) for hook in self.hooks]  # it was compared above
        for setting in dict.fromkeys(settings):
            rows = [row for row, of_row in enumerate(settings) if of_row == setting]
            budget, temperature, stop = setting
            prompts = [self._prompt(requests[row].args[0], budget) for row in rows]
            of_ids = padded(self.tokenizer, prompts)
            variant = Variant(self.model, tokens=of_ids.ids, attention_mask=of_ids.mask)
            written = complete(
                variant, hooks, budget, self.batch_size, temperature=temperature, progress=not disable_tqdm, stop=stop
            )
            for row, completion in zip(rows, written, strict=True):
                found[row] = completion.text
                self.cache_hook.add_partial("generate_until", requests[row].args, completion.text)
        return found

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation in nats, and whether it is what greedy decoding writes.

        Raises:
            InvalidInput: a continuation that is empty, or of which the tokenizer makes no token.
        """
        for request in requests:
            if not request.args[1]:
                raise _empty(request.args[0])
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text in nats, read in windows of the model's length."""
        windows = [self._windows(request.args[0]) for request in requests]
        scored = iter(self._loglikelihood_tokens([(None, *window) for of_text in windows for window in of_text]))
        found = [sum(next(scored)[0] for _ in of_text) for of_text in windows]
        for request, value in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        self._check()
        # Requests that differ in their last token alone, such as the choices A to D, are one pass.
        places: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for i, (told, context, continuation) in enumerate(requests):
            if not continuation:
                raise _empty(told[0] if told else "")
            context, continuation = self._within(context, continuation)
            places.setdefault((tuple(context), tuple(continuation[:-1])), []).append(i)
        if not places:
            return []
        passes = list(places.values())
        following = [requests[of_pass[0]][2] for of_pass in passes]
        prompts = padded(self.tokenizer, [context for context, _ in places])
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for scored in Pairs(self.adapter, self.adapter, prompts, following).scored(self.hooks, self.batch_size):
            for row, log_probs in zip(scored.rows.tolist(), scored.log_probs, strict=True):
                for i in passes[row]:
                    found[i] = _likelihood(log_probs, requests[i][2])
        for request, answer in zip(requests, found, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return found

    def _windows(self, text: str) -> Iterable[tuple[Ids, Ids]]:
        ids = self.tok_encode(text)
        options: dict[str, Any] = {"prefix_token": self.prefix_token_id, "max_seq_len": self.max_length, "context_len": 1}
        return [make_disjoint_window(window) for window in get_rolling_token_windows(ids, **options)]

    def _prompt(self, context: str, budget: int) -> Ids:
        """The ids of a prompt that leaves room for what is to be written."""
        if (room := self.max_length - budget) < 1:
            raise InvalidInput(
                f"{budget} new tokens were asked for, which leaves no room for a prompt in the {self.max_length} positions of "
                f"{self.adapter.identity.name}; give --gen_kwargs max_gen_toks=NUMBER"
            )
        ids = self.tok_encode(context) or [self.prefix_token_id]
        return ids if len(ids) <= room else self._cut(ids, room)

    def _within(self, context: Ids, continuation: Ids) -> tuple[Ids, Ids]:
        """Of the context as much as fits before the continuation, whose last token is predicted and not read."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise InvalidInput(
                f"a continuation of {len(continuation)} tokens was given; {self.adapter.identity.name} has {self.max_length} "
                "positions: leave this task out, or give max_length= if the model reads more"
            )
        return (context if len(context) <= room else self._cut(context, room)), continuation

    def _cut(self, context: Ids, room: int) -> Ids:
        caution(
            f"a context of {len(context)} tokens is cut to its last {room}: {self.adapter.identity.name} has "
            f"{self.max_length} positions"
        )
        return context[-room:]

    def _check(self) -> None:
        """Compare, once, the chat template of the prompts with that of the key: the harness tells of it when it asks first."""
        if not self._checked:
            check_template(self.hooks, Variant(self.model, ["A"], chat=self._chat))
            self._checked = True


def register() -> None:
    """Make `--model unlock-lens` known to the harness, which looks for no plugins by itself."""
    if NAME not in model_registry:
        register_model(NAME)(SteeredLM)


def main(arguments: Sequence[str]) -> None:
    """The harness' own command line, with `--model unlock-lens` known, and taken where no model is named."""
    from lm_eval.__main__ import cli_evaluate

    register()
    given = [argument for argument in arguments if argument != "run"]
    is_run = not given or given[0] not in ("ls", "validate")
    named = any(argument.partition("=")[0] in ("--model", "-M") for argument in given)
    sys.argv = ["lm_eval", *(["run"] if is_run else []), *given, *(["--model", NAME] if is_run and not named else [])]
    cli_evaluate()


def _likelihood(log_probs: Tensor, continuation: Ids) -> tuple[float, bool]:
    of_ids, ids = log_probs[: len(continuation)], torch.tensor(continuation)
    return float(of_ids.gather(-1, ids.unsqueeze(-1)).sum()), bool((of_ids.argmax(-1) == ids).all())


def _generation(given: dict[str, Any]) -> tuple[int, float, tuple[str, ...]]:
    """Budget, temperature and stop strings of a request.

    Raises:
        InvalidInput: anything else that would change what is written.
    """
    asked = dict(normalize_gen_kwargs(given))
    budget, until, samples = (asked.pop(name) for name in ("max_gen_toks", "until", "do_sample"))
    temperature = float(asked.pop("temperature", None) or 0.0) if samples else 0.0
    if samples and not temperature:
        raise InvalidInput(
            "do_sample was given without a temperature above 0; give --gen_kwargs do_sample=true,temperature=0.7"
        )
    greedy = () if temperature else ("top_p", "top_k")
    if other := [name for name, value in asked.items() if name not in greedy and value not in _NEUTRAL.get(name, (None,))]:
        raise InvalidInput(
            f"the settings {', '.join(sorted(other))} of generation are not served; max_gen_toks, until, do_sample and "
            "temperature are"
        )
    return int(budget), temperature, tuple(string for string in chain(until or ()) if string)


def _empty(context: str) -> InvalidInput:
    return InvalidInput(
        f"the continuation after {context[-60:]!r} is empty, or the tokenizer makes no token of it; its log-likelihood would "
        "be 0, which beats every choice: mend the task's choices (doc_to_choice), or leave the task out"
    )


register()
