"""The JSON of the contract as pydantic models: strict types, and no unknown fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

#: The first wrong element ends the check: a list of a million wrong ones is not a million errors.
TokenIds = Annotated[list[int], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Include = Literal["logprobs", "returns", "tokens"]


class Strict(BaseModel):
    """Strict types: `true`, `2.0` and `"3"` are not integers, and an unknown field is an error."""

    model_config = ConfigDict(strict=True, extra="forbid")


class TokensItem(Strict):
    """Prompt and response as token ids. This is the best form: nothing is tokenised again."""

    id: str | None = None
    prompt_token_ids: TokenIds
    response_token_ids: TokenIds


class SpansItem(Strict):
    """One sequence of several turns: rewards for the tokens whose mask is 1."""

    id: str | None = None
    token_ids: TokenIds
    response_mask: Annotated[TokenIds, Field(description="0 or 1, as long as token_ids")]


class TextItem(Strict):
    """Prompt and response as text. Each is tokenised separately, then they are joined."""

    id: str | None = None
    prompt: str
    response: str
    append_eos: bool = False


#: The content is checked in `densepath.chat.render`, where it is rendered. Its errors name the part.
_CONTENT = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
        {"type": "null"},
    ],
    "title": "Content",
    "description": "a string, or parts of type text; null beside an assistant's tool calls only",
}
TemplateKwargs = Annotated[
    dict[str, Any] | None, Field(description="the chat template's own variables, as in vLLM")
]


class Message(BaseModel):
    """One message of a chat. Other fields that a template reads (tool calls, names) are passed on to it."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str
    content: Annotated[Any, WithJsonSchema(_CONTENT)] = None


class ChatItem(Strict):
    """Chat messages, rendered by the SFT model's template with a generation prompt, then the response."""

    id: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True)]
    response: str
    append_eos: bool = False
    chat_template_kwargs: TemplateKwargs = None


class RewardsOptions(Strict):
    """The options of a request; also the `request` metadata of the safetensors form."""

    model: str | None = None
    model_version: Annotated[str | None, Field(description="409 when another version is being served")] = None
    include: Annotated[list[Include], Field(fail_fast=True)] = []
    gamma: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="of the returns")] = 1.0
    on_error: Literal["fail", "item"] = "fail"


class RewardsRequest(RewardsOptions):
    """The body of POST /v1/rewards."""

    items: Annotated[list[TokensItem | SpansItem | TextItem | ChatItem], Field(min_length=1)]


def _unicode(text: str) -> str:
    """Refuse half of a surrogate pair: metadata may have one, and no JSON answer can repeat it."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("half of a surrogate pair is not a character")
    return text


class PackedOptions(RewardsOptions):
    """The `request` metadata of the safetensors form, with the ids of all items in one list."""

    ids: Annotated[list[Annotated[str, AfterValidator(_unicode)] | None], Field(fail_fast=True)] | None = None


class ErrorBody(BaseModel):
    """An error in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: ErrorBody


class ScoredItem(BaseModel):
    """The rewards of one item: one for each scored token, in order, in nats."""

    index: int
    id: str | None = None
    status: Literal["ok"]
    rewards: list[float]
    sum: float
    ended: Annotated[bool, Field(description="the last scored token is an EOS token")]
    response_token_ids: list[int] | None = None
    positions: Annotated[
        list[int] | None, Field(description="spans form: the index in token_ids of each reward")
    ] = None
    sft_logprobs: list[float] | None = None
    reference_logprobs: list[float] | None = None
    returns: list[float] | None = None
    tokens: list[str] | None = None
    offsets: Annotated[
        list[tuple[int, int]] | None,
        Field(description="characters of the response text, text and chat forms"),
    ] = None


class FailedItem(BaseModel):
    """An item that could not be scored. It has no number."""

    index: int
    id: str | None = None
    status: Literal["error"]
    error: ErrorBody


class Usage(BaseModel):
    """How many tokens the scored items have."""

    prompt_tokens: int
    response_tokens: int
    cached_tokens: int


class RewardsAnswer(BaseModel):
    """The answer of POST /v1/rewards."""

    object: Literal["rewards"]
    id: str
    created: int
    model: str
    model_version: str
    items: list[ScoredItem | FailedItem]
    usage: Usage


class TokenizeText(Strict):
    """A text, in vLLM's form."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChat(Strict):
    """A chat, in vLLM's form."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    return_token_strs: bool = False
    chat_template_kwargs: TemplateKwargs = None


class TokenizeAnswer(BaseModel):
    """Token ids of the text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Strict):
    """Token ids to turn into text."""

    model: str | None = None
    tokens: TokenIds


class DetokenizeAnswer(BaseModel):
    """The text of the token ids."""

    prompt: str


class PairSources(BaseModel):
    """The names of the two checkpoints' directories, or `org/name@commit` for what came from the hub."""

    sft: str
    reference: str


class PairLimits(BaseModel):
    """The limits of one request. Clients split their requests by them."""

    max_items: int
    max_body_bytes: int
    max_queued_tokens: int


class DifferenceAnswer(BaseModel):
    """Differences between the engine and transformers, in nats, over all scored tokens of the probes."""

    largest: float
    mean: float


class VerifiedAnswer(BaseModel):
    """Whether the engine was compared with transformers before it served, and the result."""

    verified: bool
    reason: Annotated[str | None, Field(description="why it was not verified")]
    at: Annotated[int | None, Field(description="seconds since 1970")]
    against: Annotated[str | None, Field(description="transformers' version, its dtype and its device")]
    sft: Annotated[DifferenceAnswer | None, Field(description="of log p_sft")]
    reference: Annotated[DifferenceAnswer | None, Field(description="of log p_reference")]
    reward: DifferenceAnswer | None
    limit: Annotated[
        float | None, Field(description="the largest difference of log p_sft that was let pass, in nats")
    ]
    reference_limit: Annotated[float | None, Field(description="the same for log p_reference")]
    noise: Annotated[
        float | None,
        Field(description="the engine's largest difference from itself: alone, together, cold, cached; nats"),
    ]
    probes: int
    tokens: int
    left_out: Annotated[list[str], Field(description="probes that would have been too long")]


class SwapRequest(Strict):
    """Which pair to serve next."""

    sft: Annotated[str, Field(description="a directory under --pair-root")]
    reference: Annotated[str, Field(description="a directory under --pair-root")]


class SelftestAnswer(BaseModel):
    """What a self-test has found."""

    object: Literal["selftest"] = "selftest"
    model_version: str
    largest_difference: Annotated[
        float, Field(description="nats, between two scores of one token: alone or together, cold or warm")
    ]
    probes: Annotated[int, Field(description="sequences that were scored four times")]
    tokens: Annotated[int, Field(description="of these sequences")]


class PairAnswer(BaseModel):
    """The served pair."""

    object: Literal["pair"] = "pair"
    model: str
    version: str
    sources: PairSources
    dtype: Annotated[str, Field(description="in which the sft is computed")]
    reference_dtype: Annotated[str, Field(description="in which the reference is computed")]
    verified: VerifiedAnswer
    vocab_size: Annotated[
        int, Field(description="valid ids go from 0 to vocab_size - 1: rows that both embeddings have")
    ]
    context_length: int
    tokenizer_fingerprint: str
    chat_template_fingerprint: str | None
    eos_token_ids: list[int]
    limits: PairLimits


class ModelCard(BaseModel):
    """One model name that requests may use."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["densepath"] = "densepath"
    max_model_len: Annotated[int, Field(description="context length in tokens, as vLLM names it")]


class ModelsAnswer(BaseModel):
    """The list of models, in OpenAI's shape."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class VersionAnswer(BaseModel):
    """The versions of the software and of the pair."""

    version: str
    engine: str
    model_version: str


class StatusAnswer(BaseModel):
    """The state of the service."""

    status: str
