"""The tokenizer of an artifact with a text encoder: `tokenizer.json`, which the library `tokenizers` reads."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.checks import truncate
from runtime.errors import BackendError, RequestError

MAX_CHARACTERS = 10_000
"""The most characters of a prompt. No published model reads as many tokens as such a text has."""


class PromptTokenizer:
    """Turns prompts into the numbers of tokens. The library is imported with the first prompt."""

    def __init__(self, content: bytes) -> None:
        """Take the content of a `tokenizer.json` whose hash was compared."""
        self._content = content

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise BackendError(
                f"prompts need the Python package {error.name}; pip install 'mar-runtime[prompt]'"
            ) from None
        try:
            tokenizer = Tokenizer.from_str(self._content.decode())
        except Exception as error:  # the library raises Exception itself
            raise BackendError(f"tokenizer.json cannot be read ({truncate(str(error))}); export again") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @property
    def size(self) -> int:
        """The number of its tokens: one more than the largest number."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def count(self, text: str) -> int:
        """Return the number of tokens of a text. Raises `BackendError` if the library is not installed."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def ids(self, name: str, text: object, most: int) -> NDArray[np.int64]:
        """Return the tokens of a prompt, int64 [n]; no token for the empty text. No special token is added.

        Args:
            name: The name of the argument, for messages.
            text: The prompt.
            most: The most tokens that it may have.

        Raises:
            RequestError: It is no text, too long, or has no letter that the tokenizer knows.
            BackendError: The library is not installed.
        """
        if not isinstance(text, str):
            raise RequestError(f"{name} must be a text, found {truncate(text)}")
        if len(text) > MAX_CHARACTERS:
            raise RequestError(f"{name} must have at most {MAX_CHARACTERS} characters, found {len(text)}; shorten it")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{name} must be Unicode, found half of a surrogate pair in {truncate(text)}") from None
        ids = np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        if len(ids) > most:
            raise RequestError(f"{name} must have at most {most} tokens, found {len(ids)}; shorten it")
        if text and not len(ids):  # otherwise it would be drawn as the empty prompt
            raise RequestError(f"{name} has no token that the model knows, found {truncate(text)}; use other words")
        return ids
