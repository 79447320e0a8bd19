"""Recording of expert choices of a mixture-of-experts model of the ``transformers`` library, by
hooks on its routers.

A router is a module called ``gate`` or ``router`` beside one called ``experts``. Ids that a router
returns (all of transformers 5, DeepSeek's before) are used; from logits (Llama 4; Mixtral, OLMoE
and Qwen before) the ``top_k`` largest are taken, which is the choice of every router without groups
and biases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simulator.base.errors import UserError
from simulator.base.progress import Progress
from simulator.runtime.recording.trace_file import Recording

MAX_CONTEXT = 512
"""Most tokens of a recorded sequence."""
_ROUTERS = {"gate", "router"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k")


def record_transformers(
    name: str, texts: dict[str, bytes], num_tokens: int, where: str, tick: Progress
) -> Recording:
    """Run a model over text, and record its routers' choices.

    Args:
        name: a folder, or a name on the Hugging Face Hub.
        texts: text by domain; the same number of tokens of each, where it has them.
        where: source of the text, for the provenance.

    Raises:
        UserError: if the model cannot be loaded, has no router that is understood, or the text is
            too short.
    """
    import transformers

    model = _load_model(name)
    config = model.config.get_text_config()
    tokenizer, tokenised = _tokenizer(name)
    longest = int(getattr(config, "max_position_embeddings", MAX_CONTEXT))
    context = min(MAX_CONTEXT, longest, max(1, num_tokens // len(texts)))
    wanted = max(1, round(num_tokens / context / len(texts)))
    sequences: list[tuple[str, list[int]]] = []
    for domain, text in texts.items():
        # Four bytes a token are typical; more text than that would only be tokenised and thrown
        # away.
        ids = _token_ids(text[: 16 * wanted * context], tokenizer, int(config.vocab_size))
        sequences += [
            (domain, ids[start : start + context])
            for start in range(0, len(ids) - context + 1, context)
        ][:wanted]
    if not sequences:
        raise UserError(
            f"{where}: too little text: no domain has the {context} tokens of a sequence"
        )
    recorded, done = [], 0
    for _, ids in sequences:
        tick("recording", done, context * len(sequences))
        recorded.append(routed_ids(model, ids))
        done += context
    tick("recording", done, context * len(sequences))
    return Recording(
        topk_ids_LTK=np.concatenate(recorded, axis=1),
        seq_lens_Q=np.full(len(sequences), context),
        domain_Q=[domain for domain, _ in sequences],
        num_experts=_number(config, _NUM_EXPERTS, name),
        provenance=(
            f"{name} ({type(model).__name__}), run by transformers {transformers.__version__} and "
            f"torch {torch.__version__}; {done:,} tokens of {where}, {tokenised}; "
            f"sequences of {context} tokens"
        ),
    )


def routed_ids(model: Any, token_ids: list[int]) -> NDArray[np.int16]:
    """Experts that a model's routers choose for a sequence, ``topk_ids_LTK``.

    Raises:
        UserError: if it has no router, or one that is not understood.
    """
    with _hook_routers(model) as chosen, torch.no_grad():
        model(input_ids=torch.tensor([token_ids], device=model.device), use_cache=False)
    return torch.stack([ids_TK.cpu() for ids_TK in chosen]).to(torch.int16).numpy()


@contextmanager
def _hook_routers(model: Any) -> Iterator[list[Tensor]]:
    """Hook every router, so that its choices, ``[T, K]``, are appended to the list."""
    chosen: list[Tensor] = []
    hooks = []
    for owner in model.modules():
        children = dict(owner.named_children())
        for called, router in children.items():
            if called in _ROUTERS and "experts" in children:
                hooks.append(router.register_forward_hook(_keeper(model, chosen)))
    if not hooks:
        raise UserError(
            f"{type(model).__name__}: has no router (a module 'gate' or 'router' beside "
            "'experts'); is it a mixture of experts?"
        )
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


def _keeper(model: Any, chosen: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    config = model.config.get_text_config()
    top_k = _number(config, _TOP_K, type(model).__name__)
    num_experts = _number(config, _NUM_EXPERTS, type(model).__name__)

    def keep(router: nn.Module, _: Any, result: Any) -> None:
        tensors = [
            entry
            for entry in (result if isinstance(result, tuple) else (result,))
            if isinstance(entry, Tensor)
        ]
        ids = [
            tensor
            for tensor in tensors
            if not tensor.is_floating_point() and tensor.shape[-1] == top_k
        ]
        logits = [
            tensor
            for tensor in tensors
            if tensor.is_floating_point() and tensor.shape[-1] == num_experts
        ]
        has_groups = int(getattr(config, "n_group", None) or 1) > 1
        if ids:
            chosen.append(ids[0].reshape(-1, top_k))
        elif logits and not has_groups and not hasattr(router, "e_score_correction_bias"):
            chosen.append(logits[-1].reshape(-1, num_experts).topk(top_k, dim=-1).indices)
        else:
            raise UserError(
                f"{type(model).__name__}: its router {type(router).__name__} returns no expert "
                "ids, nor logits that alone decide, so what it chooses is not known"
            )

    return keep


def _load_model(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    if (
        "/" in name
        and not Path(name).exists()
        and (name.startswith((".", "/", "~")) or name.count("/") > 1)
    ):
        raise UserError(f"{name}: no such folder")
    try:
        model = AutoModelForCausalLM.from_pretrained(name, torch_dtype="auto")
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise UserError(
            f"{name}: transformers cannot load it as a language model: {reason}"
        ) from None
    return model.eval()


def _tokenizer(name: str) -> tuple[Any, str]:
    """Load the model's tokenizer and describe it; ``None`` for a folder without one."""
    from transformers import AutoTokenizer

    folder = Path(name)
    if folder.is_dir() and not any((folder / file).exists() for file in _TOKENIZER_FILES):
        return None, "bytes modulo the vocabulary as token ids (the folder has no tokenizer)"
    try:
        return AutoTokenizer.from_pretrained(name), "its own tokenizer"
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise UserError(f"{name}: its tokenizer cannot be loaded: {reason}") from None


def _token_ids(text: bytes, tokenizer: Any, vocab_size: int) -> list[int]:
    if tokenizer is None:
        return [byte % vocab_size for byte in text]
    ids: list[int] = tokenizer(
        text.decode("utf-8", errors="replace"), add_special_tokens=False, verbose=False
    )["input_ids"]
    return ids


def _number(config: Any, names: tuple[str, ...], where: str) -> int:
    """Read the first of some keys that a configuration has.

    Raises:
        UserError: if it has none.
    """
    for key in names:
        if isinstance(value := getattr(config, key, None), int):
            return value
    raise UserError(
        f"{where}: its configuration has none of {', '.join(names)}; is it a mixture of experts?"
    )
