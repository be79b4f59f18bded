"""HTTP paths of adapters: for administrators, ours and those of vLLM's own API.

Does not cover: what they do (``adapter_registry``), who may (``guard``).
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse

from app.adapter_registry import AdapterDescription, AdapterRegistry
from app.errors import InvalidRequestError

# What an answer is that vLLM gives as plain text; errors are JSON here, too.
_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


class AdapterSection(BaseModel):
    """Where an adapter's files are, and whose it is: a tenant's, or the operator's without ``owner``."""

    model_config = ConfigDict(extra="forbid")
    source: str = Field(min_length=1, max_length=4096)
    owner: str | None = None


class NewAdapter(AdapterSection):
    """An adapter that there is to be."""

    model: str
    id: str


class LoadCommand(BaseModel):
    """As vLLM has it; ``lora_name`` may be ``model:adapter``."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadCommand(BaseModel):
    """As vLLM has it."""

    lora_name: str


def add_adapter_routes(app: FastAPI, registry: Any, errors: dict[int | str, dict[str, Any]]) -> None:
    """Add the paths; ``registry`` returns an ``AdapterRegistry`` once there is one."""
    _add_admin_routes(app, registry, errors)
    _add_vllm_routes(app, registry, errors)


def _add_admin_routes(app: FastAPI, registry: Any, errors: dict[int | str, dict[str, Any]]) -> None:
    @app.get("/admin/adapters", responses=errors)
    async def admin_adapters() -> dict[str, list[AdapterDescription]]:
        return {"adapters": await registry().describe()}

    @app.post("/admin/adapters", responses=errors)
    async def admin_add_adapter(new: NewAdapter) -> AdapterDescription:
        return await registry().put(new.model, new.id, new.source, new.owner, replace=False)

    # ``:path`` because ids of models may hold slashes.
    @app.put("/admin/adapters/{model_id:path}/{adapter_id}", responses=errors)
    async def admin_put_adapter(model_id: str, adapter_id: str, section: AdapterSection) -> AdapterDescription:
        return await registry().put(model_id, adapter_id, section.source, section.owner, replace=True)

    @app.delete("/admin/adapters/{model_id:path}/{adapter_id}", responses=errors)
    async def admin_remove_adapter(model_id: str, adapter_id: str, owner: str | None = None) -> AdapterDescription:
        return await registry().remove(model_id, adapter_id, owner)


def _add_vllm_routes(app: FastAPI, registry: Any, errors: dict[int | str, dict[str, Any]]) -> None:
    @app.post("/v1/load_lora_adapter", responses=errors | _TEXT)
    async def load_lora_adapter(command: LoadCommand) -> PlainTextResponse:
        adapters: AdapterRegistry = registry()
        if not command.lora_name or not command.lora_path:
            raise InvalidRequestError("Both 'lora_name' and 'lora_path' must be provided.")
        model_id, name = await adapters.model_for(command.lora_name)
        if not command.load_inplace and await adapters.is_listed(model_id, name):
            message = (
                f"The lora adapter '{command.lora_name}' has already been loaded. If you want to load the adapter in "
                "place, set 'load_inplace' to True."
            )
            raise InvalidRequestError(message, "lora_name")
        await adapters.put(model_id, name, command.lora_path, replace=True)
        return PlainTextResponse(f"Success: LoRA adapter '{command.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", responses=errors | _TEXT)
    async def unload_lora_adapter(command: UnloadCommand) -> PlainTextResponse:
        adapters: AdapterRegistry = registry()
        if not command.lora_name:
            raise InvalidRequestError("'lora_name' needs to be provided to unload a LoRA adapter.", "lora_name")
        await adapters.remove(*await adapters.model_for(command.lora_name))
        return PlainTextResponse(f"Success: LoRA adapter '{command.lora_name}' removed successfully.")
