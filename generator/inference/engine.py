"""Sampling: many requests at once, each with its own condition, seed and settings.

Requests wait in a queue and enter the batch as soon as rows are free; a finished request leaves at
once (see `generator.inference.batching`).

A request draws its own uniform numbers, one a token, before it starts, and turns them into tokens
through the inverse of the distribution function. What it gets therefore does not depend on what
else is in the batch: to the bit with the compiled kernels of `generator.inference.cpu_kernels`, up
to the last bit of a matrix product with PyTorch's, which may depend on the number of rows.

On a device the host runs ahead: it knows from the grammar what comes next
(`generator.inference.progress`) and reads back lengths when they are drawn and tokens when a
request is done, once a token at most.

Shape letters: N requests in the batch, R rows (two a request under guidance), S tokens, V
vocabulary, L packed tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.errors import EvatokError
from generator.budget import Budgets
from generator.gpt import GPT
from generator.grammar import Grammar
from generator.inference.batching import DecodeBatch
from generator.inference.progress import GrammarProgress
from generator.inference.requests import Request
from generator.inference.sampling import SCHEDULES, Manner, precise, sample_tokens, scheduled
from tokenizer.tokens import Tokens

OnBlock = Callable[[int, int, Tensor], None]


def sample(
    gpt: GPT, requests: Sequence[Request], batch_size: int = 32, on_block: OnBlock | None = None
) -> Tokens:
    """Generate a clip for each request.

    Args:
        gpt: the model; put it in eval mode first.
        requests: at least one, of any mixture.
        batch_size: requests at work at the same time.
        on_block: told of each block as soon as its codes are out: number of the request, of the
            block in the clip (given ones are not told), its ids (k,) int64.

    Returns:
        Tokens of the clips in the order of the requests, given blocks included.

    Raises:
        EvatokError: a request of more tokens than the model holds, or a budget that none can obey.
    """
    clips: dict[int, list[Tensor]] = {}
    for mine, batch in _batches(gpt, requests, on_block):
        for _ in batch.work(batch_size):
            pass
        for index, generated in zip(mine, batch.results, strict=True):
            generated = torch.tensor(generated)
            given = [block.cpu() for block in requests[index].given]
            clips[index] = given + gpt.vocabulary.decode_blocks(generated)
    return Tokens.from_blocks([clips[i] for i in range(len(requests))])


def stream(
    gpt: GPT, requests: Sequence[Request], batch_size: int = 32
) -> Generator[tuple[int, int, Tensor], None, None]:
    """As `sample`, but each block as soon as its codes are out.

    Yields:
        Number of the request, of the block in the clip, its ids (k,) int64. The blocks of a clip
        come in order; given ones do not come.

    Raises:
        EvatokError: as `sample`.
    """
    blocks: list[tuple[int, int, Tensor]] = []
    for _, batch in _batches(gpt, requests, lambda *block: blocks.append(block)):
        for _ in batch.work(batch_size):
            yield from blocks
            blocks.clear()


def _batches(
    gpt: GPT, requests: Sequence[Request], on_block: OnBlock | None
) -> Iterator[tuple[list[int], _Batch]]:
    """Requests without and with guidance: their numbers, and the batch to run."""
    for request in requests:
        budget = request.settings.budget
        budget.check(gpt.vocabulary, request.num_blocks, request.given_tokens)
        needed = len(request.prompt) + gpt.vocabulary.longest(request.num_blocks)
        if needed > gpt.max_tokens:
            raise EvatokError(f"a request of {needed} tokens; the model holds {gpt.max_tokens}")
    for is_guided in (False, True):
        mine = [i for i, request in enumerate(requests) if request.is_guided == is_guided]
        mine.sort(key=lambda i: len(requests[i].prompt))  # equal prompts make equal rows
        batch = _Batch(gpt, [requests[i] for i in mine], 1 + is_guided)
        if on_block is not None:
            batch.on_block = partial(_report_block, on_block, mine, requests)
        yield mine, batch


def _report_block(
    on_block: OnBlock, mine: list[int], requests: Sequence[Request], number: int, ids: list[Tensor]
) -> None:
    """Tell of the last block of a request of one kind by its own number."""
    index = mine[number]
    on_block(index, len(requests[index].given) + len(ids) - 1, ids[-1])


class _Batch:
    """Requests of one kind (all guided or none) on their way through the model.

    Everything with a leading N lists the requests at work, in the order of their rows.
    """

    def __init__(self, gpt: GPT, requests: Sequence[Request], rows_each: int) -> None:
        self.gpt, self.requests, self.rows_each = gpt, requests, rows_each
        self.device = gpt.device
        self.queue = deque(range(len(requests)))
        self.rows: DecodeBatch
        self.results: list[list[int]] = [[] for _ in requests]
        self.active: list[int] = []  # N request numbers
        none = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.steps = max((gpt.vocabulary.longest(r.num_blocks) for r in requests), default=0)
        self.grammar = Grammar(gpt.vocabulary, none)
        self.next = none  # (R,) tokens to take
        self.count = none  # (N,) tokens generated
        self.ids = none.view(0, 1).repeat(1, self.steps)  # (N, S)
        self.uniform = self.ids.to(precise(self.device))  # (N, S)
        # guidance, temperature, top_k, top_p, schedule, blocks
        self.settings = torch.zeros(0, 6, device=self.device)
        self.budgets = Budgets(gpt.vocabulary, self.device)
        self.progress = GrammarProgress()
        self.manner = Manner.from_rows(())
        constant = SCHEDULES[0]
        self.is_scheduled = any(r.settings.guidance_schedule != constant for r in requests)
        self.on_block: Callable[[int, list[Tensor]], None] | None = None

    def work(self, batch_size: int) -> Iterator[None]:
        """Advance every request at work by one token at a time, until `results` are complete."""
        if not self.requests:
            return
        longest = self.gpt.vocabulary.longest
        max_len = max(len(r.prompt) - 1 + longest(r.num_blocks) for r in self.requests)
        rows = min(batch_size, len(self.requests)) * self.rows_each
        self.rows = self.gpt.new_batch(rows, max_len)
        while self.queue or self.active:
            # Entered anew for each step: whoever draws the steps has a mode of their own.
            with torch.inference_mode():
                free = batch_size - len(self.active)
                waits_for = min(self.rows.waits_for // self.rows_each, batch_size)
                if self.queue and (not self.active or free >= max(1, waits_for)):
                    count = min(free, len(self.queue))
                    self._admit([self.queue.popleft() for _ in range(count)])
                self._step()
            yield

    def _admit(self, numbers: list[int]) -> None:
        """Start requests."""
        requests = [self.requests[number] for number in numbers]
        prompts: list[Tensor] = []
        for request in requests:
            prompts.append(request.prompt)
            if self.rows_each == 2 and request.null_prompt is not None:
                prompts.append(request.null_prompt)
        # The last token of a prompt goes in with the first step, so a class needs no prefill.
        self.rows.add_requests([prompt[:-1] for prompt in prompts])
        self.active += numbers
        last = torch.stack([prompt[-1] for prompt in prompts]).to(self.device)
        self.next = torch.cat([self.next, last])
        blocks = torch.tensor([request.num_blocks for request in requests], device=self.device)
        self.grammar.extend(blocks)
        self.progress.extend([request.num_blocks for request in requests])
        self._look()
        self.count = F.pad(self.count, (0, len(requests)))
        self.ids = F.pad(self.ids, (0, 0, 0, len(requests)))
        draws = [
            torch.rand(
                self.steps,
                dtype=torch.float64,
                generator=torch.Generator().manual_seed(request.seed),
            )
            for request in requests
        ]
        drawn = torch.stack(draws).to(self.uniform.dtype)  # before it moves: see `precise`
        self.uniform = torch.cat([self.uniform, drawn.to(self.device)])
        settings = [
            [
                s.guidance,
                s.temperature,
                s.top_k,
                s.top_p,
                SCHEDULES.index(s.guidance_schedule),
                r.num_blocks,
            ]
            for r in requests
            for s in [r.settings]
        ]
        given = [request.given_tokens for request in requests]
        self.budgets.extend([request.settings.budget for request in requests], given)
        self.settings = torch.cat([self.settings, torch.tensor(settings, device=self.device)])

    def _look(self) -> None:
        """Work out how those at work choose."""
        chosen = [self.requests[number].settings for number in self.active]
        self.manner = Manner.from_rows((s.temperature, s.top_k, s.top_p) for s in chosen)

    def _step(self) -> None:
        """One token for every request at work; the device is waited for once at most."""
        logits = self.rows.step(self.next).float()  # (R, V)
        only_codes = self.progress.only_codes
        if only_codes:  # as most of the time: codes come first in the vocabulary
            logits = logits[:, : self.gpt.vocabulary.codebook_size]
        guidance, temperature, top_k, top_p, schedule, blocks = self.settings.unbind(1)
        if self.rows_each == 2:
            c, u = logits.unflatten(0, (-1, 2)).unbind(1)
            scale = guidance
            if self.is_scheduled:
                scale = scheduled(guidance, schedule, self.grammar.block(), blocks)
            logits = u + scale[:, None] * (c - u)  # (N, V)
        if not only_codes:
            logits = logits.masked_fill(~self.grammar.allowed(), -math.inf)
            logits = self.budgets.apply(logits, self.grammar.blocks_left)
        at = self.count[:, None]
        uniform = self.uniform.gather(1, at)[:, 0]
        tokens = sample_tokens(logits, uniform, temperature, top_k.long(), top_p, self.manner)
        self.ids.scatter_(1, at, tokens[:, None])
        self.count += 1
        self.grammar.advance(tokens)
        self.budgets.advance(tokens)
        self.next = tokens.repeat_interleave(self.rows_each)
        finished, ended = self.progress.ending(whole=True), self.progress.ending(whole=False)
        ids = self._read(ended if self.on_block is not None else finished, only_codes)
        if self.on_block is not None:
            for index in ended:
                blocks = self.gpt.vocabulary.decode_blocks(torch.tensor(ids[index]))
                self.on_block(self.active[index], blocks)
        if finished:
            self._retire({index: ids[index] for index in finished})

    def _read(self, indices: list[int], only_codes: bool) -> dict[int, list[int]]:
        """Read back what the host must know of this step, all at once.

        Args:
            indices: requests whose tokens are wanted.
            only_codes: whether all took codes, so that no length has to be known.

        Returns:
            The tokens of each of these requests, this step's included.
        """
        parts = [] if only_codes else [self.grammar.codes_left]
        longest = 1 + max((self.progress.count[index] for index in indices), default=0)
        if indices:
            at = torch.tensor(indices, device=self.device)
            parts.append(self.ids[at, :longest].flatten())
        values = torch.cat(parts).tolist() if parts else []
        self.progress.advance(None if only_codes else values[: len(self.active)])
        rows = values[0 if only_codes else len(self.active) :]
        return {
            index: rows[i * longest : i * longest + self.progress.count[index]]
            for i, index in enumerate(indices)
        }

    def _retire(self, finished: dict[int, list[int]]) -> None:
        """Hand over what is complete, the tokens of each, and free its rows."""
        for index, ids in finished.items():
            self.results[self.active[index]] = ids
        stay = [index for index in range(len(self.active)) if index not in finished]
        each = self.rows_each
        rows = self.rows.retain([index * each + i for index in stay for i in range(each)])
        order = [row // each for row in rows[::each]]
        self.active = [self.active[index] for index in order]
        self.progress.select(order)
        self._look()
        at = torch.tensor(order, dtype=torch.int64, device=self.device)
        self.grammar.select(at)
        self.budgets.select(at)
        self.count, self.ids = self.count[at], self.ids[at]
        self.uniform, self.settings = self.uniform[at], self.settings[at]
        self.next = self.next.view(-1, self.rows_each)[at].flatten()
