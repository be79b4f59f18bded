"""Requests that can't be answered, each with the status and the field that the answer has to name."""

from typing import Any, NamedTuple

from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
GREETING = [{"role": "user", "content": "Hi"}]
NAN, INFINITY = float("nan"), float("inf")
# JSON can say it, UTF-8 can't.
LONE_SURROGATE = "\ud800"
CONTEXT_TOKENS = 1024


class Bad(NamedTuple):
    path: str
    body: dict[str, Any]
    status: int
    param: str | None


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": CHAT_MODEL, "messages": GREETING, "max_tokens": 2} | fields


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": CHAT_MODEL, "prompt": "Hi", "max_tokens": 2} | fields


def embedding(**fields: Any) -> dict[str, Any]:
    return {"model": EMBEDDING_MODEL, "input": "Hi"} | fields


def tokenize(**fields: Any) -> dict[str, Any]:
    return {"model": CHAT_MODEL, "prompt": "Hi"} | fields


def detokenize(**fields: Any) -> dict[str, Any]:
    return {"model": CHAT_MODEL, "tokens": [1]} | fields


def bad(path: str, param: str | None, *, status: int = 400, **fields: Any) -> Bad:
    """A good body with these fields put into it; ``param`` is the field that is wrong."""
    good = {CHAT: chat, COMPLETIONS: completion, EMBEDDINGS: embedding, TOKENIZE: tokenize, DETOKENIZE: detokenize}
    return Bad(path, good[path](**fields), status, param)


def each(paths: tuple[str, ...], param: str, *values: Any) -> list[Bad]:
    """Every value for one field, on every path."""
    return [bad(path, param, **{param: value}) for path in paths for value in values]


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"} | parameters}}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        value = {"type": "array", "items": value}
    return value


ALL = (CHAT, COMPLETIONS, EMBEDDINGS, TOKENIZE, DETOKENIZE)
GENERATING = (CHAT, COMPLETIONS)
LONG = "word " * 3000
IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}

MODELS = [
    *each(ALL, "model", 7, None, "", [], {}),
    *(
        bad(path, "model", status=404, model=name)
        for path in ALL
        for name in ("nobody", "a/b", "x" * 100_000, LONE_SURROGATE, f"{CHAT_MODEL}:nobody")
    ),
    *(Bad(path, {}, 400, None) for path in ALL),
    *(bad(path, "model", model=EMBEDDING_MODEL) for path in GENERATING),
    bad(EMBEDDINGS, "model", model=CHAT_MODEL),
]

NO_MESSAGES: tuple[Any, ...] = (
    [], "hi", None, 7, {}, [7], [None], [[]], [{}], [{"content": "hi"}], [{"role": "user", "content": 7}],
    [{"role": 7, "content": "hi"}], [{"role": "user", "content": [7]}], [{"role": "user", "content": LONE_SURROGATE}],
    [{"role": "user", "content": [{"type": "nothing"}]}], [{"role": "user", "content": [{"type": "text"}]}],
)  # fmt: skip

MESSAGES = [
    Bad(CHAT, {"model": CHAT_MODEL}, 400, "messages"),
    *each((CHAT,), "messages", *NO_MESSAGES),
    *(Bad(TOKENIZE, {"model": CHAT_MODEL, "messages": messages}, 400, "messages") for messages in NO_MESSAGES),
    *each(
        (CHAT,), "messages", [{"role": "user", "content": [IMAGE]}], [{"role": "user", "content": LONG}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]}],
        [{"role": "assistant", "tool_calls": [7]}], [{"role": "assistant", "tool_calls": [{"function": {}}]}],
        [{"role": "tool", "content": {"a": 1}}],
    ),
    bad(CHAT, None, add_generation_prompt=True, continue_final_message=True),
    bad(CHAT, "chat_template", chat_template="{{ 1 }}"),
    bad(CHAT, None, chat_template_kwargs={"chat_template": "{{ 1 }}"}),
    bad(CHAT, None, chat_template_kwargs={"tokenize": True, "return_tensors": "pt"}),
    *each((CHAT,), "chat_template_kwargs", 7),
    *each((CHAT,), "documents", 7, [7], [{"title": 7}]),
]  # fmt: skip

PROMPTS = [
    *each(
        (COMPLETIONS,), "prompt", "", [], [[]], [""], None, 7, {}, [None], ["a", 7], [[1], "a"], [-1], [10**7],
        [10**30], [1.5], [True, "a"], [5] * 2000, [5] * CONTEXT_TOKENS, LONG, ["Hi", LONG], [[5], [10**7]],
        ["a"] * 2000, LONE_SURROGATE,
    ),
    *each(
        (EMBEDDINGS,), "input", "", [], [[]], [""], None, 7, {}, [None], [-1], [10**7], [10**30], LONG, [5] * 2000,
        LONE_SURROGATE,
    ),
    *each((EMBEDDINGS,), "encoding_format", "morse", 7),
    *each((EMBEDDINGS,), "dimensions", 7, 0, -1, 10**30, "many"),
    *each((EMBEDDINGS,), "truncate_prompt_tokens", -7, 10**30, "x", 100_000),
    *each((EMBEDDINGS,), "embed_dtype", "float1"),
    *each((EMBEDDINGS,), "priority", "high", 10**30),
    bad(EMBEDDINGS, "cache_salt", cache_salt=""),
    *each((TOKENIZE,), "prompt", 7, None, ["a"], LONE_SURROGATE),
    *each((DETOKENIZE,), "tokens", "hi", None, 7, [-1], [10**7], [2**63 - 1], [10**30], ["a"], [1.5]),
    *each((COMPLETIONS,), "prompt_embeds", "AAAA", ["AAAA"], 7),
    *each(GENERATING, "truncate_prompt_tokens", -7, 10**30, "x", 1.5),
    *each(GENERATING, "truncation_side", "up"),
]  # fmt: skip

SAMPLING = [
    *each(GENERATING, "max_tokens", -1, 10**9, 10**30, "many", 1.5, [], NAN),
    *each((CHAT,), "max_tokens", 0),
    *each((CHAT,), "max_completion_tokens", -1, 0, 10**9, "many"),
    *each(GENERATING, "temperature", -1, 3, NAN, INFINITY, -INFINITY, "hot", [], 10**400),
    *each(GENERATING, "top_p", 0, 2, -1, NAN, INFINITY, "x"),
    *each(GENERATING, "top_k", -7, 1.5, "x", NAN, 10**30),
    *each(GENERATING, "min_p", -1, 3, NAN, "x"),
    *each(GENERATING, "presence_penalty", 9, -9, NAN, "x"),
    *each(GENERATING, "frequency_penalty", 9, -9, NAN, INFINITY, "x"),
    *each(GENERATING, "repetition_penalty", 0, -1, NAN, INFINITY, "x"),
    *each(GENERATING, "n", 0, -1, 100_000, 10**30, "x", 1.5, 129),
    bad(CHAT, "n", n=2, temperature=0),
    *each(GENERATING, "seed", 2**63, 2**70, -(2**70), 1.5, "x"),
    *each(GENERATING, "logit_bias", {"x": 1}, {"1.5": 1}, {"99999999": 1}, {"-1": 1}, {"1": "x"}, {"1": None}, 7, [1]),
    *each(GENERATING, "logit_bias", {"1": NAN}, {"1": INFINITY}, {"9" * 40: 1}),
    *each(GENERATING, "stop", 7, ["a"] * 10_000, [""], "", [7], {}),
    *each(GENERATING, "stop_token_ids", [10**9], [-1], [10**30], ["a"], 7, [1.5]),
    *each(GENERATING, "min_tokens", 5, -5, "x", 10**30),
    *each(GENERATING, "stream", "maybe", 7, []),
    *each(GENERATING, "stream_options", {"include_usage": True}, "x", {"include_usage": "maybe"}),
    *each((COMPLETIONS,), "logprobs", 1000, -3, "x", 1.5, [], 10**30, NAN),
    *each((COMPLETIONS,), "echo", "x", 7),
    *each((CHAT,), "logprobs", "x", 7, []),
    *each((CHAT,), "top_logprobs", 3, -3, "x", [], 1.5, NAN),
    bad(CHAT, "top_logprobs", logprobs=True, top_logprobs=1000),
    bad(CHAT, "top_logprobs", logprobs=True, top_logprobs=10**30),
    *each(GENERATING, "prompt_logprobs", 1, 0, -1, -3, 1000, "x", [], 10**30),
    *each(GENERATING, "logprob_token_ids", [1], ["a"], [10**9], 7),
    # With adapters on a CPU the engine would die of these.
    bad(COMPLETIONS, "echo", echo=True, logprobs=1),
    bad(COMPLETIONS, "echo", echo=True, logprobs=0),
    bad(CHAT, "echo", echo=True, logprobs=True, top_logprobs=2),
]

EXTENSIONS = [
    *each(GENERATING, "allowed_token_ids", [], [10**9], [-1], ["a"], 7, [10**30]),
    *each(GENERATING, "bad_words", [""], 7, [7], "a", [f"w{number}" for number in range(10_000)], [LONE_SURROGATE]),
    *each(GENERATING, "cache_salt", "", 7, "x" * 5000, LONE_SURROGATE),
    *each(GENERATING, "priority", "high", 10**30),
    *each(GENERATING, "length_penalty", "x"),
    *each(GENERATING, "use_beam_search", "x"),
    *each(GENERATING, "kv_transfer_params", 7, "x", []),
    *each(GENERATING, "ec_transfer_params", 7),
    *each(GENERATING, "vllm_xargs", 7, {"a": {}}, {"a": None}, {"a": 10**30}),
    *each(GENERATING, "repetition_detection", 7, {"max_pattern_size": -1}, {"max_pattern_size": 5}),
    *each(GENERATING, "thinking_token_budget", 5, -5, "x", 1.5),
    *each(GENERATING, "stream_interval", 0, -1, "x", 10**30),
    *each(GENERATING, "request_id", 7),
    *each((COMPLETIONS,), "suffix", "x", 7),
    *each((CHAT,), "mm_processor_kwargs", 7),
    *each((CHAT,), "media_io_kwargs", 7, {"image": 7}),
    *each((CHAT,), "reasoning_effort", "huge"),
    *each(GENERATING, "routed_experts_prompt_start", -1, 10**30),
]

STRUCTURED = [
    *each(
        GENERATING, "response_format", {"type": "poem"}, {}, 7, "json", {"type": "json_schema"},
        {"type": "json_schema", "json_schema": 7}, {"type": "json_schema", "json_schema": {"schema": {}}},
        {"type": "structural_tag"}, {"type": "structural_tag", "format": 7},
        {"type": "structural_tag", "structures": 7, "triggers": 7},
        schema(7), schema("object"), schema({"type": "nothing"}), schema({"type": 7}), schema({"enum": []}),
        schema({"$ref": "#/$defs/missing"}), schema({"$ref": 7}), schema({"$ref": "#"}),
        schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        schema({"type": "object", "properties": 7}), schema({"type": "object", "required": "a"}),
        schema({"type": "array", "items": "a"}), schema({"type": "string", "pattern": "("}),
        schema({"type": "integer", "minimum": 5, "maximum": 1}),
        schema({"const": LONE_SURROGATE}), schema(nested(400)),
    ),
    *each(
        GENERATING, "structured_outputs", 7, "x", [], {}, {"regex": "("}, {"regex": "\x00"}, {"regex": "(" * 20_000},
        {"grammar": "not a grammar"}, {"grammar": ""}, {"grammar": "root ::= missing"}, {"choice": []}, {"choice": 7},
        {"choice": [LONE_SURROGATE]}, {"json": "{"}, {"json": ""}, {"json": 7}, {"json": {"type": "nothing"}},
        {"json": {}, "regex": "a"}, {"json_object": False}, {"structural_tag": "{"}, {"structural_tag": ""},
    ),
    *each((CHAT,), "tools", "hammer", 7, {}, [], [7], [{}], [{"type": "function"}], [{"type": "x", "function": {}}]),
    *each((CHAT,), "tool_choice", "required", "auto", 7, "x", [], {}, {"type": "function"}),
    *(
        bad(CHAT, "tool_choice", tools=[tool("a")], tool_choice=choice)
        for choice in (
            "b", 7, [], {}, {"function": 7}, {"function": {}}, {"function": {"name": 7}},
            {"type": "function", "function": {"name": "b"}},
        )
    ),
    *(
        bad(CHAT, "tools", tools=tools, tool_choice={"type": "function", "function": {"name": "a"}})
        for tools in ("hammer", 7, [7], [{}], [{"type": "function"}], [{"type": "function", "function": 7}])
    ),
    bad(CHAT, "tools", tools=[tool("a", type="nothing")], tool_choice="required"),
    bad(CHAT, "tools", tools=[tool("a", properties=7)], tool_choice={"type": "function", "function": {"name": "a"}}),
]  # fmt: skip

# Unusual rather than wrong: whether they are answered is vLLM's business.
ODD_REQUESTS = [
    (path, good(**fields))
    for path, good in ((CHAT, chat), (COMPLETIONS, completion))
    for fields in (
        *({"use_beam_search": True, "n": n, "stream": stream} for n in (1, 3, 40) for stream in (False, True)),
        *({"repetition_penalty": penalty, "logprobs": 1} for penalty in (1e-300, 1e-40, 1e40, 1e300)),
        {"temperature": 1e-300}, {"temperature": 5e-324, "seed": -(2**63)}, {"seed": 2**63 - 1}, {"top_k": 2**63 - 1},
        {"top_p": 5e-324}, {"min_p": 1.0}, {"logit_bias": {str(token): -100 for token in range(49_000)}},
        {"allowed_token_ids": [0], "min_tokens": 2, "logprobs": True}, {"allowed_token_ids": [2], "min_tokens": 2},
        {"bad_words": ["word " * 500]}, {"stop_token_ids": list(range(49_000)), "min_tokens": 2},
        {"stop": ["x" * 100_000]}, {"priority": 2**63 - 1}, {"priority": -(2**63)}, {"request_id": "x\n" * 5000},
        {"request_id": ""}, {"user": "x" * 100_000}, {"best_of": 1000}, {"guided_json": {"type": "nothing"}},
        {"guided_regex": "("}, {"logits_processors": ["os.system"]}, {"documents": [{"a": "b"}]},
        {"kv_transfer_params": {"do_remote_prefill": True, "remote_block_ids": [1], "remote_host": "127.0.0.1"}},
        {"kv_transfer_params": {"do_remote_prefill": True}, "max_tokens": -1},
        {"ec_transfer_params": {"x": 1}}, {"vllm_xargs": {"kv_transfer_params": 7}}, {"vllm_xargs": {"": ""}},
        {"mm_processor_kwargs": {"x": 1}}, {"media_io_kwargs": {"image": {"x": 1}}}, {"routed_experts_prompt_start": 5},
        {"repetition_detection": {"max_pattern_size": 2**62, "min_pattern_size": 1, "min_count": 2**62}},
        {"stream_interval": 2**62, "stream": True}, {"truncate_prompt_tokens": 0}, {"truncate_prompt_tokens": 1},
        {"truncate_prompt_tokens": -1}, {"return_token_ids": True}, {"return_tokens_as_token_ids": True, "logprobs": 1},
        {"skip_special_tokens": False}, {"include_stop_str_in_output": True, "stop": "a"}, {"n": 32},
        {"echo": True, "n": 3}, {"echo": True, "stream": True}, {"echo": True, "prompt_logprobs": None},
        {"response_format": schema({"$ref": "http://127.0.0.1:1/x"})},
        {"response_format": schema({"type": "string", "maxLength": -1})},
        {"response_format": schema({"type": "string", "maxLength": 10**9})},
        {"response_format": schema({"type": "string", "minLength": 10**9})},
        {"response_format": schema({"type": "array", "minItems": 10**6})},
        {"response_format": schema({"allOf": [{"type": "string"}, {"type": "integer"}]})},
        {"response_format": schema({"type": "string", "patternProperties": {"a": {}}, "uniqueItems": True})},
        {"response_format": schema({"type": "array", "uniqueItems": True})},
        {"response_format": {"type": "json_object"}},
        {"response_format": schema({}), "structured_outputs": {"regex": "a"}},
        {"structured_outputs": {"grammar": "root ::= root"}}, {"structured_outputs": {"grammar": 'root ::= ""'}},
        {"structured_outputs": {"grammar": 'root ::= root "a" | "b"'}}, {"structured_outputs": {"choice": [""]}},
        {"structured_outputs": {"regex": "((a{1,1000}){1,1000}){1,1000}"}}, {"structured_outputs": {"regex": "(?=a)b"}},
        {"structured_outputs": {"regex": ""}}, {"structured_outputs": {"regex": "a{1,1000000000}"}},
        {"structured_outputs": {"regex": "[^\\s\\S]"}}, {"structured_outputs": {"choice": ['"\\\n']}},
        {"structured_outputs": {"json": {}, "whitespace_pattern": "("}}, {"structured_outputs": {"json_object": True}},
    )
]  # fmt: skip

BAD_REQUESTS = [*MODELS, *MESSAGES, *PROMPTS, *SAMPLING, *EXTENSIONS, *STRUCTURED]
