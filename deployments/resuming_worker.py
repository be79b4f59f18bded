"""The worker's part of resuming: requests enter its batch with the output they had, and seeds where they were.

Covers: the batch of vLLM's V1 model runner, which every worker on a CPU has. A request that comes back after it was
preempted brings its output along; one that is resumed gets its delivered tokens at the same place, so penalties,
``min_tokens`` and everything else that looks at output see what they would have seen. Nothing is done in a step that
adds no request. Does not cover: V2, the model runner of GPUs, which needs nothing: it hears of all tokens and how many
of them are the prompt, as for any request that was preempted, and its noise depends on seed and position alone.

The names of vLLM's that are not public stand here and nowhere else; ``tests/contract/test_vllm_names.py`` guards them.
"""

from typing import Any

import torch
from vllm.v1.sample.ops.topk_topp_sampler import empty_exponential_noise_like
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from deployments.delivered import delivered_token_ids


class RewindingGenerator(torch.Generator):
    """A seeded request's random numbers on a CPU, which can go back to where they were at its last prefill.

    vLLM samples at every chunk of a prompt and takes what it drew back by the generator's offset; those of a CPU have
    none and raise, which ends the engine. Between a request's entry into the batch and its first kept sample there is
    only such drawing, so to go back is always to go back to the entry.
    """

    def mark(self) -> None:
        """Remember this place."""
        self._marked = self.get_state()

    def get_offset(self) -> int:
        """Return nothing of use; vLLM subtracts from it."""
        return 0

    def set_offset(self, offset: int) -> None:  # noqa: ARG002 - there is one place to go to
        """Go back to the marked place."""
        self.set_state(self._marked)


class ResumingWorker:
    """Mixed into a worker with vLLM's V1 model runner."""

    model_runner: Any

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """See vLLM's worker; the model runner's batch is final after it."""
        super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
        batch = self.model_runner.input_batch
        add_request, noise = batch.add_request, self._noise

        def add_resumed_request(request: CachedRequestState) -> int:
            _restore(request, noise)
            return add_request(request)

        batch.add_request = add_resumed_request

    def _noise(self) -> torch.Tensor:
        """Return room for what the sampler draws for one token: a number for each entry of the vocabulary, float32."""
        runner = self.model_runner
        probabilities = torch.empty(runner.input_batch.vocab_size, dtype=torch.float32, device=runner.device)
        return empty_exponential_noise_like(probabilities, runner.sampler.topk_topp_sampler.use_fp64_gumbel)


def _restore(request: CachedRequestState, noise: Any) -> None:
    """Give a request that enters the batch its delivered tokens, the first time, and a generator that can go back."""
    generator = request.generator
    if generator is not None and not isinstance(generator, RewindingGenerator):
        rewinding = RewindingGenerator(device=generator.device)
        rewinding.set_state(generator.get_state())
        request.generator = generator = rewinding
    if not request.output_token_ids and (delivered := delivered_token_ids(request.sampling_params)):
        request.output_token_ids.extend(delivered)
        if generator is not None:
            skip_draws(generator, noise(), len(delivered))
    if generator is not None:
        generator.mark()


def skip_draws(generator: torch.Generator, noise: torch.Tensor, count: int) -> None:
    """Advance a generator as if ``noise`` had been filled ``count`` times with exponentially distributed numbers."""
    draw = _cheapest_draw(generator, noise)
    for _ in range(count):
        draw(generator)


def _cheapest_draw(generator: torch.Generator, noise: torch.Tensor) -> Any:
    """Return plain integers, which cost a fifth, if they take as much from the generator as exponentials do."""
    integers = torch.empty(noise.shape, dtype=torch.int64, device=noise.device)
    twins = [torch.Generator(device=generator.device) for _ in range(2)]
    for twin in twins:
        twin.set_state(generator.get_state())
    noise.exponential_(generator=twins[0])
    integers.random_(generator=twins[1])
    if torch.equal(twins[0].get_state(), twins[1].get_state()):
        return lambda source: integers.random_(generator=source)
    return lambda source: noise.exponential_(generator=source)
