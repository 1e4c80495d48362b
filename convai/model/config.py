"""The part of config.json that the models read: sizes, dropout, activation, and where the history starts."""

from dataclasses import dataclass, field, fields
from typing import Any

from convai.errors import UserError

ARCHITECTURES = {"openai-gpt": "OpenAIGPTDoubleHeadsModel", "gpt2": "GPT2DoubleHeadsModel"}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")


@dataclass
class ModelConfig:
    """The part of config.json that the model reads; `extra` keeps all other keys for writing them back."""

    family: str
    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    activation: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    summary_first_dropout: float = 0.1
    initializer_range: float = 0.02
    n_inner: int | None = None  # width inside the feed-forward layers; None: four times n_embd
    history_start: int | None = None  # position of the first token after the persona; None: wherever the persona ends
    max_history: int | None = None  # exchanges before the turn to answer that it was trained with; None: unknown
    ranking_is_trained: bool = True  # whether the ranking head has learned anything
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config.json") -> "ModelConfig":
        """Read config.json's keys, the family by `model_type` or, in files older than that key, by `afn`.

        Raises UserError for another family, a missing or ill-typed size, or a setting that this model does not have.
        """
        family = values.get("model_type") or ("openai-gpt" if "afn" in values else "gpt2")
        if family not in ARCHITECTURES:
            raise UserError(f"{where}: model_type {family!r} is neither openai-gpt nor gpt2; use another checkpoint.")
        sizes: dict[str, int] = {}
        for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            size = values.get(key)
            if type(size) is not int or size < 1:
                raise UserError(f"{where}: {key} must be a positive whole number, not {size!r}.")
            sizes[key] = size
        if sizes["n_embd"] % sizes["n_head"]:
            raise UserError(f"{where}: n_embd {sizes['n_embd']} is not a multiple of n_head {sizes['n_head']}.")
        if values.get("scale_attn_by_inverse_layer_idx") or not values.get("scale_attn_weights", True):
            raise UserError(f"{where}: attention scaled by layer, or not at all, is not supported.")
        # GPT's "gelu" is the tanh form that later configs call "gelu_new".
        afn = values.get("afn", "gelu")
        activation = (
            {"gelu": "gelu_new"}.get(afn, afn)
            if family == "openai-gpt"
            else values.get("activation_function", "gelu_new")
        )
        if activation not in ACTIVATIONS:
            raise UserError(f"{where}: unknown activation {activation!r}; known are {', '.join(ACTIVATIONS)}.")
        settings = ("layer_norm_epsilon", "initializer_range", "summary_first_dropout", "embd_pdrop", "resid_pdrop",
                    "attn_pdrop")  # fmt: skip
        _check_ranking_head(values, where)
        max_history = values.get("max_history")
        if max_history is not None and (type(max_history) is not int or max_history < 0):
            raise UserError(f"{where}: max_history must be a whole number of at least 0, not {max_history!r}.")
        n_inner = values.get("n_inner") if family == "gpt2" else None
        if n_inner is not None and (type(n_inner) is not int or n_inner < 1):
            raise UserError(f"{where}: n_inner must be a positive whole number or null, not {n_inner!r}.")
        history_start = values.get("history_start")
        allowed = range(1, sizes["n_positions"] - 1)  # a reply needs <speaker1> and <eos>
        if history_start is not None and (type(history_start) is not int or history_start not in allowed):
            raise UserError(f"{where}: history_start must be from 1 to n_positions - 2, not {history_start!r}.")
        optional = {key: values[key] for key in settings if key in values}
        return cls(
            family,
            **sizes,
            activation=activation,
            **optional,
            n_inner=n_inner,
            history_start=history_start,
            max_history=max_history,
            ranking_is_trained=values.get("ranking_is_trained", True) is not False,
            extra=dict(values),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json, as transformers reads it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("family", "activation", "extra")}
        unsaid = [key for key in ("n_inner", "history_start", "max_history") if own[key] is None]
        unsaid += ["ranking_is_trained"] if self.ranking_is_trained else []
        own = {key: value for key, value in own.items() if key not in unsaid}
        # n_special is how pytorch_pretrained_bert counted rows beyond vocab_size, which now counts all.
        extra = {key: value for key, value in self.extra.items() if key not in {"n_special", *unsaid}}
        activation = {"afn": self.extra.get("afn", "gelu")} if self.family == "openai-gpt" else {}
        if self.family == "gpt2":
            activation = {"activation_function": self.activation}
        names = {"model_type": self.family, "architectures": [ARCHITECTURES[self.family]]}
        return extra | names | own | activation | {"tie_word_embeddings": True, "num_labels": 1}


def _check_ranking_head(values: dict[str, Any], where: str) -> None:
    """Raise UserError for a ranking head that is not a linear map of the last position's hidden state."""
    known = {
        "summary_type": ("cls_index", "last"),
        "summary_activation": (None,),
        "summary_use_proj": (True,),
        "summary_proj_to_labels": (True,),
    }
    for key, allowed in known.items():
        if key in values and values[key] not in allowed:
            raise UserError(f"{where}: a ranking head with {key} {values[key]!r} is not supported; train or use one "
                            f"with {allowed[0]!r}.")  # fmt: skip
    if values.get("add_cross_attention"):
        raise UserError(f"{where}: a model with cross-attention is not supported; use another checkpoint.")
