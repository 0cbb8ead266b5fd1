"""Vectors of a served GGUF embedder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from luthier.llamacpp.runtime import LlamaServer
from luthier.schema.protocols import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNIT_LENGTH, AS_IT_IS = 2, -1
"""llama.cpp's ``embd_normalize``: Euclidean norm, none."""
TEXTS_AT_ONCE = 16


class LlamaEmbedder:
    """A served GGUF model as a `schema.protocols.Embedder`.

    read: texts and their role to token ids, prompts and special tokens among them, cut to the longest
    input (llama.cpp refuses what is longer). normalize: whether vectors have unit length.
    """

    def __init__(
        self,
        server: LlamaServer,
        read: Callable[[Sequence[str], str | None], list[list[int]]],
        *,
        label: str,
        weights_digest: str,
        normalize: bool,
    ) -> None:
        self.server, self.read, self.normalize = server, read, normalize
        self.label, self.weights_digest = label, weights_digest

    def encode(
        self, texts: Sequence[str], *, role: str | None = None, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Vectors in the order of texts: [texts, dims] float32. Equal texts are computed once.

        Errors: Unreachable when the server dies, UsageError for what it refuses.
        """
        import numpy as np

        unique = list(dict.fromkeys(texts))
        encoded = self.read(unique, role)
        found: list[NDArray[np.float32]] = []
        for start in range(0, len(unique), TEXTS_AT_ONCE):
            found += self._ask(encoded[start : start + TEXTS_AT_ONCE])
            if progress is not None:
                progress(len(found), len(unique))
        place = {text: i for i, text in enumerate(unique)}
        return np.stack([found[place[text]] for text in texts])

    def _ask(self, encoded: Sequence[list[int]]) -> list[NDArray[np.float32]]:
        import numpy as np

        body = {"content": list(encoded), "embd_normalize": UNIT_LENGTH if self.normalize else AS_IT_IS}
        answer = sorted(self.server.request("/embedding", body), key=lambda one: int(one["index"]))
        return [np.asarray(one["embedding"], dtype=np.float32).reshape(-1) for one in answer]
