"""Inspect: the model provider `unlock-lens`, which runs the exact hook (docs/evaluate.md).

Inspect finds it by itself, by the entry point `inspect_ai` of this package. The prompt is the whole conversation in the model's
chat template, up to where the assistant answers; its last token is the last prompt token.
"""
# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUntypedClassDecorator=false
# Inspect is an extra of its own, and need not be installed where this is checked.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from unlock_lens.core.generation import Completion, complete
from unlock_lens.core.steering import check_template, edits_for
from unlock_lens.core.tokens import check_last_token
from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput, require
from unlock_lens.evidence._keys import hooks_of
from unlock_lens.hosts import backend_of, open_model

require("inspect", "inspect_ai")

import anyio  # noqa: E402  it is asked for above
from anyio import to_thread  # noqa: E402
from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput, modelapi  # noqa: E402

_GATHERED = 0.05
"""Seconds in which requests join a batch."""
_NOT_SERVED = (
    "top_p", "top_k", "best_of", "frequency_penalty", "presence_penalty", "logit_bias", "seed", "num_choices", "logprobs",
    "top_logprobs", "prompt_logprobs", "response_schema",
)  # fmt: skip
"""Settings that would change what is written, or ask for more than text."""
_BUDGET = 2048
"""New tokens where nobody says how many, as in Inspect's own local provider."""


@dataclass(eq=False)
class _Asked:
    prompt: str
    settings: tuple[int, float, tuple[str, ...]]
    completion: Completion | None = None


@modelapi("unlock-lens")
class SteeredAPI(ModelAPI):
    """A steered model for Inspect: `--model unlock-lens/FOLDER-OR-HUB-ID -M key=cot.key.safetensors`.

    Greedy unless a temperature is given. Requests that arrive together run as one batch.

    Args:
        model_name: folder or hub id.
        base_url: not used.
        api_key: not used.
        config: Inspect's settings.
        key: a saved hook: file, folder or hub id; or a `SteeringHook`, or several. None evaluates the unsteered model.
        backend: which framework opens the model.
        dtype: in which its weights are opened.
        batch_size: requests in one forward pass.
        chat: whether the conversation is put into the model's chat template; otherwise its texts are joined by blank lines.
        model: a model that is open already, instead of model_name.

    Raises:
        InvalidInput: no such model, a tokenizer without a chat template, or one that ends every prompt with a special token.
        IncompatibleModel: the key was made for a different model.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: Any = GenerateConfig(),  # noqa: B008  as Inspect's own providers
        key: Any = None,
        backend: str = "transformer_lens",
        dtype: str = "float32",
        batch_size: int = 8,
        chat: bool = True,
        model: Any = None,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self.model = open_model(model_name, backend, dtype) if model is None else model
        self.adapter, self.batch_size, self.chat = backend_of(self.model), batch_size, chat
        hooks = hooks_of(key)
        edits_for(self.adapter, hooks)  # a key of another model is refused before any sample is read
        if chat and not self.adapter.chat_template:
            raise InvalidInput(
                f"the tokenizer of {self.adapter.identity.name} has no chat template; set tokenizer.chat_template, or give "
                "-M chat=false, which joins the texts of a conversation by blank lines"
            )
        check_template(hooks, Variant(self.model, ["A"], chat=chat))
        if not chat:
            check_last_token(Variant(self.model, ["A"]))
        self.hooks = [replace(hook, chat_template_hash=None) for hook in hooks]  # it was compared above
        self._waiting: list[_Asked] = []
        self._alone = anyio.Lock()

    def max_connections(self) -> int:
        """How many requests Inspect sends at a time."""
        return self.batch_size

    def max_tokens(self) -> int | None:
        """New tokens where nobody says how many."""
        return _BUDGET

    async def generate(self, input: list[Any], tools: list[Any], tool_choice: Any, config: Any) -> Any:
        """One completion of a conversation.

        Raises:
            InvalidInput: tools, settings that are not served, or a message that is not text.
        """
        del tool_choice
        if tools:
            raise InvalidInput("tools were given, and a steered model is asked for text alone; leave use_tools out")
        if other := [name for name in _NOT_SERVED if getattr(config, name, None) is not None]:
            raise InvalidInput(f"the settings {', '.join(other)} are not served; max_tokens, temperature and stop_seqs are")
        settings = config.max_tokens or _BUDGET, float(config.temperature or 0.0), tuple(config.stop_seqs or ())
        asked = _Asked(self.prompt(input), settings)
        self._waiting.append(asked)
        await anyio.sleep(_GATHERED)
        async with self._alone:
            if asked.completion is None:
                await self._answer([other for other in self._waiting if other.settings == settings])
        completion = asked.completion
        if completion is None:
            raise InvalidInput("the batch of this request failed; the error of another request in it says why")
        return ModelOutput.from_content(self.model_name, completion.text, "stop" if completion.ended else "max_tokens")

    def prompt(self, messages: Sequence[Any]) -> str:
        """The text that the model reads for a conversation.

        Raises:
            InvalidInput: a message that holds something else than text.
        """
        turns: list[dict[str, str]] = []
        for message in messages:
            content = message.content
            if not isinstance(content, str) and any(part.type != "text" for part in content):
                raise InvalidInput(f"a message of the role {message.role} holds something else than text; give text alone")
            turns.append({"role": message.role, "content": message.text})
        if not self.chat:
            return "\n\n".join(turn["content"] for turn in turns)
        how: dict[str, Any] = {"chat_template": self.adapter.chat_template, "tokenize": False, "add_generation_prompt": True}
        return self.adapter.tokenizer.apply_chat_template(turns, **how)

    async def _answer(self, batch: list[_Asked]) -> None:
        self._waiting = [asked for asked in self._waiting if asked not in batch]
        budget, temperature, stop = batch[0].settings
        variant = Variant(self.model, [asked.prompt for asked in batch], add_special_tokens=not self.chat)
        options: dict[str, Any] = {"temperature": temperature, "progress": False, "stop": stop}
        written = await to_thread.run_sync(partial(complete, variant, self.hooks, budget, self.batch_size, **options))
        for asked, completion in zip(batch, written, strict=True):
            asked.completion = completion
