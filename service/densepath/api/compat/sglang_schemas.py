"""SGLang's JSON of POST /generate: the part that a request for scores uses."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, Tag

from densepath.api.compat.prompt_scores import ListsOfIds, Top, refused_as
from densepath.api.schemas import Strict, Texts, TokenIds


def _form(value: Any) -> str:
    """One list or several, by the first element: trying both on a long list takes seconds."""
    return "lists" if isinstance(value, list) and value and isinstance(value[0], list) else "ids"


InputIds = Annotated[
    Annotated[TokenIds, Tag("ids")] | Annotated[ListsOfIds, Tag("lists")],
    Discriminator(_form),
    refused_as("must be a list of token ids, or several such lists"),
]
StartLen = Annotated[int, Field(ge=-1)]
#: A token of a log-probability list: its log-probability, its id, its text where it is asked for.
TokenLogp = tuple[float | None, int, str | None]


class SglangSampling(Strict):
    """SGLang's sampling parameters. Those that only sampling would use are accepted and change no score."""

    max_new_tokens: Annotated[int | None, Field(description="0 or 1; 1 adds the likeliest next token")] = 128
    n: int | None = 1
    temperature: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="0 or 1 with a next token; else of no effect"),
    ] = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    sampling_seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    min_new_tokens: int | None = 0
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = False
    skip_special_tokens: bool | None = True
    spaces_between_special_tokens: bool | None = True
    no_stop_trim: bool | None = False
    stream_interval: int | None = None
    regex: None = None
    json_schema: None = None
    ebnf: None = None
    structural_tag: None = None
    logit_bias: None = None
    custom_params: None = None
    beam_width: None = None


class SglangRequest(Strict):
    """A request for scores on SGLang's generate route: one prompt, or a batch of prompts."""

    rid: str | list[str] | None = None
    model: Annotated[
        str | None, Field(description="`sft`, which is the default, `reference` or `dpr-teacher`")
    ] = None
    text: str | Texts | None = None
    input_ids: InputIds | None = None
    sampling_params: SglangSampling | list[SglangSampling] | None = None
    return_logprob: bool | list[bool] | None = False
    logprob_start_len: Annotated[
        StartLen | list[StartLen] | None, Field(description="-1: no log-probabilities of the prompt")
    ] = -1
    top_logprobs_num: Top | list[Top] | None = 0
    return_text_in_logprobs: bool | None = False
    return_prompt_token_ids: bool | None = False
    stream: bool | None = False
    log_metrics: bool | None = True
    no_logs: bool | None = False
    custom_labels: dict[str, str] | None = None
    priority: int | None = None
    extra_key: str | list[str] | None = None
    cache_salt: str | list[str] | None = None
    routing_key: str | None = None
    conversation_id: str | None = None
    session_id: str | None = None
    image_data: None = None
    video_data: None = None
    audio_data: None = None
    input_embeds: None = None
    token_ids_logprob: None = None
    lora_path: None = None
    session_params: None = None


class SglangFinish(BaseModel):
    """Why the completion ended: by its length, or by an EOS token."""

    type: str
    length: int | None = None
    matched: int | None = None


class SglangMeta(BaseModel):
    """SGLang's description of an answer. The lists are present on request."""

    id: str
    finish_reason: SglangFinish
    prompt_tokens: int
    weight_version: Annotated[str, Field(description="the pair's version")]
    num_retractions: int
    input_token_logprobs: list[TokenLogp] | None = None
    output_token_logprobs: list[TokenLogp] | None = None
    output_token_logprobs_length: int | None = None
    input_top_logprobs: list[list[TokenLogp] | None] | None = None
    output_top_logprobs: list[list[TokenLogp] | None] | None = None
    reasoning_tokens: int
    completion_tokens: int
    cached_tokens: int
    e2e_latency: float
    response_sent_to_client_ts: float


class SglangAnswer(BaseModel):
    """One prompt's answer."""

    text: str
    output_ids: list[int]
    meta_info: SglangMeta
    prompt_token_ids: list[int] | None = None


class SglangErrorBody(BaseModel):
    """SGLang's error: only a message."""

    message: str


class SglangErrorAnswer(BaseModel):
    """Every error of this route."""

    error: SglangErrorBody


class SglangModelInfo(BaseModel):
    """What SGLang's client reads first."""

    model_path: str
    served_model_name: str
    tokenizer_path: str
    is_generation: bool = True
    preferred_sampling_params: None = None
    weight_version: Annotated[str, Field(description="the pair's version")]
    has_image_understanding: bool = False
    has_audio_understanding: bool = False
