"""vLLM's manager of adapters in a worker, made to keep them as its slots hold them (``adapter_slots``).

The first time an adapter is loaded on a node it is packed from its files (``peft_packing``); where these are not as
simple as most, vLLM reads, converts, merges and places it, and what it has put into the slot is kept. It is kept in
host memory that all engines of the node share where there is any (``storage.adapter_dram``), else in the worker's own.
From then on it is copied. Which adapter is in which slot, and what is forgotten when, stays vLLM's.

Covers: the classes that stand in for vLLM's. The names of vLLM's managers that are not public stand here and nowhere
else; ``tests/contract/test_vllm_names.py`` guards them.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path, parse_fine_tuned_lora_name
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.models import supports_lora

from deployments.adapter_slots import AdapterSlots, PackedAdapter, PackedShape
from deployments.cpu_adapters import stacks_of
from deployments.peft_packing import pack_file, plan_packing
from storage.adapter_dram import AdapterDram
from storage.adapter_source import CONFIG_NAME, WEIGHTS_NAME
from storage.errors import StorageError
from storage.tensor_header import LENGTH_BYTES, header_bytes, parse_header
from storage.weights import map_file

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")


class PackableLoRA(LoRAModel):
    """As vLLM's, until it is ``packed``: then it has no tensors but that one."""

    packed: PackedAdapter | None = None
    # What its files are called if that says what is in them.
    digest: str | None = None
    from_files = False


class PackingModelManager(LRUCacheLoRAModelManager):
    """Fills slots from packed adapters, and packs what vLLM has filled one with."""

    dram: AdapterDram | None = None
    modules: dict[str, Any]
    _slots: AdapterSlots | None = None
    _layout = ""

    def slots(self) -> AdapterSlots | None:
        """Return the slots; None where some layer keeps adapters in a way that isn't known here."""
        if self._slots is None:
            layers = {name: stacks_of(module) for name, module in self.modules.items()}
            known = {name: stacks for name, stacks in layers.items() if stacks is not None}
            if len(known) < len(layers) or len({s.tensor.dtype for all_ in known.values() for s in all_}) != 1:
                return None
            self._slots = AdapterSlots(known)
            self._layout = self._slots.layout(vllm.__version__)
        return self._slots

    def find(self, digest: str | None) -> PackedAdapter | None:
        """Return an adapter that this node has packed."""
        slots = self.slots()
        if slots is None or self.dram is None or digest is None:
            return None
        found = self.dram.find(self._layout, digest)
        if found is None:
            return None
        try:
            shape = PackedShape(found.header["rank"], tuple(found.header["layers"]))
            return PackedAdapter(shape, _values(found.memory, found.start, slots.count(shape), slots.dtype))
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("what this node keeps of adapter %s can't be used: %r", digest[:16], error)
            return None

    def pack_files(self, directory: Path, digest: str | None, helper: PEFTHelper) -> PackedAdapter | None:
        """Return an adapter, packed from its files; None for one that is for vLLM to load, or to refuse."""
        slots = self.slots()
        if slots is None or any(getattr(module, "tp_size", 1) > 1 for module in self.modules.values()):
            return None
        if getattr(self.model, "lora_skip_prefixes", None):
            return None
        mapper = getattr(self.model, "hf_to_vllm_mapper", None)
        renaming = mapper.get_rename_mapper() if mapper is not None else None
        members = {name: tuple(self.packed_modules.get(name, [name])) for name in self.modules}
        try:
            file = map_file(directory / WEIGHTS_NAME)
            length = header_bytes(bytes(file[:LENGTH_BYTES].tolist()), file.nbytes)
            header = file[LENGTH_BYTES : LENGTH_BYTES + length].numpy().tobytes()
            tensors = parse_header(header, file.nbytes)
            plan = plan_packing(
                slots, members, tensors, lambda name: parse_fine_tuned_lora_name(name, renaming), helper.r
            )
        # It is no such file, or has other names than those of matrices.
        except (StorageError, ValueError, KeyError):
            return None
        if plan is None:
            return None
        scaling = helper.vllm_lora_scaling_factor
        return self._kept(
            slots, plan.shape, digest, lambda values: pack_file(slots, plan, tensors, file, scaling, values)
        )

    def activate_adapter(self, lora_id: int) -> bool:
        """See vLLM's manager."""
        adapter = self._registered_adapters.get(lora_id)
        packed = adapter.packed if isinstance(adapter, PackableLoRA) else None
        slots = self.slots()
        if slots is None:
            return super().activate_adapter(lora_id)
        if packed is None:
            activated = super().activate_adapter(lora_id)
            if activated:
                self._placed(slots, self.lora_index_to_id.index(lora_id), adapter)
            return activated
        # Without layers it takes a slot, and puts nothing there.
        layers, self.modules = self.modules, {}
        try:
            activated = super().activate_adapter(lora_id)
        finally:
            self.modules = layers
        if activated:
            slots.fill(self.lora_index_to_id.index(lora_id), packed)
        return activated

    def _placed(self, slots: AdapterSlots, slot: int, adapter: LoRAModel | None) -> None:
        """Pack what vLLM has put into a slot just now."""
        slots.forget(slot)
        if not isinstance(adapter, PackableLoRA) or not adapter.from_files:
            return
        with_weights = [name for name in self.modules if self._get_lora_layer_weights(adapter, name)]
        shape = PackedShape(adapter.rank, tuple(with_weights))
        adapter.packed = self._kept(slots, shape, adapter.digest, lambda values: slots.read(slot, shape, values))
        adapter.loras = {}

    def _kept(
        self,
        slots: AdapterSlots,
        shape: PackedShape,
        digest: str | None,
        pack: Callable[[torch.Tensor], PackedAdapter],
    ) -> PackedAdapter:
        """Have an adapter packed where the node's engines find it, or, where there is no room, in memory of its own."""
        count = slots.count(shape)
        if self.dram is not None and digest is not None:
            try:
                with self.dram.making(self._layout, digest, shape.as_json(), count * slots.dtype.itemsize) as made:
                    return pack(_values(made.memory, made.start, count, slots.dtype))
            except OSError as error:
                logger.warning("adapter %s stays in the memory of this engine alone: %s", digest[:16], error)
        return pack(torch.empty(count, dtype=slots.dtype))

    def _create_merged_loras_inplace(self, lora_model: LoRAModel) -> None:
        if not isinstance(lora_model, PackableLoRA) or lora_model.packed is None:
            super()._create_merged_loras_inplace(lora_model)


class PackingWorkerManager(LRUCacheWorkerLoRAManager):
    """Loads adapters that are packed by mapping them."""

    _manager_cls = PackingModelManager
    _adapter_manager: PackingModelManager

    def models(self) -> PackingModelManager:
        """Return the manager of what is loaded."""
        return self._adapter_manager

    def _load_adapter(self, lora_request: LoRARequest) -> LoRAModel:
        name = Path(lora_request.lora_path).name
        digest = name if _DIGEST.fullmatch(name) else None
        packed = self._adapter_manager.find(digest) or self._from_files(lora_request, digest)
        if packed is not None:
            adapter = PackableLoRA(lora_request.lora_int_id, packed.shape.rank, {})
            adapter.packed = packed
            return adapter
        adapter = super()._load_adapter(lora_request)
        if isinstance(adapter, PackableLoRA):
            adapter.digest, adapter.from_files = digest, True
        return adapter

    def _from_files(self, lora_request: LoRARequest, digest: str | None) -> PackedAdapter | None:
        directory = Path(get_adapter_absolute_path(lora_request.lora_path))
        if lora_request.tensorizer_config_dict or not (directory / CONFIG_NAME).is_file():
            return None
        helper = PEFTHelper.from_local_dir(str(directory), self.max_position_embeddings)
        # As vLLM does before it loads anything; raises why it can't be used.
        helper.validate_legal(self.lora_config)
        return self._adapter_manager.pack_files(directory, digest, helper)


def keep_adapters_packed(model_runner: Any, dram: AdapterDram | None) -> None:
    """Have a worker's model runner, whose model is not loaded yet, use the classes above."""
    load = model_runner.load_lora_model

    def load_lora_model(model: Any, vllm_config: Any, device: torch.device) -> Any:
        if not supports_lora(model):
            return load(model, vllm_config, device)  # which says so
        manager = PackingWorkerManager(vllm_config, device, model.embedding_modules, PackableLoRA)
        model_runner.lora_manager = manager
        wrapped = manager.create_lora_manager(model, vllm_config)
        manager.models().dram = dram
        return wrapped

    model_runner.load_lora_model = load_lora_model


def adapter_ids(model_runner: Any) -> tuple[list[int], list[int]]:
    """Return the ids of the adapters in slots, and of all that are loaded."""
    models = model_runner.lora_manager.models()
    return [lora_id for lora_id in models.lora_index_to_id if lora_id is not None], list(models.list_adapters())


def _values(memory: Any, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=start)
